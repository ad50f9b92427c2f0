"""Cleaning keeps what a text says; language and words come out right for what people write."""

import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.language import clean_text, detect_language, repair_encoding, segment
from training.media import MediaError
from training.settings import TextCleaning

DEFAULT = TextCleaning()


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("  a \t b\u00a0c ", "a b c"),
        ("one\r\n\r\n  two\u2028three", "one\ntwo\nthree"),
        ("ﬁve\u200b \u00adsix\x07\ufeff", "five six"),
        ("e\u0301", "\u00e9"),
        ("e\u200b\u0301", "\u00e9"),  # brought together by the removal
        ("１２３", "123"),
        ("\u202eevil\u202c", "evil"),
        ("م\u200cی", "م\u200cی"),  # the joiner is spelling in Persian
    ],
)
def test_cleaning(raw: str, text: str) -> None:
    assert clean_text(raw, DEFAULT).text == text


def test_settings_decide() -> None:
    assert clean_text("ﬁve", TextCleaning(form="NFC")).text == "ﬁve"
    assert clean_text("FIVE", TextCleaning(lowercase=True)).text == "five"
    assert clean_text("FIVE", DEFAULT).text == "FIVE"
    assert clean_text("chat", TextCleaning(language="fr")).language == "fr"


@pytest.mark.parametrize("raw", ["", " \n\t", "\u200b\x00", "\ufeff"])
def test_nothing_left_is_refused(raw: str) -> None:
    with pytest.raises(MediaError) as caught:
        clean_text(raw, DEFAULT)
    assert caught.value.reason == "empty"


def test_what_was_removed_is_said() -> None:
    assert "2 invisible" in clean_text("a\x00\x01b", DEFAULT).warnings[0]
    assert "replacement" in clean_text("caf\ufffd", DEFAULT).warnings[0]
    broken = clean_text("half \ud83d emoji", DEFAULT)  # as JSON may carry it; it could not be stored
    assert broken.text == "half \ufffd emoji"
    assert broken.text.encode()


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "What is the sum of the digit you see and the digit you hear?"),
        ("en", "Is it a shirt?"),
        ("de", "Das ist ein schöner Tag, und wir gehen nicht nach Hause"),
        ("fr", "il fait beau aujourd'hui dans la ville"),
        ("es", "¿Cuál es la suma de los números que usted ve?"),
        ("it", "Qual è la somma delle cifre che si vedono?"),
        ("nl", "Dit is een mooie dag en wij gaan niet naar huis"),
        ("zh", "今天路口有三辆车，AI系统正常。"),
        ("ja", "日本語の文章です"),
        ("ko", "오늘 날씨가 좋습니다"),
        ("ru", "Привет, как твои дела"),
        ("uk", "Це дуже гарний день, але я не маю часу, бо він уже тут"),
        ("el", "Καλημέρα σας"),
        ("ar", "كيف حالك اليوم"),
        ("hi", "यह हिन्दी में लिखा है"),
        ("th", "สวัสดีครับ"),
        ("pl", "Dziś rano była piękna pogoda, więc poszliśmy nad rzekę."),
        ("pt", "Esta manhã o tempo estava bom e caminhamos ao longo do rio."),
        ("it", "Fattura per dodici sedie"),
        ("en", "Invoice for the delivery of twelve chairs"),
        ("tr", "Bu sabah hava güzeldi, nehir boyunca yürüdük."),
        ("bg", "Коя цифра виждаш на снимката?"),
        ("fa", "امروز صبح هوا خوب بود و ما کنار رودخانه قدم زدیم."),
        ("zh", "这个API的response太慢了"),
        ("zh", "我今天用了GPU来训练这个model，效果很好"),
        ("en", "The word 你好 means hello in Chinese."),
        ("en", "Please say สวัสดี to him when you meet."),
        ("und", "hello"),  # a word may be of many languages
        ("und", "venster"),
        ("und", "3 + 4 = ?"),
        ("und", "🙂"),
    ],
)
def test_language(language: str, text: str) -> None:
    assert detect_language(text) == language


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't open 3.5 valves; the pump's at 1,000 kPa.", "Don't open 3.5 valves the pump's at 1,000 kPa"),
        ("It’s well-known, U2 and 7up: A4!", "It’s well known U2 and 7up A4"),
        ("यह हिन्दी में है", "यह हिन्दी में है"),  # marks belong to their letters
        ("今天路口有车, don't stop AI系统 3.5米", "今天 路口 有车 don't stop AI 系统 3.5 米"),
        ("...", ""),
    ],
)
def test_words(text: str, words: str) -> None:
    assert segment(text, detect_language(text)) == tuple(words.split())


def test_content_words_lose_grammar_but_neither_numbers_nor_negation() -> None:
    clean = clean_text("It's the sum of seven and two, isn't it? They don't know, you're not there.", DEFAULT)
    assert clean.content_words == ("sum", "seven", "two", "isn't", "don't", "know", "not")
    chinese = clean_text("我们的系统是正常的", DEFAULT)
    assert "系统" in chinese.content_words
    assert "的" not in chinese.content_words


def test_scripts_without_a_segmenter_are_said() -> None:
    assert any("no segmenter for ja" in warning for warning in clean_text("日本語の文章です", DEFAULT).warnings)


@settings(max_examples=300, deadline=None)
@given(raw=st.text(max_size=60), lowercase=st.booleans(), form=st.sampled_from(["NFC", "NFKC"]))
def test_cleaning_is_total_and_stable(raw: str, lowercase: bool, form: str) -> None:
    wanted = TextCleaning(lowercase=lowercase, form=form)  # type: ignore[arg-type]
    try:
        clean = clean_text(raw, wanted)
    except MediaError:
        assert not any(c.isalnum() for c in raw)
        return
    assert clean.text == clean.text.strip() != ""
    assert not any(unicodedata.category(c) == "Cc" and c != "\n" for c in clean.text)
    assert unicodedata.is_normalized(wanted.form, clean.text)
    again = clean_text(clean.text, wanted)
    assert (again.text, again.words) == (clean.text, clean.words)
    position = 0
    for word in clean.words:  # in order, nothing made up
        position = clean.text.index(word, position) + len(word)
    letters = sum(c.isalpha() for c in clean.text)
    assert sum(c.isalpha() for word in clean.words for c in word) == letters


def test_chinese_trusts_no_file_in_the_temporary_folder(tmp_path: Path) -> None:
    """jieba alone would load `jieba.cache` from there, write it, and log to stderr."""
    (tmp_path / "jieba.cache").write_bytes(b"planted")
    code = "from training.language import segment; print(segment('今天路口有三辆车', 'zh'))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"TMPDIR": str(tmp_path), "PYTHONPATH": ".", "PYTHONIOENCODING": "utf-8"},
        cwd=Path(__file__).parents[2], capture_output=True, encoding="utf-8", check=True,
    )  # fmt: skip
    assert "路口" in done.stdout
    assert done.stderr == ""
    assert [p.name for p in tmp_path.iterdir()] == ["jieba.cache"]
    assert (tmp_path / "jieba.cache").read_bytes() == b"planted"


VALID = [
    *("SÃO PAULO", "à â ã", "naïve café", "“quotes” — dash… ™ ®", "ÀÉÎÕÜ", "×÷±", "£5 €3 ¥7", "I ❤ NY 🙂", "20°C ±1"),
    *("l’été, ça va ? «Voilà»", "Đặng Thị Ngọc", "Łódź", "Ærø Å", "¿Cuál es la suma?", "mañana…»", "Straße", "E = mc²"),
    *(
        "今天路口有三辆车",
        "今朝は天気が良かった",
        "오늘 날씨가 좋습니다",
        "Привет, как твои дела",
        "Це дуже гарний день",
    ),
    *("كيف حالك اليوم", "שלום עולם", "यह हिन्दी में है", "สวัสดีครับ", "Καλημέρα σας", "ქართული", "Բարեւ", "தமிழ்"),
    *("one\x85two", "caf\ufffd", "a\xa0b", "\u200b"),
]


@pytest.mark.parametrize("text", VALID)
def test_a_valid_text_is_not_repaired(text: str) -> None:
    for written in (text, text.upper(), text * 20, "\n".join(VALID)):
        assert repair_encoding(written) == written


@pytest.mark.parametrize("text", ["Das Wetter ist schön", "¿Cuál es la suma?", "l’été", "Привет, как дела", "今天很好"])
@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_what_was_decoded_wrongly_is_repaired_and_said(text: str, encoding: str) -> None:
    wrong = text.encode().decode(encoding)
    clean = clean_text(wrong, TextCleaning(form="NFC"))
    assert clean.text == text != wrong
    assert clean.warnings == ("UTF-8 was read as another encoding before: repaired",)
    assert not clean_text(text, DEFAULT).warnings
