"""Whether two sets of rows may come of one source: tests with a p-value, and how far they differ, from 0 (alike) to 1.

Each answers the same for the same rows, whatever was drawn before.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_PERMUTATIONS = 999
_CATEGORIES = 20  # less frequent ones are one together
_POINTS = 500  # of each side that are compared in pairs


@dataclass(frozen=True)
class Difference:
    p: float  # chance of a difference at least as large where there is none
    size: float  # from 0, alike, to 1


def of_categories(before: Sequence[str], now: Sequence[str]) -> Difference:
    """Shares of categories: chi-square by permutation, so that few rows do no harm; the size is the total variation."""
    frequent = [name for name, _ in Counter([*before, *now]).most_common(_CATEGORIES)]
    sides = [Counter(name if name in frequent else None for name in side) for side in (before, now)]
    counts = np.array([[side[name] for name in (*frequent, None)] for side in sides])
    both, rows = counts.sum(0), counts.sum(1)
    drawn = np.random.default_rng(0).multivariate_hypergeometric(both, int(rows[1]), _PERMUTATIONS)
    expected = np.maximum(both * rows[1] / rows.sum(), 1e-9)

    def distance(now_C: np.ndarray) -> np.ndarray:  # that of the other side follows from it
        return (np.square(now_C - expected) / expected).sum(-1)

    p = (1 + int((distance(drawn) >= distance(counts[1]) - 1e-9).sum())) / (1 + _PERMUTATIONS)
    shares = counts / rows[:, None]
    return Difference(p, float(np.abs(shares[0] - shares[1]).sum() / 2))


def of_numbers(before: Sequence[float], now: Sequence[float]) -> Difference:
    """Kolmogorov and Smirnov's; the size is the largest difference of the shares below a number."""
    from scipy.stats import ks_2samp

    found = ks_2samp(before, now)
    return Difference(float(found.pvalue), float(found.statistic))


def of_places(before: np.ndarray, now: np.ndarray) -> Difference:
    """Points (rows, D): maximum mean discrepancy (Gretton et al. 2012) by permutation, with a Gaussian kernel as
    wide as the median distance. The size is how much better than by chance the nearest point tells the side."""
    count = min(len(before), len(now), _POINTS)
    random = np.random.default_rng(0)
    sides = [side[np.sort(random.permutation(len(side))[:count])] for side in (before, now)]
    points = np.concatenate(sides).astype(np.float64)
    squares = np.square(points).sum(1)
    distances = np.maximum(squares[:, None] + squares - 2 * points @ points.T, 0)
    width = np.median(distances[np.triu_indices(len(points), 1)])
    kernel = np.exp(-distances / max(float(width), 1e-12))
    side = np.repeat([1.0, -1.0], count)
    permuted = random.permuted(np.tile(side, (_PERMUTATIONS, 1)), axis=1)
    found, drawn = side @ kernel @ side, np.einsum("pi,pi->p", permuted @ kernel, permuted)
    p = (1 + int((drawn >= found - 1e-9).sum())) / (1 + _PERMUTATIONS)
    np.fill_diagonal(distances, np.inf)
    told = float((side[distances.argmin(1)] == side).mean())
    return Difference(p, max(0.0, 2 * told - 1))


def differing(found: Mapping[str, Difference], level: float) -> list[str]:
    """Names of those that differ, such that with no difference at all the chance to name one is at most `level` (Holm
    1979)."""
    ordered = sorted(found, key=lambda name: found[name].p)
    named = []
    for n, name in enumerate(ordered):
        if found[name].p > level / (len(ordered) - n):
            break
        named.append(name)
    return [name for name in found if name in named]
