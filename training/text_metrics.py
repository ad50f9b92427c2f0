"""Metrics of answers that are texts: how much of the label they say."""

import functools
import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from training.label_metrics import undefined
from training.metrics import Metric, Statistic
from training.records import Answer

# Runs of letters and digits; Han characters and kana are words of their own, as nothing parts them.
_HAN = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_HAN}]|[^\W{_HAN}]+")


def words(text: str) -> list[str]:
    """Of a text, without case and punctuation."""
    return _WORD.findall(text.casefold())


def token_f1(label: str, prediction: str | None) -> float:
    """Harmonic mean of precision and recall of the words, in any order (Rajpurkar et al. 2016; articles count)."""
    theirs, ours = words(label), words(prediction or "")
    return _f1((Counter(theirs) & Counter(ours)).total(), len(theirs), len(ours), prediction)


def rouge_l(label: str, prediction: str | None) -> float:
    """The same of the longest sequence of words that both have in one order (ROUGE-L, Lin 2004)."""
    theirs, ours = words(label), words(prediction or "")
    return _f1(common_length(theirs, ours), len(theirs), len(ours), prediction)


def _f1(common: int, label: int, prediction: int, answer: str | None) -> float:
    if label == prediction == 0:  # both say nothing
        return float(answer is not None)
    return 2 * common / (label + prediction)


def common_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Of the longest common subsequence, all positions of `a` at once as the bits of one number (Hyyrö 2004)."""
    places, full = _places(a), (1 << len(a)) - 1
    row = full
    for symbol in b:
        matched = row & places.get(symbol, 0)
        row = ((row + matched) | (row - matched)) & full
    return len(a) - row.bit_count()


@functools.lru_cache(maxsize=2**14)  # the answers of every subset of the inputs are often the same
def edit_distance(a: str | tuple[str, ...], b: str | tuple[str, ...]) -> int:
    """Least number of insertions, deletions and substitutions (Levenshtein), by Myers' bits (1999; Hyyrö 2003)."""
    if a == b or not a:
        return 0 if a == b else len(b)
    places, last, full = _places(a), 1 << (len(a) - 1), (1 << len(a)) - 1
    up, down, distance = full, 0, len(a)
    for symbol in b:
        match = places.get(symbol, 0)
        zero = (((match & up) + up) ^ up) | match | down
        rises, falls = down | (~(zero | up) & full), up & zero
        distance += bool(rises & last) - bool(falls & last)
        rises, falls = (rises << 1) | 1, falls << 1
        up, down = (falls | ~(zero | rises)) & full, rises & zero & full
    return distance


def _places(a: Sequence[str]) -> dict[str, int]:
    """Symbol -> bits of its positions."""
    places: dict[str, int] = {}
    for n, symbol in enumerate(a):
        places[symbol] = places.get(symbol, 0) | 1 << n
    return places


def error_rate(units: Callable[[str], str | tuple[str, ...]]) -> Callable[..., Statistic]:
    """All edits that turn the answers into the labels, per unit of the labels; no answer lacks them all."""

    def over(labels: Sequence[str], answers: Sequence[Answer]) -> Statistic:
        theirs = [units(label.strip()) for label in labels]
        ours = [units((answer.prediction or "").strip()) for answer in answers]
        edits = np.array([edit_distance(a, b) for a, b in zip(theirs, ours, strict=True)], float)
        lengths = np.array([len(label) for label in theirs], float)
        if lengths.sum() == 0:
            return undefined
        return lambda counts: edits @ counts / np.maximum(1, lengths @ counts)

    return over


def _characters(text: str) -> str:
    return text


def _spaced(text: str) -> tuple[str, ...]:
    return tuple(text.split())


TOKEN_F1 = Metric("token_f1", token_f1)
ROUGE_L = Metric("rouge_l", rouge_l)
CER = Metric("cer", over=error_rate(_characters), higher_is_better=False)
WER = Metric("wer", over=error_rate(_spaced), higher_is_better=False)
