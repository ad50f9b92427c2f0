"""Metrics of several answers at once."""

from collections.abc import Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from training.label_metrics import mean_of_defined
from training.metrics import Metric, Statistic
from training.records import Answer

if TYPE_CHECKING:
    from training.outputs.base import Output


@cache  # one object each, as those of other outputs are
def metrics_of(members: "tuple[tuple[str, type[Output]], ...]") -> tuple[Metric, ...]:
    """The mean of what each member is measured by, whether all is right (where each can be right), and the members'."""
    own = [m.of_part(name) for name, member in members for m in member.metrics]
    shares = tuple(member.share.of_part(name) for name, member in members if member.share is not None)
    rights = tuple((name, member.right) for name, member in members if member.right is not None)
    whole = [Metric("mean_score", over=partial(mean_score, shares))]
    if len(rights) == len(members):
        whole.append(Metric("exact_match", partial(exact_match, rights)))
    return (*whole, *own)


def mean_score(metrics: Sequence[Metric], labels: Sequence[Any], answers: Sequence[Answer]) -> Statistic:
    """The mean of metrics of parts, each over the rows that have a label of its part; those that cannot be said of the
    rows are out."""
    parted = [(metric.rows(labels), metric.statistic(*metric.mine(labels, answers))) for metric in metrics]
    parted = [(rows, statistic) for rows, statistic in parted if len(rows)]

    def of(counts: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):  # a resample may have no row of a part
            return mean_of_defined([statistic(counts[rows]) for rows, statistic in parted])

    return of


def exact_match(rights: Sequence[tuple[str, Metric]], label: Any, prediction: Any) -> bool:
    """Every label that the row has is answered right."""
    said = prediction or {}
    return all(metric.of(label[name], said.get(name)) for name, metric in rights if label[name] is not None)
