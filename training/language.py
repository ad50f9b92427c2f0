"""Text cleaning: repair of wrong decoding, Unicode normalisation, language, words, content words; all works offline.

Languages are ISO 639-1 codes, or ``und`` (undetermined: no letters, or too few to tell). Words follow one rule for
every script with spaces: runs of letters, marks and digits; an apostrophe within a word stays (``don't``), so does
the separator within a number (``3.5``). Chinese is segmented by jieba.
"""

import copy
import functools
import hashlib
import logging
import threading
import unicodedata
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import regex

from training import personal_data
from training.media import MediaError
from training.settings import TextCleaning
from training.stop_words import is_stop_word, stop_words

_LETTER = r"[[\p{L}\p{M}\p{N}]--\p{Han}]"
_WORD = regex.compile(rf"\p{{N}}+(?:[.,:]\p{{N}}+)*(?!{_LETTER})|{_LETTER}+(?:['\u2019]{_LETTER}+)*", regex.V1)
_HAN = regex.compile(r"[\p{Han}々〇]+")
# No spaces between words, and no segmenter here: a run of one script is one word.
_RUN = regex.compile(rf"{_HAN.pattern}|\p{{Hiragana}}+|[\p{{Katakana}}ー]+|{_WORD.pattern}", regex.V1)
_HAN_OR_WORD = regex.compile(rf"{_HAN.pattern}|{_WORD.pattern}", regex.V1)
# Characters that say nothing: controls (line breaks and tabs are space), byte order marks, zero-width space, soft
# hyphen, direction marks. The zero-width joiners stay: Persian, Indic scripts and emoji need them.
_INVISIBLE = regex.compile(
    r"[\p{Cc}--[\t\n\v\f\r\x85]]|[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]", regex.V1
)
_CONTROL = regex.compile(r"[\p{Cc}--[\t\n\v\f\r\x85]]", regex.V1)
_SURROGATE = regex.compile(r"[\ud800-\udfff]")
_LINE_BREAK = regex.compile(r"\s*[\n\v\f\r\x85\u2028\u2029]\s*")
_SPACE = regex.compile(r"\s+")
_SCRIPT_LANGUAGES = {
    "Han": "zh", "Kana": "ja", "Hangul": "ko", "Thai": "th", "Lao": "lo", "Khmer": "km", "Myanmar": "my", "Greek": "el",
    "Hebrew": "he", "Armenian": "hy", "Georgian": "ka", "Devanagari": "hi", "Bengali": "bn", "Tamil": "ta",
    "Telugu": "te", "Gujarati": "gu", "Cyrillic": "ru", "Arabic": "ar", "Latin": "und",
}  # fmt: skip
_ASCII_RUN = regex.compile("[A-Za-z]+")
# Letters that make about one word; of the other scripts a run of letters is one.
_LETTERS_PER_WORD = {"Han": 2, "Kana": 2, "Thai": 5, "Lao": 5, "Khmer": 5, "Myanmar": 5}
_CLASSES = {name: rf"\p{{{name}}}" for name in _SCRIPT_LANGUAGES} | {"Kana": r"[\p{Hiragana}\p{Katakana}]"}
_SCRIPT = regex.compile(
    "|".join(f"(?P<{name}>{letter}{'' if name in _LETTERS_PER_WORD else '+'})" for name, letter in _CLASSES.items())
)
# Scripts that several languages share: a classifier chooses among these.
_CANDIDATES = {
    "Latin": (
        "en", "de", "fr", "es", "it", "pt", "nl", "sv", "da", "no", "fi", "pl", "cs", "sk", "sl", "hr", "ro", "hu",
        "tr", "id", "vi", "ca", "gl", "et", "lt", "lv",
    ),
    "Cyrillic": ("ru", "uk", "bg", "be", "sr", "mk"),
    "Arabic": ("ar", "fa", "ur", "ps"),
    "Devanagari": ("hi", "mr", "ne"),
}  # fmt: skip
_LEAST_CONFIDENCE = 0.35  # of the chosen one among the candidates; single words of Latin letters mostly have less
_GRAMMAR = 0.15  # of the words of a sentence, at least, are words of grammar
_TELLING = 10_000  # characters of a text that its language is told from
_UNSEGMENTED = ("ja", "th", "lo", "km", "my")
_NAME = regex.compile(rf"\[(?:{'|'.join(personal_data.KINDS).upper()}) [0-9a-f]{{8}}\]")  # of `clean_cell`
_lock = threading.Lock()


@dataclass(frozen=True)
class CleanText:
    """A normalised text. Its language and words are found when they are asked for: a model seldom reads them."""

    text: str
    characters: int  # before it was normalised
    said_language: str  # as the settings say it: a code, or "auto"
    notes: tuple[str, ...]  # what normalising changed
    controls: int = 0  # characters that were taken out and are none, such as NUL
    personal_data: Mapping[str, int] = field(default_factory=dict)  # kind -> how many were masked

    @functools.cached_property
    def language(self) -> str:
        return detect_language(self.text) if self.said_language == "auto" else self.said_language

    @functools.cached_property
    def words(self) -> tuple[str, ...]:
        return segment(self.text, self.language)

    @functools.cached_property
    def content_words(self) -> tuple[str, ...]:
        """Lower case, without stop words."""
        language = self.language
        return tuple(word for word in map(_fold, self.words) if not is_stop_word(word, _language_of(word, language)))

    @property
    def warnings(self) -> tuple[str, ...]:
        if self.language not in _UNSEGMENTED:
            return self.notes
        return *self.notes, f"no segmenter for {self.language}: words are runs of one script"


def clean_text(raw: str, settings: TextCleaning) -> CleanText:
    """Normalised text; raises MediaError: "empty" where nothing is left, "personal_data" where the settings refuse it.

    Line breaks stay (one for several), other runs of white space become one space.
    """
    notes = []
    text, broken = _SURROGATE.subn("\ufffd", raw)
    before, invisible, repaired, found = "", 0, False, Counter[str]()
    while text != before:  # each step may bring together what another one changes
        before, text = text, repair_encoding(text)
        repaired |= text != before
        if settings.form != "none":
            text = unicodedata.normalize(settings.form, text)
        text, removed = _INVISIBLE.subn("", text)
        invisible += removed
        text = "\n".join(_SPACE.sub(" ", line) for line in _LINE_BREAK.split(text.strip()))
        if settings.personal_data != "keep":
            text, masked = personal_data.mask(text, settings.personal_kinds, settings.phone_regions)
            found += masked
        if settings.lowercase:
            text = text.lower()
    if found and settings.personal_data == "quarantine":
        advice = "take it out, or set features.text.personal_data to mask"
        raise MediaError("personal_data", f"the text holds personal data ({personal_data.said(found)}): {advice}")
    if not text:
        raise MediaError("empty", "the text is empty" if not raw else "the text is only white space and controls")
    if repaired:
        notes.append("UTF-8 was read as another encoding before: repaired")
    if invisible:
        notes.append(f"{invisible} invisible or control characters removed")
    if broken or "\ufffd" in text:
        notes.append(f"{text.count(chr(0xFFFD))} replacement characters: the text was decoded wrongly before")
    controls = len(_CONTROL.findall(raw)) if invisible else 0
    return CleanText(text, len(raw), settings.language, tuple(notes), controls, found)


def clean_cell(value: str, settings: TextCleaning) -> str:
    """The value of a column without personal data, where the settings mask or refuse them. One that is nothing else
    becomes a name of its own: a group stays one; such a name stays as it is."""
    if settings.personal_data == "keep" or _NAME.fullmatch(value):
        return value
    for one in reversed(personal_data.find(value, settings.personal_kinds, settings.phone_regions)):
        whole = (one.start, one.end) == (0, len(value))
        name = f" {hashlib.sha256(value.encode()).hexdigest()[:8]}" if whole else ""
        value = f"{value[: one.start]}[{one.kind.upper()}{name}]{value[one.end :]}"
    return value


def detect_language(text: str) -> str:
    """By the script of most words; where languages share it, by py3langid's classifier of byte sequences.

    Names and terms in Latin letters stand in texts of every language, so they decide only where there is grammar among
    them.
    """
    text = text[:_TELLING]
    if text.isascii():  # most texts are, and are told in a tenth of the time
        return _among("Latin", runs) if (runs := _ASCII_RUN.findall(text)) else "und"
    runs = [(str(match.lastgroup), match[0]) for match in _SCRIPT.finditer(text)]
    scripts = Counter(name for name, _ in runs)
    if not scripts:
        return "und"
    words = Counter({name: count / _LETTERS_PER_WORD.get(name, 1) for name, count in scripts.items()})
    script = words.most_common(1)[0][0]  # the first of equals
    if script == "Latin" and (other := _beside_terms(runs, words)):
        script = other
    # Japanese is mostly Han with kana between; Chinese has no kana.
    if script == "Han" and scripts["Kana"] * 10 > scripts["Han"]:
        return "ja"
    return _among(script, [run for name, run in runs if name == script])  # words of other scripts would confuse it


def _among(script: str, runs: list[str]) -> str:
    """The language of letters of one script; where none is likely enough, what the script says alone."""
    if script not in _CANDIDATES:
        return _SCRIPT_LANGUAGES[script]
    language, confidence = _classifier(script).classify(" ".join(runs))
    return str(language) if confidence >= _LEAST_CONFIDENCE else _SCRIPT_LANGUAGES[script]


def _beside_terms(runs: list[tuple[str, str]], words: Counter[str]) -> str | None:
    """The script of most words beside Latin ones, if these are terms: hardly one of them is a word of grammar."""
    if len(words) == 1:
        return None
    letters: Counter[str] = Counter()
    for name, run in runs:
        if len(run) > 1 or name in _LETTERS_PER_WORD:  # one letter of an alphabet is a symbol: β, µ
            letters[name] += len(run)
    others = [name for name, _ in words.most_common() if name != "Latin" and letters[name] > 1]
    latin = [run.lower() for name, run in runs if name == "Latin" and not (run.isupper() and len(run) > 1)]
    grammar = {language: sum(run in stop_words(language) for run in latin) for language in _CANDIDATES["Latin"]}
    # One word of another language than English may well be an English term ("pro", "no").
    found = max(grammar["en"], *(count for count in grammar.values() if count > 1), 0)
    return others[0] if others and found < _GRAMMAR * words["Latin"] else None


def repair_encoding(text: str) -> str:
    """The text as it was before UTF-8 was read as another encoding (`schÃ¶n` is `schön`); a valid text as it is."""
    if text.isascii():
        return text
    from ftfy import TextFixerConfig, fix_encoding_and_explain

    repaired, steps = fix_encoding_and_explain(text, TextFixerConfig(fix_c1_controls=False))
    # Alone, controls such as NEL (U+0085) are not wrongly decoded UTF-8: cleaning takes them for what they are.
    return text if steps == [("encode", "latin-1"), ("decode", "windows-1252")] else repaired


def segment(text: str, language: str) -> tuple[str, ...]:
    """The words in order, without punctuation."""
    if language in _UNSEGMENTED:
        return tuple(_RUN.findall(text))
    if not _HAN.search(text):
        return tuple(_WORD.findall(text))
    words: list[str] = []
    for run in _HAN_OR_WORD.findall(text):
        words.extend(_jieba().lcut(run) if _HAN.fullmatch(run) else [run])
    return tuple(words)


def _fold(word: str) -> str:
    return word.lower().replace("\u2019", "'")


def _language_of(word: str, language: str) -> str:
    """Of a word in a text of that language: Chinese words stand in texts of others, too."""
    return "zh" if not word.isascii() and _HAN.fullmatch(word) and language not in _UNSEGMENTED else language


@functools.cache
def _jieba_dictionary() -> Any:
    """A tokenizer of our own that reads jieba's dictionary directly.

    jieba's own loading trusts (and unmarshals) a file of a fixed name in the shared temporary folder.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in its source, pkg_resources
        import jieba
    jieba.setLogLevel(logging.WARNING)
    tokenizer = jieba.Tokenizer()
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    return tokenizer


def _jieba() -> Any:
    with _lock:  # loaded once, however many threads ask
        return _jieba_dictionary()


@functools.cache
def _classifier_model() -> Any:
    """About a second and 100 MB."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@functools.cache
def _classifier_among(script: str) -> Any:
    """It chooses among the languages of the script alone, and need not look at the others."""
    classifier = copy.copy(_classifier_model())  # which shares its tables
    classifier.set_languages(_CANDIDATES[script])
    return classifier


def _classifier(script: str) -> Any:
    with _lock:
        return _classifier_among(script)
