"""The gate's judgement: on the same rows, is the challenger better than the champion and the best single modality?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.stats import binomtest

from training.evaluate import scores
from training.metrics import Metric, resampled_means
from training.outputs.base import Output
from training.settings import PromotionSettings

_RESAMPLES = 10_000


@dataclass(frozen=True)
class Comparison:
    """Mean score of a and of b on the same rows, and by how much a is better."""

    a: float
    b: float
    rows: int
    difference: float  # above 0 where a is better, whichever way the metric goes
    low: float  # the difference is above it with `confidence` (one-sided) ...
    high: float  # ... and below this with `confidence`
    p: float  # chance that a is not better (with a margin: that it is worse by the margin or more)
    better: bool


@dataclass(frozen=True)
class Decision:
    promote: bool
    reasons: list[str]  # sentences for a person, one per comparison
    comparisons: dict[str, Comparison]  # by rival: champion, or the name of a single modality


@dataclass(frozen=True)
class Rival:
    """What the challenger must beat."""

    key: str  # champion, or the name of a single modality
    name: str  # as sentences call it
    scores: Mapping[str, float]  # by sample id
    rule: PromotionSettings


def paired_bootstrap(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    confidence: float = 0.95,
    margin: float = 0.0,
    higher_is_better: bool = True,
) -> Comparison:
    """Whether `a` is better than `b`: rows resampled in pairs (Efron and Tibshirani 1993, chapter 13).

    With margin 0 the difference must be above 0 (superiority), with a margin above -margin (non-inferiority). Vectors
    that are equal row for row are not better, and within any margin. Swapping a and b negates the result.

    Args:
        a, b: (rows,) score of each row: 1 or 0 (or bool) for right or wrong, else numbers.

    Raises:
        ValueError: there are no rows, or not the same number.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.ndim != 1 or len(a) == 0:
        raise ValueError(f"the two have {a.shape} and {b.shape} rows, expected the same rows and at least one")
    gain = (a.astype(float) - b) * (1 if higher_is_better else -1)
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
    )


def _exact(gain: np.ndarray, confidence: float, margin: float) -> tuple[float, float, float]:
    """p, low and high where a row adds 1, -1 or 0: the bootstrap's distribution is computed whole, without chance."""
    n, wins, losses = len(gain), int(np.sum(gain > 0)), int(np.sum(gain < 0))
    # P(sum of n resampled rows = s) for s in -n..n: the n-th power of one row's characteristic function.
    one_row = np.zeros(2 * n + 1)
    one_row[[1, -1, 0]] = np.array([wins, losses, n - wins - losses]) / n
    chances = np.fft.fftshift(np.fft.irfft(np.fft.rfft(one_row) ** n, 2 * n + 1)).clip(0)
    below = np.cumsum(chances)  # P(sum <= s)
    above = np.cumsum(chances[::-1])[::-1]  # P(sum >= s)
    sums = np.arange(-n, n + 1)
    p = float(below[sums <= 1e-9 - min(margin, 1.0) * n][-1])
    if margin == 0:
        # A handful of rows convinces the bootstrap (three of three); the exact sign test (McNemar) must agree.
        p = max(p, float(binomtest(wins, wins + losses, alternative="greater").pvalue) if wins + losses else 1.0)
    low = float(sums[below >= 1 - confidence - 1e-9][0] / n)
    return p, low, float(sums[above >= 1 - confidence - 1e-9][-1] / n)


def _drawn(gain: np.ndarray, confidence: float, margin: float) -> tuple[float, float, float]:
    """p, low and high of any scores, from resamples drawn with a fixed seed."""
    means = resampled_means(gain, _RESAMPLES, seed=0)
    p = float(np.mean(means <= 1e-12 - margin))
    if margin == 0:  # as above: so many rows that differ could by chance all differ the same way
        p = max(p, 0.5 ** int(np.count_nonzero(gain)))
    low, high = np.quantile(means, [1 - confidence, confidence])
    return p, float(low), float(high)


def decide(
    challenger: pa.Table,
    champion: pa.Table | None,
    singles: Mapping[str, pa.Table],
    settings: PromotionSettings,
    output: Output,
) -> Decision:
    """Whether the challenger becomes champion.

    Args:
        challenger, champion: predictions (`training.schema.predictions_schema`) on the same test rows; None: no
            champion yet.
        singles: predictions of the baselines that see one modality, by modality. A row that lacks the modality may be
            absent there; it counts as not answered. A modality that no test row has is not compared.
        output: what the models answer with; `settings.metric` is one of its metrics.

    Raises:
        ValueError: they are not on the same rows, a row stands twice, or there is none.
    """
    metric = output.metric(settings.metric)
    ours = scores(challenger, metric)
    if not ours:
        raise ValueError("there are no test rows to judge on, expected at least one: look at align.split")
    labels = dict(zip(*(challenger[name].to_pylist() for name in ("sample_id", "label")), strict=True))
    rivals, reasons = [], []
    if champion is not None and "champion" in settings.must_beat:
        # The champion's output may read labels in another way, or some not at all.
        rivals.append(Rival("champion", "the champion", scores(champion, metric, labels), settings))
    measured = {name: table for name, table in singles.items() if table.num_rows}
    if measured and "best_single_modality" in settings.must_beat:
        absent = [name for name in singles if name not in measured]
        reasons += [f"{name} alone was not compared: no test row has {name}" for name in absent]
        rivals.append(_best_single(labels, measured, settings, metric))
    promote, comparisons = True, {}
    for rival in rivals:
        comparison = _compare(ours, rival, metric)
        comparisons[rival.key] = comparison
        promote &= comparison.better
        reasons.append(f"{_verdict(comparison, rival.rule)} {rival.name}: {_figures(comparison, rival.rule, metric)}")
    if champion is None:
        reasons.append("there was no champion before")
    return Decision(promote, reasons, comparisons)


def _best_single(
    labels: Mapping[str, Any], singles: Mapping[str, pa.Table], settings: PromotionSettings, metric: Metric
) -> Rival:
    """The single modality with the best mean over the labelled rows."""
    scored = {name: scores(table, metric) for name, table in singles.items()}
    for by_sample in scored.values():
        by_sample |= {sample: metric.score(labels[sample], None) for sample in labels.keys() - by_sample}
    sign = 1 if metric.higher_is_better else -1
    best = max(scored, key=lambda name: sign * float(np.mean(list(scored[name].values()))))
    strict = replace(settings, margin=0.0)  # being worse than a champion may be allowed, than one modality never
    return Rival(best, f"the best single modality ({best})", scored[best], strict)


def _compare(ours: Mapping[str, float], rival: Rival, metric: Metric) -> Comparison:
    if ours.keys() != rival.scores.keys():
        raise ValueError(
            f"challenger and {rival.name} were not scored on the same test rows ({len(ours.keys() - rival.scores)} and "
            f"{len(rival.scores.keys() - ours)} stand on one side only): score both on the present snapshot"
        )
    theirs = [rival.scores[sample] for sample in ours]
    rule = rival.rule
    return paired_bootstrap(list(ours.values()), theirs, rule.confidence, rule.margin, metric.higher_is_better)


def _verdict(comparison: Comparison, rule: PromotionSettings) -> str:
    if rule.margin:
        return "not worse than" if comparison.better else "not shown to be as good as"
    if comparison.better:
        return "better than"
    return "worse than" if comparison.difference < 0 else "not shown to be better than"


def _figures(comparison: Comparison, rule: PromotionSettings, metric: Metric) -> str:
    within = f", margin {rule.margin:g}" if rule.margin else ""
    p = "p < 0.001" if comparison.p < 0.001 else f"p = {comparison.p:.3f}"
    gain = "difference" if metric.higher_is_better else "less by"
    return (
        f"{metric.name.replace('_', ' ')} {comparison.a:.4f} against {comparison.b:.4f} on the same "
        f"{comparison.rows:,} test rows, {gain} {comparison.difference:+.4f} [{comparison.low:+.4f}, "
        f"{comparison.high:+.4f}] ({rule.confidence:.0%} one-sided paired bootstrap, {p}{within})"
    )
