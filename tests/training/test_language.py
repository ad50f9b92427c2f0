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
from training.stop_words import is_stop_word, stop_words

DEFAULT = TextCleaning()


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("  a \t b\u00a0c ", "a b c"),
        ("one\r\n\r\n  two\u2028three", "one\ntwo\nthree"),
        ("five\u200b \u00adsix\x07\ufeff", "five six"),
        ("e\u0301", "\u00e9"),
        ("e\u200b\u0301", "\u00e9"),  # brought together by the removal
        ("多少？ １２３ ½ ﬁve 5 m²", "多少？ １２３ ½ ﬁve 5 m²"),  # what it says, as it was written
        ("\u202eevil\u202c", "evil"),
        ("م\u200cی", "م\u200cی"),  # the joiner is spelling in Persian
    ],
)
def test_cleaning(raw: str, text: str) -> None:
    assert clean_text(raw, DEFAULT).text == text


def test_settings_decide() -> None:
    written = "？ ﬁve ½ e\u0301"
    assert clean_text(written, TextCleaning(form="NFC")).text == "？ ﬁve ½ é"
    assert clean_text(written, TextCleaning(form="NFKC")).text == "? five 1⁄2 é"
    assert clean_text(written, TextCleaning(form="none")).text == written
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
        ("zh", "我用Python和TensorFlow写deep learning model"),  # terms are no grammar
        ("zh", "患者CT显示no acute findings, lung clear"),
        ("zh", "我们的 AI team 需要更多 GPU resources 来 train 这个 model"),
        ("ko", "GPU를 사용해서 deep learning model을 training"),
        ("ja", "PythonでDeep Learning modelを作る"),
        ("ru", "модель BERT base uncased fine tuning"),
        ("en", "The word 你好 means hello in Chinese."),
        ("en", "The report says 无发热 and 未见异常 in both of the cases that we have seen"),
        ("fr", "les mots 你好 et 再见 signifient bonjour et au revoir"),
        ("en", "The dose of the β-blocker is 5 µg for all of them"),
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


def test_chinese_words_in_other_texts_lose_their_grammar_and_keep_negation() -> None:
    clean = clean_text("患者无发热，没有咳嗽，不能行走，三天", DEFAULT)
    assert clean.content_words == ("患者", "无", "发热", "没有", "咳嗽", "不能", "行走", "三天")
    mixed = clean_text("The report says 无发热 and 这是正常的 in both of the cases", DEFAULT)
    assert mixed.language == "en"
    assert mixed.content_words == ("report", "says", "无", "发热", "这是", "正常", "both", "cases")


# Negation, numbers and modality, in languages that the cleaner tells apart.
TELLING = {
    "en": "not no never nobody nothing without none nor one two ten half first can could may might must should will",
    "zh": "不 没 没有 无 未 非 别 勿 否 一 二 三 两 十 百 半 第一 能 可以 会 必须 应该 可能 要 不能 不是",
    "de": "nicht kein keine nie niemand nichts ohne weder ein eins zwei zehn erste kann muss soll darf will könnte",
    "fr": "ne pas plus jamais rien aucun sans non ni un une deux dix premier peut doit faut veut pourrait",
    "es": "no nunca nada nadie ninguno sin ni tampoco un uno una dos diez primero puede debe quiere podría",
    "it": "non no mai niente nessuno senza né un uno una due dieci primo può deve vuole potrebbe",
    "pt": "não nunca nada ninguém nenhum sem nem um uma dois dez primeiro pode deve quer poderia",
    "ca": "no mai res ningú cap sense un una dos deu primer pot deu vol",
    "nl": "niet geen nooit niets een twee kan moet",
    "sv": "inte ej aldrig ingen utan en ett två tio kan måste ska bör",
    "da": "ikke aldrig ingen uden en et to kan skal",
    "no": "ikke aldri ingen uten en et to ti kan må skal bør",
    "fi": "ei en et älä ilman yksi kaksi voi täytyy pitää saa",
    "pl": "nie nigdy nic bez żaden jeden dwa trzy może musi trzeba",
    "cs": "ne není nikdy nic bez jeden dva může musí",
    "sk": "nie nikdy nič bez jeden dva môže musí",
    "hr": "ne nije nikad ništa bez jedan dva može mora treba",
    "ro": "nu niciodată nimic fără un o doi poate trebuie",
    "hu": "nem ne soha semmi nélkül egy két kell lehet tud",
    "tr": "değil yok hayır hiç bir iki on gerek belki lazım",
    "id": "tidak bukan jangan tanpa satu dua bisa harus boleh",
    "ru": "не нет ни никогда ничего без нельзя один два три может должен надо можно нужно",
    "uk": "не ні ніколи нічого без один два може треба",
    "bg": "не няма никога нищо без един два може трябва",
    "el": "δεν μη όχι ποτέ τίποτα χωρίς ένας ένα δύο μπορεί πρέπει",
    "ar": "لا ليس لم لن غير بدون واحد اثنان يمكن يجب قد",
    "fa": "نه نیست هیچ بدون یک دو باید شاید",
    "he": "לא אין בלי אחד שניים יכול צריך אסור",
    "hi": "नहीं मत बिना एक दो सकता चाहिए",
    "ja": "ない 不 無 一 二",
    "ko": "안 못 없 하나 둘",
    "th": "ไม่ หนึ่ง ต้อง",
    "vi": "không một hai phải",
    "xx": "not no",
}


@pytest.mark.parametrize("language", TELLING)
def test_no_stop_word_is_a_negation_a_number_or_modality(language: str) -> None:
    listed = stop_words(language)
    assert listed.isdisjoint(TELLING[language].split())
    assert not any(char.isnumeric() for word in listed for char in word if "什么" not in word)
    if language == "en":  # nor what they are joined to
        assert not any(is_stop_word(word, "en") for word in ("don't", "can't", "you'll", "we'd", "isn't", "cannot"))


def test_scripts_without_a_segmenter_are_said() -> None:
    assert any("no segmenter for ja" in warning for warning in clean_text("日本語の文章です", DEFAULT).warnings)


@settings(max_examples=300, deadline=None)
@given(raw=st.text(max_size=60), lowercase=st.booleans(), form=st.sampled_from(["NFC", "NFKC", "none"]))
def test_cleaning_is_total_and_stable(raw: str, lowercase: bool, form: str) -> None:
    wanted = TextCleaning(lowercase=lowercase, form=form)  # type: ignore[arg-type]
    try:
        clean = clean_text(raw, wanted)
    except MediaError:
        assert not any(c.isalnum() for c in raw)
        return
    assert clean.text == clean.text.strip() != ""
    assert not any(unicodedata.category(c) == "Cc" and c != "\n" for c in clean.text)
    assert form == "none" or unicodedata.is_normalized(form, clean.text)  # type: ignore[arg-type]
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
