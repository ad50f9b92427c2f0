"""Text cleaning: Unicode normalisation, language by script and stop words, words, content words. No model is needed.

Languages are ISO 639-1 codes, or ``und`` (undetermined: no letters, or nothing that tells). Words follow one rule for
every script with spaces: runs of letters, marks and digits; an apostrophe within a word stays (``don't``), so does
the separator within a number (``3.5``). Chinese is segmented by jieba.
"""

import functools
import logging
import threading
import unicodedata
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any

import regex

from training.media import MediaError
from training.modalities.text import TextCleaning

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
_SURROGATE = regex.compile(r"[\ud800-\udfff]")
_LINE_BREAK = regex.compile(r"\s*[\n\v\f\r\x85\u2028\u2029]\s*")
_SPACE = regex.compile(r"\s+")
_SCRIPT_LANGUAGES = {
    "Han": "zh", "Kana": "ja", "Hangul": "ko", "Thai": "th", "Lao": "lo", "Khmer": "km", "Myanmar": "my", "Greek": "el",
    "Hebrew": "he", "Armenian": "hy", "Georgian": "ka", "Devanagari": "hi", "Bengali": "bn", "Tamil": "ta",
    "Telugu": "te", "Gujarati": "gu", "Cyrillic": "ru", "Arabic": "ar", "Latin": "und",
}  # fmt: skip
_SCRIPT = regex.compile(
    "|".join(
        rf"(?P<{name}>[\p{{Hiragana}}\p{{Katakana}}])" if name == "Kana" else rf"(?P<{name}>\p{{{name}}})"
        for name in _SCRIPT_LANGUAGES
    )
)
# Scripts that several languages share: their stop words decide.
_CANDIDATES = {
    "Latin": (
        "en", "de", "fr", "es", "it", "pt", "nl", "sv", "da", "no", "fi", "pl", "cs", "ro", "hu", "tr", "id", "vi",
    ),
    "Cyrillic": ("ru", "uk", "bg"),
    "Arabic": ("ar", "fa", "ur"),
    "Devanagari": ("hi", "mr"),
}  # fmt: skip
_UNSEGMENTED = ("ja", "th", "lo", "km", "my")
# English words of grammar. stopwordsiso lists 1,298, numbers and "same", "small", "open" among them: those are content
# here, and so are negations.
_ENGLISH_TEXT = """
    a an the this that these those such
    i me my mine myself you your yours yourself yourselves he him his himself she her hers herself it its itself
    we us our ours ourselves they them their theirs themselves one's who whom whose which what when where why how
    am is are was were be been being have has had having do does did doing done
    will would shall should can could may might must let
    of in on at by for with from to into onto upon about between through during before after above below over under
    up down out off against within along among around as than per via
    and or but if so because while although though until unless since whether both either
    there here then again also just only very too any some each every
    please
"""
_ENGLISH = frozenset(_ENGLISH_TEXT.split())
_ENGLISH_ENDINGS = ("'s", "'m", "'re", "'ve", "'ll", "'d")
_lock = threading.Lock()


@dataclass(frozen=True)
class CleanText:
    text: str
    characters: int  # before it was normalised
    language: str
    words: tuple[str, ...]
    content_words: tuple[str, ...]  # lower case, without stop words
    warnings: tuple[str, ...] = ()


def clean_text(raw: str, settings: TextCleaning) -> CleanText:
    """Normalised text and its words; raises MediaError("empty") where nothing is left.

    Line breaks stay (one for several), other runs of white space become one space.
    """
    notes = []
    text, broken = _SURROGATE.subn("\ufffd", raw)
    text = unicodedata.normalize(settings.form, text)
    text, invisible = _INVISIBLE.subn("", text)
    # Removing may have brought a letter and its accent together.
    text = unicodedata.normalize(settings.form, text) if invisible else text
    text = "\n".join(_SPACE.sub(" ", line) for line in _LINE_BREAK.split(text.strip()))
    if settings.lowercase:
        text = text.lower()
    if not text:
        raise MediaError("empty", "the text is empty" if not raw else "the text is only white space and controls")
    if invisible:
        notes.append(f"{invisible} invisible or control characters removed")
    if broken or "\ufffd" in text:
        notes.append(f"{text.count(chr(0xFFFD))} replacement characters: the text was decoded wrongly before")
    language = detect_language(text) if settings.language == "auto" else settings.language
    words = segment(text, language)
    if language in _UNSEGMENTED:
        notes.append(f"no segmenter for {language}: words are runs of one script")
    content = tuple(word for word in map(_fold, words) if not _is_stop_word(word, language))
    return CleanText(text, len(raw), language, words, content, tuple(notes))


def detect_language(text: str) -> str:
    """By the most frequent script; where languages share it, by whose stop words occur, the rarer the stronger."""
    scripts = Counter(match.lastgroup for match in _SCRIPT.finditer(text[:10_000]))
    if not scripts:
        return "und"
    script = str(scripts.most_common(1)[0][0])
    # Japanese is mostly Han with kana between; Chinese has no kana.
    if script == "Han" and scripts["Kana"] * 10 > scripts["Han"]:
        return "ja"
    if script == "Cyrillic" and regex.search("[іїєґІЇЄҐ]", text):
        return "uk"  # letters that neither Russian nor Bulgarian has; its list of stop words is short
    candidates = _CANDIDATES.get(script)
    if candidates is None:
        return _SCRIPT_LANGUAGES[script]
    words = {_fold(w) for w in _WORD.findall(text[:10_000])}
    scores = dict.fromkeys(candidates, 0.0)
    for word in words:
        spoken = [language for language in candidates if word in stop_words(language)]
        for language in spoken:
            scores[language] += 1 / len(spoken)
    best = max(candidates, key=lambda language: scores[language])  # the first of equals
    return best if scores[best] else _SCRIPT_LANGUAGES[script]


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


def _is_stop_word(word: str, language: str) -> bool:
    if language != "en":
        return word in stop_words(language)
    for ending in _ENGLISH_ENDINGS:
        word = word.removesuffix(ending)
    return word in _ENGLISH


@functools.cache
def stop_words(language: str) -> frozenset[str]:
    """The list of stopwordsiso; empty for a language it does not know."""
    import stopwordsiso

    return frozenset(stopwordsiso.stopwords(language)) if stopwordsiso.has_lang(language) else frozenset()


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
