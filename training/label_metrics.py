"""Metrics of answers that name one label of several: by label, by rank, and of how sure they are.

As scikit-learn has them of one set of rows (tests hold them against it); these take thousands of resamples at once.

Shapes: n rows, C labels, R resamples, G groups of rows with one score.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.metrics import CLASSES, Metric, Statistic, exact_match, mean_figure
from training.records import Answer, CalibrationBin

_MOST_LABELS = 1000
_BINS = 15  # of equal width, as Guo et al. (2017)


def undefined(counts: np.ndarray) -> np.ndarray:
    """The statistic of rows that have none."""
    return np.full(counts.shape[1], np.nan)


def balanced_accuracy(labels: Sequence[str], answers: Sequence[Answer]) -> Statistic:
    """Mean recall of the labels that occur."""
    if (columns := _columns(labels, answers)) is None:
        return undefined
    labelled_Cn, answered_Cn = columns
    hits_Cn = (labelled_Cn & answered_Cn).astype(np.float32)
    labelled_Cn = labelled_Cn.astype(np.float32)

    def of(counts: np.ndarray) -> np.ndarray:
        labelled_CR, hits_CR = labelled_Cn @ counts, hits_Cn @ counts
        return _mean_of_seen(hits_CR / np.maximum(1, labelled_CR), labelled_CR > 0)

    return of


def macro_f1(labels: Sequence[str], answers: Sequence[Answer]) -> Statistic:
    """Mean over the labels that occur of F1, the harmonic mean of precision and recall."""
    return undefined if (columns := _columns(labels, answers)) is None else f1_of(*columns)


def f1_of(labelled_Cn: np.ndarray, answered_Cn: np.ndarray) -> Statistic:
    """Mean F1 of the labels that rows have and are answered with."""
    hits_Cn = (labelled_Cn & answered_Cn).astype(np.float32)
    labelled_Cn, answered_Cn = labelled_Cn.astype(np.float32), answered_Cn.astype(np.float32)

    def of(counts: np.ndarray) -> np.ndarray:
        labelled_CR, hits_CR = labelled_Cn @ counts, hits_Cn @ counts
        return _mean_of_seen(2 * hits_CR / np.maximum(1, labelled_CR + answered_Cn @ counts), labelled_CR > 0)

    return of


def _columns(labels: Sequence[str], answers: Sequence[Answer]) -> tuple[np.ndarray, np.ndarray] | None:
    """Per label and row (C, n) of bool: has it, is answered so. None where there is one label only, or more
    than figures per label say something of."""
    names = sorted({label.strip() for label in labels})
    if len(names) < 2 or len(names) > (CLASSES if 2 * len(names) > len(labels) else _MOST_LABELS):
        return None
    given = np.array([label.strip() for label in labels])
    said = np.array([(answer.prediction or "").strip() for answer in answers])
    return np.array(names)[:, None] == given, np.array(names)[:, None] == said


def _mean_of_seen(values_CR: np.ndarray, seen_CR: np.ndarray) -> np.ndarray:
    return np.where(seen_CR, values_CR, 0).sum(0, dtype=float) / np.maximum(1, seen_CR.sum(0))


def auroc(scores: np.ndarray, positive: np.ndarray) -> Statistic:
    """Chance that a row that is positive (n,) has a higher score (n,) than one that is not; ties are half."""
    groups = _grouped(scores, positive)

    def of(counts: np.ndarray) -> np.ndarray:
        positive_GR, negative_GR = groups(counts)
        ahead_GR = positive_GR.cumsum(0) - positive_GR / 2
        pairs = positive_GR.sum(0) * negative_GR.sum(0)
        return np.where(pairs > 0, (ahead_GR * negative_GR).sum(0, dtype=float) / np.maximum(1, pairs), np.nan)

    return of


def average_precision(scores: np.ndarray, positive: np.ndarray) -> Statistic:
    """Mean precision over the positive rows, from the highest score down: the area under precision and recall."""
    groups = _grouped(scores, positive)

    def of(counts: np.ndarray) -> np.ndarray:
        positive_GR, negative_GR = groups(counts)
        found_GR = positive_GR.cumsum(0)
        precision_GR = found_GR / np.maximum(1, found_GR + negative_GR.cumsum(0))
        every = positive_GR.sum(0)
        return np.where(every > 0, (precision_GR * positive_GR).sum(0, dtype=float) / np.maximum(1, every), np.nan)

    return of


def _grouped(scores: np.ndarray, positive: np.ndarray) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """How many positive and negative rows (G, R) have each score, the highest first."""
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.inf))
    positive_n1 = positive[order].astype(np.float32)[:, None]

    def of(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sorted_nR = counts[order]
        positive_nR = sorted_nR * positive_n1
        if len(starts) < len(order):
            sorted_nR, positive_nR = (np.add.reduceat(x, starts, axis=0) for x in (sorted_nR, positive_nR))
        return positive_nR, sorted_nR - positive_nR

    return of


def one_versus_rest(of_one: Callable[[np.ndarray, np.ndarray], Statistic]) -> Callable[..., Statistic]:
    """The mean over the labels of a statistic of scores and positive rows; those that all or no rows have are out.

    The score of a label is its probability (0 where it is not among the best); an answer without any gives all to what
    it says.
    """

    def over(labels: Sequence[str], answers: Sequence[Answer]) -> Statistic:
        given = np.array([label.strip() for label in labels])
        names = sorted(set(given.tolist()))
        if not 2 <= len(names) <= CLASSES:
            return undefined
        chances = [{name.strip(): chance for name, chance in answer.best or _certain(answer)} for answer in answers]
        scores = [np.array([chance.get(name, 0.0) for chance in chances]) for name in names]
        statistics = [of_one(column, given == name) for column, name in zip(scores, names, strict=True)]
        return lambda counts: mean_of_defined([statistic(counts) for statistic in statistics])

    return over


def _certain(answer: Answer) -> tuple[tuple[str, float], ...]:
    return () if answer.prediction is None else ((answer.prediction, 1.0),)


def mean_of_defined(values: Sequence[np.ndarray]) -> np.ndarray:
    """Over those that are no nan; nan where none is."""
    values_CR = np.array(values)
    defined_CR = np.isfinite(values_CR)
    total, count = np.where(defined_CR, values_CR, 0).sum(0), defined_CR.sum(0)
    return np.where(count > 0, total / np.maximum(1, count), np.nan)


@dataclass(frozen=True)
class CalibrationError:
    """The mean gap between how probable answers are said to be and how many of them are right, over bins of the
    probability (ECE). An answer without probability is taken to be sure; none at all claims nothing."""

    right: Callable[[Any, Any], bool]  # of a label and a prediction

    def __call__(self, labels: Sequence[Any], answers: Sequence[Answer]) -> Statistic:
        claimed, is_right, bins = self._binned(labels, answers)
        gaps = (bins == np.arange(_BINS)[:, None]) * (claimed - is_right)
        return lambda counts: np.abs(gaps @ counts).sum(0) / counts.sum(0)

    def curve(self, labels: Sequence[Any], answers: Sequence[Answer]) -> list[CalibrationBin]:
        """The bins that have rows, the least probable first: what the error is the mean of, by the rows of each."""
        claimed, is_right, bins = self._binned(labels, answers)
        return [
            CalibrationBin(int(mine.sum()), float(claimed[mine].mean()), mean_figure(is_right[mine]))
            for mine in (bins == number for number in range(_BINS))
            if mine.any()
        ]

    def _binned(self, labels: Sequence[Any], answers: Sequence[Answer]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each row its probability, whether it is right, and the number of its bin."""
        claimed = np.array([_claim(answer) for answer in answers])
        is_right = np.array([self.right(label, a.prediction) for label, a in zip(labels, answers, strict=True)])
        return claimed, is_right, np.clip(np.ceil(claimed * _BINS) - 1, 0, _BINS - 1)


def _claim(answer: Answer) -> float:
    if answer.prediction is None:
        return 0.0
    return 1.0 if answer.probability is None else answer.probability


BALANCED_ACCURACY = Metric("balanced_accuracy", over=balanced_accuracy)
MACRO_F1 = Metric("macro_f1", over=macro_f1)
AUROC = Metric("auroc", over=one_versus_rest(auroc), of_probabilities=True)
AVERAGE_PRECISION = Metric("average_precision", over=one_versus_rest(average_precision), of_probabilities=True)
ECE = Metric("ece", over=CalibrationError(exact_match), higher_is_better=False, of_probabilities=True)
