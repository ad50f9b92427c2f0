"""Whether one thing is better than another on the same rows: the paired bootstrap, if the sign test agrees."""

import math
from collections.abc import Sequence

import numpy as np

from training.metrics import resampled_means
from training.records import Comparison

_RESAMPLES = 10_000


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
        return float(below[sums <= 1e-9 - margin * n][-1])

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
    # As above: so many rows that differ could by chance all differ the same way.
    p = max(float(np.mean(means <= 1e-12)), 0.5 ** int(np.count_nonzero(gain)))
    if margin:
        p = min(p, max(float(np.mean(means <= 1e-12 - margin)), 0.5 ** len(gain)))
    low, high = np.quantile(means, [1 - confidence, confidence])
    return p, float(low), float(high)


def p_words(p: float) -> str:
    return f"p {p_value(p)}" if p < 0.001 else f"p = {p_value(p)}"


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
