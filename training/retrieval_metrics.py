"""Metrics of search: how early the right one stands among the candidates, the nearest first.

A direction is a subset of the inputs that asks and a modality that is found: `image_to_text`, `text_image_to_speech`.
Labels and predictions say of each direction, as {direction: {rank, candidates, right}} or None where a row has none of
it, at which place (from 1) the first right one stands, among how many, and how many are right; a label's is the first.
A prediction whose rank is None is an order by chance.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from training.metrics import Metric, Statistic
from training.records import Answer
from training.schema import MODALITIES, subset_name, subsets

PLACE = pa.struct([("rank", pa.float64()), ("candidates", pa.int64()), ("right", pa.int64())])
# (those that ask, what is found) by name
DIRECTIONS = {
    f"{subset_name(asking).replace('+', '_')}_to_{found}": (asking, found)
    for asking in subsets(MODALITIES)
    for found in MODALITIES
    if found not in asking
}
_ROWS = 512  # whose similarities to all candidates are held at once


def ranks(asking_QW: np.ndarray, candidates_CW: np.ndarray, right: Sequence[Sequence[int]]) -> list[float]:
    """The place of the first right candidate of each row that asks, by the dot product.

    Among those that are equally near it is the last, so a model that embeds all alike finds nothing. A candidate of nan
    is the farthest.

    Args:
        right: numbers of the candidates that are, at least one for each row.
    """
    places = []
    for start in range(0, len(asking_QW), _ROWS):
        near_QC = asking_QW[start : start + _ROWS] @ candidates_CW.T
        np.nan_to_num(near_QC, copy=False, nan=-np.inf)
        for near_C, hits in zip(near_QC, right[start : start + _ROWS], strict=True):
            near_right = near_C[list(hits)]
            before = np.count_nonzero(near_C >= near_right.max()) - np.count_nonzero(near_right >= near_right.max())
            places.append(float(1 + before))
    return places


def chance(label: Mapping[str, Any], k: int) -> float:
    """That one of the right candidates is among the first k of an order by chance."""
    candidates, right = label["candidates"], label["right"]
    return 1.0 - math.comb(candidates - right, k) / math.comb(candidates, k) if k < candidates else 1.0


def recall_at(k: int) -> Callable[[Any, Any], float]:
    """Whether a right one is among the first k; the mean over the directions that the label has."""

    def of(label: Mapping[str, Any], prediction: Any) -> float:
        if "rank" not in label:
            return _mean([of(part, (prediction or {}).get(name)) for name, part in _there(label)])
        if prediction is None:
            return False
        return chance(label, k) if prediction["rank"] is None else prediction["rank"] <= k

    return of


def median_rank(labels: Sequence[Any], answers: Sequence[Answer]) -> Statistic:
    """The median place over rows, and directions of a row; of an order by chance the expected one."""
    rows, places = [], []
    for row, (label, answer) in enumerate(zip(labels, answers, strict=True)):
        whole = {"": label} if "rank" in label else label
        said = {"": answer.prediction} if "rank" in label else answer.prediction or {}
        for name, part in _there(whole):
            rows.append(row)
            places.append(_place(part, said.get(name)))
    order = np.argsort(places)
    sorted_rows, sorted_places = np.array(rows, int)[order], np.array(places, float)[order]

    def of(counts: np.ndarray) -> np.ndarray:
        passed = counts[sorted_rows].cumsum(0)  # how many stand at a place or before it
        half = passed[-1] / 2
        middle = (passed >= half).argmax(0), (passed > half).argmax(0)  # of an even number the two in the middle
        return (sorted_places[middle[0]] + sorted_places[middle[1]]) / 2

    return of if rows else lambda counts: np.full(counts.shape[1], np.nan)


def _place(label: Mapping[str, Any], prediction: Mapping[str, Any] | None) -> float:
    if prediction is None:
        return float(label["candidates"])
    expected = (label["candidates"] + 1) / (label["right"] + 1)
    return expected if prediction["rank"] is None else prediction["rank"]


def _there(label: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(name, part) for name, part in label.items() if part is not None]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


RECALL_AT_10 = Metric("recall_at_10", recall_at(10))
RECALL_AT_1 = Metric("recall_at_1", recall_at(1))
RECALL_AT_5 = Metric("recall_at_5", recall_at(5))
MEDIAN_RANK = Metric("median_rank", over=median_rank, higher_is_better=False)
WHOLE = (RECALL_AT_10, RECALL_AT_1, RECALL_AT_5, MEDIAN_RANK)  # over all directions, and then of each
METRICS = (*WHOLE, *(metric.of_part(direction) for direction in DIRECTIONS for metric in WHOLE))
