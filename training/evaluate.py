"""What predictions are worth: accuracy with intervals for every subset of the inputs and every slice of the rows.

A prediction for a subset is made with the other modalities hidden, by a model that was given nothing else of the row.
A subset is measured on the rows that have at least one of its inputs, and says how many they are.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.stats import binomtest

from training.schema import MODALITIES, subset_name

_SLICE_VALUES = 12  # a column with more values than that is no slice
_CLASSES = 50  # with more labels than that, figures per class say little
_RESAMPLES = 1000
_CONFIDENCE = 0.95


def subsets(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """Every non-empty subset, the smallest first: what a model may be given."""
    ordered = [m for m in MODALITIES if m in modalities]
    return [chosen for size in range(1, len(ordered) + 1) for chosen in combinations(ordered, size)]


def slices(dataset: pa.Table) -> dict[str, dict[str, str]]:
    """Columns that part the rows (training.schema.DATASET) into few kinds: column -> sample id -> value.

    Every attribute with 2 to 12 values, and `given`: the modalities that a sample has.
    """
    values: dict[str, dict[str, str]] = {}
    for row in dataset.to_pylist():
        given = [m for m in MODALITIES if row[f"{m}_id"] is not None]
        for column, value in {**json.loads(row["attributes"] or "{}"), "given": subset_name(given)}.items():
            values.setdefault(column, {})[row["sample_id"]] = str(value)
    return {c: found for c, found in values.items() if 2 <= len(set(found.values())) <= _SLICE_VALUES and c != "split"}


def majority_accuracy(train: Sequence[str | None], test: Sequence[str | None]) -> float:
    """Share of the test labels that the most frequent training label would be right for, whatever the inputs."""
    usual = Counter(label for label in train if label is not None).most_common(1)
    return sum(label == usual[0][0] for label in test) / len(test) if usual and test else 0.0


def measure(
    predictions: pa.Table,
    inputs: Sequence[str],
    columns: Mapping[str, Mapping[str, str]] | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """One row of figures per subset of the inputs, and per slice with all inputs given.

    Args:
        predictions: training.schema.PREDICTIONS.
        inputs: the modalities that the model takes; each of their subsets gets a row, n = 0 where nothing was asked.
        columns: of `slices`.
        seed: of the bootstrap.

    Returns:
        Rows with inputs, subset, slice (null, or ``column=value``) and the figures of `figures`.

    Raises:
        ValueError: a subset of other modalities, a sample twice in a subset, or a label that is null.
    """
    full = subset_name(inputs)
    parts: dict[str, dict[str, dict[str, Any]]] = {subset_name(chosen): {} for chosen in subsets(inputs)}
    for row in predictions.to_pylist():
        subset, sample = row["subset"], row["sample_id"]
        if subset not in parts:
            raise ValueError(f"sample {sample!r} was predicted from {subset!r}, expected one of {', '.join(parts)}")
        if sample in parts[subset]:
            raise ValueError(f"sample {sample!r} was predicted twice from {subset!r}: keep one prediction")
        if row["label"] is None:
            raise ValueError(f"sample {sample!r} has no label: only labelled rows can be measured")
        parts[subset][sample] = row
    rows = [
        {"inputs": full, "subset": subset, "slice": None, **figures(list(part.values()), seed)}
        for subset, part in parts.items()
    ]
    for column, values in (columns or {}).items():
        for value in sorted(set(values.values()), key=_natural):
            part = [row for sample, row in parts[full].items() if values.get(sample) == value]
            if part:
                rows.append({"inputs": full, "subset": full, "slice": f"{column}={value}", **figures(part, seed)})
    return rows


def figures(rows: Sequence[Mapping[str, Any]], seed: int = 0) -> dict[str, Any]:
    """n, accuracy (exact match, each row counts the same) and its 95 % interval (Wilson 1927): low, high.

    Where there are 2 to 50 labels also balanced_accuracy (mean recall of the labels) and f1 (mean over the labels),
    each with a bootstrap interval X_low, X_high. What cannot be said is None.
    """
    names = ("accuracy", "low", "high", "balanced_accuracy", "balanced_accuracy_low", "balanced_accuracy_high")
    found: dict[str, Any] = {"n": len(rows), **dict.fromkeys((*names, "f1", "f1_low", "f1_high"))}
    if not rows:
        return found
    right = sum(exact_match(row) for row in rows)
    interval = binomtest(right, len(rows)).proportion_ci(_CONFIDENCE, "wilson")
    found |= {"accuracy": right / len(rows), "low": float(interval.low), "high": float(interval.high)}
    if 2 <= len({row["label"].strip() for row in rows}) <= _CLASSES:
        _, matrix = confusion(rows, most=_CLASSES)
        # Rows drawn with replacement are cells of the confusion matrix drawn with replacement.
        cells = matrix.ravel() / len(rows)
        drawn = np.random.default_rng(seed).multinomial(len(rows), cells, size=_RESAMPLES)
        resampled = _per_label(drawn.reshape(_RESAMPLES, *matrix.shape))
        tail = (1 - _CONFIDENCE) / 2
        for name, value, draws in zip(("balanced_accuracy", "f1"), _per_label(matrix), resampled, strict=True):
            low, high = np.quantile(draws, [tail, 1 - tail])
            found |= {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}
    return found


def exact_match(row: Mapping[str, Any]) -> bool:
    """Label and prediction are the same but for space around them; no prediction is a wrong one."""
    return row["prediction"] is not None and row["label"].strip() == row["prediction"].strip()


def correct(predictions: pa.Table) -> dict[str, bool]:
    """Whether each sample was answered right, by sample id. Raises ValueError: a sample twice."""
    found = {row["sample_id"]: exact_match(row) for row in predictions.to_pylist()}
    if len(found) < predictions.num_rows:
        raise ValueError(f"{predictions.num_rows} predictions of {len(found)} samples: expected one for each")
    return found


def confusion(rows: Sequence[Mapping[str, Any]], most: int = 20) -> tuple[list[str], np.ndarray]:
    """The most frequent labels, and how often each (row) was answered as each (column).

    The last row and column, "other", stand for all other labels and answers.
    """
    counts: dict[str, int] = {}
    for row in rows:
        label = row["label"].strip()
        counts[label] = counts.get(label, 0) + 1
    names = sorted(sorted(counts, key=lambda name: (-counts[name], name))[:most], key=_natural)
    position = {name: number for number, name in enumerate(names)}
    matrix = np.zeros((len(names) + 1, len(names) + 1), dtype=int)
    for row in rows:
        answer = (row["prediction"] or "").strip()
        matrix[position.get(row["label"].strip(), -1), position.get(answer, -1)] += 1
    return [*names, "other"], matrix


def _per_label(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Balanced accuracy and macro F1 of confusion matrices (..., labels + 1, labels + 1); labels without rows are out.

    As scikit-learn has them for one matrix; these do thousands at once.
    """
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)[..., :-1]
    asked, answered = matrix.sum(-1)[..., :-1], matrix.sum(-2)[..., :-1]
    seen = asked > 0
    labels = np.maximum(1, seen.sum(-1))
    recall = np.where(seen, hits / np.maximum(1, asked), 0).sum(-1) / labels
    f1 = np.where(seen, 2 * hits / np.maximum(1, asked + answered), 0).sum(-1) / labels
    return recall, f1


def _natural(name: str) -> tuple[int, float, str]:
    try:
        return 0, float(name), name
    except ValueError:
        return 1, 0.0, name
