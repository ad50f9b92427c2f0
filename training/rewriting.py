"""Training texts rewritten by rule: words left out, swapped, misspelt or said by others that mean the same ("EDA", Wei
and Zou 2019).

What is drawn depends on the generator alone, which `training.collator` keys by (seed, epoch, sample id).
"""

import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training.featurizers.tokens import OTHERS
from training.settings import TextAugmentation
from training.validation import check

if TYPE_CHECKING:
    from training.featurizers.base import Featurizer

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")  # of a keyboard, each half a key further to the right
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_BETWEEN = re.compile(r"\s*[\t,;，；、]\s*")


@dataclass(frozen=True)
class TextAugmenter:
    """What changes a text, and makes of it what an encoder reads.

    Args of its calls are the columns of a text: `text`, and OTHERS where it was translated there and back.

    Raises:
        ValueError: back-translations are to be drawn, and the features have none; where it is called: there is no file
            of synonyms where the settings say it, or it is none.
    """

    settings: TextAugmentation
    featurizer: "Featurizer"

    def __post_init__(self) -> None:
        chance, expected = self.settings.back_translation, "0 unless features.text.back_translation names two models"
        check(chance == 0 or OTHERS in self.featurizer.beside, "back_translation", chance, expected)

    def __call__(self, columns: Mapping[str, Any], random: np.random.Generator) -> np.ndarray:
        from training.language import CleanText

        said = self.rewritten(columns, random)
        return self.featurizer.featurize(CleanText(said, len(said), "auto", ()))[self.featurizer.read]

    def rewritten(self, columns: Mapping[str, Any], random: np.random.Generator) -> str:
        """Never nothing: a text that would lose its last word keeps it."""
        settings, synonyms, text = self.settings, self._synonyms(), columns["text"]
        if settings.back_translation > 0:
            chance, pick = random.random(2)
            others = json.loads(columns[OTHERS].tobytes())
            if others and chance < settings.back_translation:
                text = others[int(pick * len(others))]
        spans = _spans(text, settings.units)
        words = [text[start:end] for start, end in spans]
        # Always drawn in the same order, so that one setting does not move the draws of another.
        left_out, swapped, other, which = random.random((4, len(words)))
        words = [
            _said_by(word, synonyms, pick) if chance < settings.replace else word
            for word, chance, pick in zip(words, other, which, strict=True)
        ]
        if settings.typos > 0:
            words = [_misspelt(word, settings.typos, random) for word in words]
        for n in np.flatnonzero(swapped[1:] < settings.swap):
            words[n], words[n + 1] = words[n + 1], words[n]
        kept = left_out >= settings.delete
        if len(words) and not kept.any():
            kept[left_out.argmax()] = True
        return _joined(text, spans, words, kept)

    def _synonyms(self) -> Mapping[str, Sequence[str]]:
        return {} if self.settings.synonyms is None else _known(self.settings.synonyms)


@functools.lru_cache(maxsize=50_000)
def _spans(text: str, units: str) -> tuple[tuple[int, int], ...]:
    """Where the words of a text lie, as cleaning segments it; with `characters` each Chinese one by itself."""
    from training.language import CleanText

    found, at = [], 0
    for word in CleanText(text, len(text), "auto", ()).words:
        start = text.index(word, at)
        at = start + len(word)
        alone = units == "characters" and _HAN.search(word)
        found += [(n, n + 1) for n in range(start, at)] if alone else [(start, at)]
    return tuple(found)


def _joined(text: str, spans: Sequence[tuple[int, int]], words: Sequence[str], kept: Sequence[bool]) -> str:
    """The text with other words in the places of its own; what is left out takes the space before it along."""
    parts, at = [], 0
    for (start, end), word, is_kept in zip(spans, words, kept, strict=True):
        between = text[at:start]
        parts += [between, word] if is_kept else [between.rstrip(" ")]
        at = end
    return "".join([*parts, text[at:]]).strip(" ")


def _said_by(word: str, synonyms: Mapping[str, Sequence[str]], pick: float) -> str:
    """Another word, with a capital where the word has one."""
    if not (others := synonyms.get(word.casefold())):
        return word
    other = others[int(pick * len(others))]
    return other[0].upper() + other[1:] if word[0].isupper() else other


def _misspelt(word: str, chance: float, random: np.random.Generator) -> str:
    """That share of the letters of a keyboard, drawn one by one, becomes a near one, is left out, doubled, or swapped
    with the next. Other scripts are not typed so, and stay."""
    letters, hits = list(word), random.random((len(word), 3))
    for n in np.flatnonzero(hits[:, 0] < chance):
        neighbours, (_, what, which) = _neighbours(letters[n].lower()), hits[n]
        if not neighbours:
            continue
        if what < 0.4:
            near = neighbours[int(which * len(neighbours))]
            letters[n] = near.upper() if letters[n].isupper() else near
        elif what < 0.6:
            letters[n] = letters[n] * 2
        elif what < 0.8 and n + 1 < len(letters):
            letters[n], letters[n + 1] = letters[n + 1], letters[n]
        elif len(word) > 1:
            letters[n] = ""
    return "".join(letters) or word


@functools.cache
def _neighbours(letter: str) -> str:
    """Of a key, those beside it, above and below; none of what is no letter of a keyboard."""
    at = {key: (row, column + row / 2) for row, keys in enumerate(_ROWS) for column, key in enumerate(keys)}
    if letter not in at:
        return ""
    row, column = at[letter]
    near = {key: (abs(r - row), abs(c - column)) for key, (r, c) in at.items() if key != letter}
    return "".join(key for key, (rows, columns) in near.items() if rows <= 1 and columns <= 1 - rows / 2)


@functools.lru_cache(maxsize=4)
def _known(path: str) -> dict[str, list[str]]:
    """Read once in a process."""
    return read_synonyms(Path(path))


def read_synonyms(path: Path) -> dict[str, list[str]]:
    """Word, case folded -> the others of its groups, in order. A line is a group: words with commas, semicolons or tabs
    between them; one that begins with # says nothing.

    Raises:
        ValueError: there is no such file, it is not UTF-8, or a line has a single word.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"synonyms is {str(path)!r}, expected a UTF-8 text file of a group a line: {error}") from error
    found: dict[str, list[str]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        group = list(dict.fromkeys(filter(None, _BETWEEN.split(line.strip()))))
        if len(group) < 2:
            raise ValueError(f"{path}, line {number}: {line!r} is a single word, expected others that mean the same")
        for word in group:
            known = found.setdefault(word.casefold(), [])
            known += [other for other in group if other != word and other not in known]
    return found


def identity(settings: TextAugmentation) -> dict[str, str]:
    """What a fingerprint knows of the file, wherever it lies."""
    if settings.synonyms is None:
        return {}
    read_synonyms(Path(settings.synonyms))
    return {"synonyms": hashlib.sha256(Path(settings.synonyms).read_bytes()).hexdigest()}
