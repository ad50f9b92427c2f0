"""Metrics of answers that are numbers. No answer is as far off as any label of the rows is from the right one.

Shapes: n rows, R resamples, G groups of rows with one value.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from training.metrics import Metric, Statistic
from training.records import Answer


def _numbers(labels: Sequence[float], answers: Sequence[Answer]) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions (n,), all finite."""
    given = np.array(labels, float)
    far = np.where(given - given.min() > given.max() - given, given.min(), given.max())
    if given.min() == given.max():
        far = given + np.maximum(1, np.abs(given))
    said = [a.prediction if a.prediction is not None and math.isfinite(a.prediction) else np.nan for a in answers]
    return given, np.where(np.isnan(said), far, said)


def mean_absolute_error(labels: Sequence[float], answers: Sequence[Answer]) -> Statistic:
    given, said = _numbers(labels, answers)
    return lambda counts: np.abs(said - given) @ counts / counts.sum(0)


def root_mean_square_error(labels: Sequence[float], answers: Sequence[Answer]) -> Statistic:
    given, said = _numbers(labels, answers)
    return lambda counts: np.sqrt((said - given) ** 2 @ counts / counts.sum(0))


def determination(labels: Sequence[float], answers: Sequence[Answer]) -> Statistic:
    """R2: the share of the labels' variance that the answers explain; 0 for who always says their mean."""
    given, said = _numbers(labels, answers)
    centred = given - given.mean()

    def of(counts: np.ndarray) -> np.ndarray:
        variance = centred**2 @ counts - (centred @ counts) ** 2 / counts.sum(0)
        unexplained = (said - given) ** 2 @ counts
        return np.where(variance > 1e-12, 1 - unexplained / np.maximum(1e-12, variance), np.nan)

    return of


def explained(labels: Sequence[float], answers: Sequence[Answer]) -> Statistic:
    """R2, or 0 where it is below, which has no end: so it can stand beside shares of right answers."""
    statistic = determination(labels, answers)
    return lambda counts: np.maximum(0, statistic(counts))


def spearman(labels: Sequence[float], answers: Sequence[Answer]) -> Statistic:
    """Correlation of the ranks, ties sharing theirs; 0 where all labels or all answers are the same."""
    given, said = _numbers(labels, answers)
    ranks = _ranks(given), _ranks(said)

    def of(counts: np.ndarray) -> np.ndarray:
        total = counts.sum(0)
        a, b = (rank(counts) for rank in ranks)
        a, b = (x - (x * counts).sum(0) / total for x in (a, b))
        scale = np.sqrt((a * a * counts).sum(0) * (b * b * counts).sum(0))
        return np.where(scale > 1e-9, (a * b * counts).sum(0) / np.maximum(1e-9, scale), 0.0)

    return of


def _ranks(values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The ranks (n, R) of rows that count so often each."""
    distinct, group_of = np.unique(values, return_inverse=True)

    def of(counts: np.ndarray) -> np.ndarray:
        sizes_GR = np.zeros((len(distinct), counts.shape[1]))
        np.add.at(sizes_GR, group_of, counts)
        return (sizes_GR.cumsum(0) - (sizes_GR - 1) / 2)[group_of]

    return of


MAE = Metric("mae", over=mean_absolute_error, higher_is_better=False)
RMSE = Metric("rmse", over=root_mean_square_error, higher_is_better=False)
R2 = Metric("r2", over=determination)
EXPLAINED = Metric("explained", over=explained)
SPEARMAN = Metric("spearman", over=spearman)
