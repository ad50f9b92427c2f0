"""The gate's judgement: on the same rows, is the challenger better than the champion and the best single modality?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from scipy.stats import binomtest

from training.evaluate import correct
from training.settings import PromotionSettings


@dataclass(frozen=True)
class Comparison:
    """Accuracy of a minus accuracy of b on the same rows."""

    a: float
    b: float
    rows: int
    difference: float
    low: float  # the difference is above it with `confidence` (one-sided) ...
    high: float  # ... and below this with `confidence`
    p: float  # chance that a is not better (with a margin: that it is worse by the margin or more)
    better: bool


@dataclass(frozen=True)
class Decision:
    promote: bool
    reasons: list[str]  # sentences for a person, one per comparison
    comparisons: dict[str, Comparison]  # by rival: champion, or the name of a single modality


def paired_bootstrap(
    a: Sequence[bool] | np.ndarray, b: Sequence[bool] | np.ndarray, confidence: float = 0.95, margin: float = 0.0
) -> Comparison:
    """Whether `a` is better than `b`: rows resampled in pairs (Efron and Tibshirani 1993, chapter 13).

    With margin 0 the difference must be above 0 (superiority), with a margin above -margin (non-inferiority). Vectors
    that are equal row for row are not better, and within any margin. No chance is involved, and swapping a and b
    negates the result: a row adds 1, -1 or 0, so the bootstrap's distribution is computed whole instead of drawn from.

    Args:
        a, b: (rows,) whether each row was answered right.

    Raises:
        ValueError: there are no rows, or not the same number.
    """
    a, b = np.asarray(a, dtype=np.int8), np.asarray(b, dtype=np.int8)
    if a.shape != b.shape or a.ndim != 1 or len(a) == 0:
        raise ValueError(f"the two have {a.shape} and {b.shape} rows, expected the same rows and at least one")
    n = len(a)
    wins, losses = int(np.sum(a > b)), int(np.sum(a < b))
    # P(sum of n resampled rows = s) for s in -n..n: the n-th power of one row's characteristic function.
    one_row = np.zeros(2 * n + 1)
    one_row[[1, -1, 0]] = np.array([wins, losses, n - wins - losses]) / n
    chances = np.fft.fftshift(np.fft.irfft(np.fft.rfft(one_row) ** n, 2 * n + 1)).clip(0)
    below = np.cumsum(chances)  # P(sum <= s)
    above = np.cumsum(chances[::-1])[::-1]  # P(sum >= s)
    sums = np.arange(-n, n + 1)
    p = float(below[sums <= 1e-9 - margin * n][-1])
    if margin == 0:
        # A handful of rows convinces the bootstrap (three of three); the exact sign test (McNemar) must agree.
        p = max(p, float(binomtest(wins, wins + losses, alternative="greater").pvalue) if wins + losses else 1.0)
    return Comparison(
        a=float(a.mean()),
        b=float(b.mean()),
        rows=n,
        difference=(wins - losses) / n,
        low=float(sums[below >= 1 - confidence - 1e-9][0] / n),
        high=float(sums[above >= 1 - confidence - 1e-9][-1] / n),
        p=p,
        better=p < 1 - confidence,
    )


def decide(
    challenger: pa.Table, champion: pa.Table | None, singles: Mapping[str, pa.Table], settings: PromotionSettings
) -> Decision:
    """Whether the challenger becomes champion.

    Args:
        challenger, champion: predictions (training.schema.PREDICTIONS) on the same test rows; None: no champion yet.
        singles: predictions of the baselines that see one modality, by modality. A row that lacks the modality may be
            absent there; it counts as wrong. A modality that no test row has is not compared.

    Raises:
        ValueError: they are not on the same rows, a row stands twice, or there is none.
    """
    own = correct(challenger)
    if not own:
        raise ValueError("there are no test rows to judge on, expected at least one: look at align.split")
    promote, reasons, comparisons = True, [], {}
    rivals: list[tuple[str, str, dict[str, bool], PromotionSettings]] = []
    if champion is not None and "champion" in settings.must_beat:
        rivals.append(("champion", "the champion", correct(champion), settings))
    scored = {name: correct(table) for name, table in singles.items() if table.num_rows}
    if scored and "best_single_modality" in settings.must_beat:
        reasons += [f"{name} alone was not compared: no test row has {name}" for name in singles if name not in scored]
        best = max(scored, key=lambda name: sum(scored[name].values()))
        absent = dict.fromkeys(own.keys() - scored[best].keys(), False)
        strict = replace(settings, margin=0.0)  # being worse than a champion may be allowed, than one modality never
        rivals.append((best, f"the best single modality ({best})", scored[best] | absent, strict))
    for key, name, theirs, rule in rivals:
        if own.keys() != theirs.keys():
            raise ValueError(
                f"challenger and {name} were not scored on the same test rows ({len(own.keys() - theirs.keys())} and "
                f"{len(theirs.keys() - own.keys())} stand on one side only): score both on the present snapshot"
            )
        found = paired_bootstrap(list(own.values()), [theirs[sample] for sample in own], rule.confidence, rule.margin)
        comparisons[key] = found
        promote &= found.better
        reasons.append(f"{_verdict(found, rule)} {name}: {_figures(found, rule)}")
    if champion is None:
        reasons.append("there was no champion before")
    return Decision(promote, reasons, comparisons)


def _verdict(found: Comparison, rule: PromotionSettings) -> str:
    if rule.margin:
        return "not worse than" if found.better else "not shown to be as good as"
    if found.better:
        return "better than"
    return "worse than" if found.difference < 0 else "not shown to be better than"


def _figures(found: Comparison, rule: PromotionSettings) -> str:
    within = f", margin {rule.margin:g}" if rule.margin else ""
    p = "p < 0.001" if found.p < 0.001 else f"p = {found.p:.3f}"
    return (
        f"accuracy {found.a:.4f} against {found.b:.4f} on the same {found.rows:,} test rows, difference "
        f"{found.difference:+.4f} [{found.low:+.4f}, {found.high:+.4f}] "
        f"({rule.confidence:.0%} one-sided paired bootstrap, {p}{within})"
    )
