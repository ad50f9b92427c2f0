"""Whether a model is worth the same to groups of people: each group's figure, and the gaps between them.

Gaps are of the same metric on different rows, with intervals of a bootstrap over all rows (Efron and Tibshirani 1993),
each resample giving every group's figure. The two groups that differ most were picked for it, so their interval is one
that holds for all pairs at once (Bonferroni).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from training.bootstrap import resampled_by_group
from training.evaluate import SLICE_ROWS, SLICE_VALUES
from training.metrics import Metric, natural
from training.records import Fairness, Figure, GroupFigure

_MISS = 0.05  # chance that an interval does not hold the truth


def fairness(
    metric: Metric, column: str, groups: Sequence[str], labels: Sequence[Any], answers: Sequence[Any], seed: int = 0
) -> Fairness:
    """How the metric differs between the groups of a column. A group of fewer than 20 rows is shown, and takes no part
    in gaps: its figure is chance.

    Args:
        groups, labels, answers: of each row; answers are predictions or `training.records.Answer`.
        seed: of the bootstrap.
    """
    mine = metric.rows(labels)
    names = sorted({groups[n] for n in mine}, key=natural)
    if len(names) > SLICE_VALUES:
        note = f"{len(names):,} different values: at most {SLICE_VALUES} are compared; name a column of fewer kinds"
        return Fairness(column=column, metric=metric.name, rows=len(mine), groups=[], note=note)
    rows = {name: [n for n in mine if groups[n] == name] for name in names}
    figures = {name: metric.figure(*_of(rows[name], labels, answers), seed) for name in names}
    counted = [name for name in names if len(rows[name]) >= SLICE_ROWS and figures[name].value is not None]
    drawn, rest = {}, {}
    if len(counted) > 1:
        parts = [rows[name] for name in counted] + [[n for n in mine if groups[n] != name] for name in counted]
        values = resampled_by_group(metric, labels, answers, parts, seed)
        drawn = dict(zip(counted, values, strict=False))
        for name, part, others in zip(counted, parts[len(counted) :], values[len(counted) :], strict=True):
            there = metric.value(*_of(part, labels, answers))
            rest[name] = _gap(figures[name].value, there, drawn[name] - others, _MISS)
    listed = [
        GroupFigure(name, len(rows[name]), figures[name], rest.get(name, Figure()), name in counted) for name in names
    ]
    if not drawn:
        note = f"fewer than two groups have {SLICE_ROWS} rows or more: nothing can be compared"
        return Fairness(column=column, metric=metric.name, rows=len(mine), groups=listed, note=note)
    least, *_, largest = sorted(counted, key=lambda name: figures[name].value or 0.0)
    pairs = len(counted) * (len(counted) - 1) // 2
    gap = _gap(figures[largest].value, figures[least].value, drawn[largest] - drawn[least], _MISS / pairs)
    return Fairness(
        column=column, metric=metric.name, rows=len(mine), groups=listed, largest=largest, least=least, gap=gap
    )


def _of(rows: Sequence[int], labels: Sequence[Any], answers: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    return [labels[n] for n in rows], [answers[n] for n in rows]


def _gap(a: float | None, b: float | None, drawn: np.ndarray, miss: float) -> Figure:
    """a - b, with the interval that misses the truth with that chance."""
    if a is None or b is None:
        return Figure()
    low, high = np.nanquantile(drawn, (miss / 2, 1 - miss / 2))
    return Figure(a - b, min(a - b, float(low)), max(a - b, float(high)))
