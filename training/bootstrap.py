"""Whether one thing is better than another on the same rows: the paired bootstrap, if the sign test agrees."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from training.metrics import Metric, resampled_counts, resampled_means
from training.records import Answer, Comparison

_RESAMPLES = 10_000
_DRAWN = 2_000  # of figures that each resample is worked through for


def paired_bootstrap(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    confidence: float = 0.95,
    margin: float = 0.0,
    higher_is_better: bool = True,
) -> Comparison:
    """Whether `a` is better than `b`: rows resampled in pairs (Efron and Tibshirani 1993, chapter 13).

    With margin 0 the difference must be above 0 (superiority), with a margin above -margin (non-inferiority). Vectors
    that are equal row for row are not better, and within a margin only where there are enough rows to see one that is
    worse by it. Swapping a and b negates the result.

    Args:
        a, b: (rows,) score of each row: 1 or 0 (or bool) for right or wrong, else numbers.

    Raises:
        ValueError: there are no rows, or not the same number, or a score is no finite number.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.ndim != 1 or len(a) == 0:
        raise ValueError(f"the two have {a.shape} and {b.shape} rows, expected the same rows and at least one")
    gain = (a.astype(float) - b) * (1 if higher_is_better else -1)
    if not np.isfinite(gain).all():  # a comparison with nan is false, and would be taken for certainty
        raise ValueError(f"{int(np.sum(~np.isfinite(gain))):,} scores are no finite numbers: nothing can be compared")
    exact = bool(np.isin([a, b], (0, 1)).all())
    p, low, high = (_exact if exact else _drawn)(gain, confidence, margin)
    return Comparison(
        a=float(a.mean()),
        b=float(b.mean()),
        rows=len(a),
        difference=float(gain.mean()),
        low=low,
        high=high,
        p=p,
        better=p < 1 - confidence,
        differ=int(np.count_nonzero(gain)),
        needed=_needed(confidence, min(max(margin, 1e-9), 1.0) if exact and margin else 0.5),
    )


def compare(
    metric: Metric,
    labels: Sequence[Any],
    a: Sequence[Any],
    b: Sequence[Any],
    confidence: float = 0.95,
    margin: float = 0.0,
) -> Comparison:
    """Whether the answers `a` are better than `b` by any metric. For one of all rows together, rows are
    resampled in pairs and the figure is computed anew each time.

    Args:
        labels, a, b: of the same rows; answers are predictions or `training.records.Answer`.

    Raises:
        ValueError: there are no rows, or the metric cannot be said of them.
    """
    whole, sides = labels, (a, b)
    (labels, a), (_, b) = (metric.mine(labels, side) for side in sides)
    if not labels and whole:
        raise ValueError(f"no row has a label of {metric.part}, so {metric.words} cannot be compared")
    if metric.over is None:
        scores = metric.scores(labels, a), metric.scores(labels, b)
        return paired_bootstrap(*scores, confidence, margin, metric.higher_is_better)
    values = [metric.value(whole, side) for side in sides]
    if values[0] is None or values[1] is None:
        different = len(set(map(repr, labels)))
        raise ValueError(
            f"{metric.words} cannot be said of these {len(labels):,} rows with {different:,} different labels: name "
            "another promotion.metric"
        )
    sign = 1 if metric.higher_is_better else -1
    ours, theirs = (metric.statistic(labels, side) for side in (a, b))
    draws = resampled_counts(len(labels), _DRAWN, seed=0)
    gains = sign * np.concatenate([ours(counts) - theirs(counts) for counts in draws])
    gains = np.nan_to_num(gains)  # what cannot be said of a resample speaks for nobody
    pairs = [(Answer.of(x), Answer.of(y)) for x, y in zip(a, b, strict=True)]
    differ = sum(x != y if metric.of_probabilities else x.prediction != y.prediction for x, y in pairs)
    p, low, high = _tail(gains, confidence, margin, differ, len(labels))
    return Comparison(
        a=values[0],
        b=values[1],
        rows=len(labels),
        difference=sign * (values[0] - values[1]),
        low=low,
        high=high,
        p=p,
        better=p < 1 - confidence,
        differ=differ,
        needed=_needed(confidence, 0.5),
    )


def resampled_by_group(
    metric: Metric, labels: Sequence[Any], answers: Sequence[Any], groups: Sequence[Sequence[int]], seed: int = 0
) -> list[np.ndarray]:
    """The metric of each group of rows (their numbers), in each of 2,000 resamples of all rows: (resamples,) each; nan
    where a resample has no row of the group. Groups may share rows, which count as often in each."""
    parts = [([labels[n] for n in rows], [answers[n] for n in rows]) for rows in groups]
    statistics = [metric.statistic(*metric.mine(*part)) for part in parts]
    drawn = []
    with np.errstate(divide="ignore", invalid="ignore"):
        for counts in resampled_counts(len(labels), _DRAWN, seed):
            drawn.append([of(counts[list(rows)]) for of, rows in zip(statistics, groups, strict=True)])
    return list(np.concatenate(drawn, axis=1))


def _needed(confidence: float, chance: float) -> int:
    """So many rows without any that went against a, where each would have done so with that chance, are proof."""
    return 1 if chance == 1 else math.floor(math.log(1 - confidence) / math.log1p(-chance)) + 1


def _exact(gain: np.ndarray, confidence: float, margin: float) -> tuple[float, float, float]:
    """p, low and high where a row adds 1, -1 or 0: the bootstrap's distribution is computed whole, without chance."""
    from scipy.stats import binomtest

    n, wins, losses = len(gain), int(np.sum(gain > 0)), int(np.sum(gain < 0))
    # P(sum of n resampled rows = s) for s in -n..n: the n-th power of one row's characteristic function.
    one_row = np.zeros(2 * n + 1)
    one_row[[1, -1, 0]] = np.array([wins, losses, n - wins - losses]) / n
    chances = np.fft.fftshift(np.fft.irfft(np.fft.rfft(one_row) ** n, 2 * n + 1)).clip(0)
    below = np.cumsum(chances)  # P(sum <= s)
    above = np.cumsum(chances[::-1])[::-1]  # P(sum >= s)
    sums = np.arange(-n, n + 1)

    def chance(margin: float) -> float:  # that the true difference is -margin or less
        return min(1.0, float(below[sums <= 1e-9 - margin * n][-1]))  # of a sum of many

    # A handful of rows convinces the bootstrap (three of three); the exact sign test (McNemar) must agree.
    sign = float(binomtest(wins, wins + losses, alternative="greater").pvalue) if wins + losses else 1.0
    p = max(chance(0), sign)
    if margin:  # so may rows that are all alike: would one that is worse by the margin have been seen?
        unseen = float(binomtest(max(0, losses - wins), n, min(margin, 1.0), alternative="less").pvalue)
        p = min(p, max(chance(min(margin, 1.0)), unseen))
    low = float(sums[below >= 1 - confidence - 1e-9][0] / n)
    return p, low, float(sums[above >= 1 - confidence - 1e-9][-1] / n)


def _drawn(gain: np.ndarray, confidence: float, margin: float) -> tuple[float, float, float]:
    """p, low and high of any scores, from resamples drawn with a fixed seed."""
    means = resampled_means(gain, _RESAMPLES, seed=0)
    return _tail(means, confidence, margin, int(np.count_nonzero(gain)), len(gain))


def _tail(gains: np.ndarray, confidence: float, margin: float, differ: int, rows: int) -> tuple[float, float, float]:
    """p, low and high of resampled differences, of rows of which so many differ."""
    # As above: so many rows that differ could by chance all differ the same way.
    p = max(float(np.mean(gains <= 1e-12)), 0.5**differ)
    if margin:
        p = min(p, max(float(np.mean(gains <= 1e-12 - margin)), 0.5**rows))
    low, high = np.quantile(gains, [1 - confidence, confidence])
    return p, float(low), float(high)


def p_words(p: float) -> str:
    return f"p {p_value(p)}" if p < 0.001 else f"p = {p_value(p)}"


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
