"""What answers are worth: metrics of labels and predictions, with intervals. Needs neither torch nor MLflow."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.records import Figure

_TAKEN = ("n", "inputs", "subset", "slice", "filled", "loss")  # mean something else beside figures
CLASSES = 50  # with more labels than that, figures per class say little
_RESAMPLES = 1000
_CONFIDENCE = 0.95
_DRAWS = 2**22  # rows that a bootstrap draws at once: some 64 MB


@dataclass(frozen=True)
class Metric:
    """A figure that is the mean of a score of each row.

    `score` takes label and prediction, both in the output's type; a prediction of None is none at all, and what that
    costs is the metric's to say. It returns a bool (right or wrong), or a finite number.
    """

    name: str  # as results, MLflow and `promotion.metric` name it: letters, digits and _
    score: Callable[[Any, Any], float]
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or self.name.endswith(("_low", "_high")) or self.name in _TAKEN:
            raise ValueError(
                f"a metric is called {self.name!r}, expected letters, digits and _, without _low or _high at the end, "
                f"and none of {', '.join(_TAKEN)}"
            )

    @property
    def words(self) -> str:
        """The name, as sentences have it."""
        return self.name.replace("_", " ")

    def of(self, label: Any, prediction: Any) -> float:
        """The score of one answer. One that has no finite score (nan, of a model that diverged) is no answer.

        Raises:
            ValueError: no answer has no finite score, either.
        """
        for answer in (prediction, None):
            if math.isfinite(value := self.score(label, answer)):
                return value
        raise ValueError(f"{self.name} of no answer to {label!r} is {value}, expected what it costs: a finite number")

    def scores(self, labels: Sequence[Any], predictions: Sequence[Any]) -> np.ndarray:
        """(rows,) of bool or float64."""
        pairs = zip(labels, predictions, strict=True)
        values = np.array([self.of(label, prediction) for label, prediction in pairs])
        return values if values.dtype == bool else values.astype(float)


def exact_match(label: str, prediction: str | None) -> bool:
    """Label and prediction are the same but for space around them; no prediction is a wrong one."""
    return prediction is not None and label.strip() == prediction.strip()


ACCURACY = Metric("accuracy", exact_match)


def most_frequent(labels: Sequence[Any]) -> Any:
    """The label that stands most often, the first one of several; None where there is none."""
    usual = Counter(label for label in labels if label is not None).most_common(1)
    return usual[0][0] if usual else None


def mean_figure(scores: np.ndarray, seed: int = 0) -> Figure:
    """Mean of the rows' scores, each row counting the same, and its 95 % interval; nothing where there are no rows.

    The interval is Wilson's (1927) where a row is right or wrong, else a percentile bootstrap's.
    """
    if len(scores) == 0:
        return Figure()
    if np.isin(scores, (0, 1)).all():
        from scipy.stats import binomtest

        interval = binomtest(int(scores.sum()), len(scores)).proportion_ci(_CONFIDENCE, "wilson")
        return Figure(float(scores.mean()), float(interval.low), float(interval.high))
    low, high = np.quantile(resampled_means(scores, _RESAMPLES, seed), _tails())
    return Figure(float(scores.mean()), float(low), float(high))


def resampled_means(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """(resamples,) means of as many rows drawn with replacement (Efron and Tibshirani 1993); a portion at a time."""
    random, rows = np.random.default_rng(seed), len(values)
    portion = max(1, _DRAWS // rows)
    sizes = [min(portion, resamples - start) for start in range(0, resamples, portion)]
    return np.concatenate([values[random.integers(0, rows, (size, rows))].mean(axis=1) for size in sizes])


def label_figures(labels: Sequence[str], predictions: Sequence[str | None], seed: int = 0) -> dict[str, Figure]:
    """balanced_accuracy (mean recall of the labels) and f1 (mean over the labels) with bootstrap intervals.

    Only where there are 2 to 50 labels; else what cannot be said is empty.
    """
    names = ("balanced_accuracy", "f1")
    if not 2 <= len({label.strip() for label in labels}) <= CLASSES:
        return dict.fromkeys(names, Figure())
    _, matrix = confusion(labels, predictions, most=CLASSES)
    # Rows drawn with replacement are cells of the confusion matrix drawn with replacement.
    cells = matrix.ravel() / len(labels)
    drawn = np.random.default_rng(seed).multinomial(len(labels), cells, size=_RESAMPLES)
    resampled = _per_label(drawn.reshape(_RESAMPLES, *matrix.shape))
    figures = {}
    for name, value, draws in zip(names, _per_label(matrix), resampled, strict=True):
        low, high = np.quantile(draws, _tails())
        figures[name] = Figure(float(value), float(low), float(high))
    return figures


def confusion(labels: Sequence[str], predictions: Sequence[str | None], most: int = 20) -> tuple[list[str], np.ndarray]:
    """The most frequent labels, and how often each (row) was answered as each (column).

    The last row and column, "other", stand for all other labels and answers.
    """
    counts = Counter(label.strip() for label in labels)
    names = sorted(sorted(counts, key=lambda name: (-counts[name], name))[:most], key=natural)
    position = {name: number for number, name in enumerate(names)}
    matrix = np.zeros((len(names) + 1, len(names) + 1), dtype=int)
    for label, prediction in zip(labels, predictions, strict=True):
        matrix[position.get(label.strip(), -1), position.get((prediction or "").strip(), -1)] += 1
    return [*names, "other"], matrix


def _per_label(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Balanced accuracy and macro F1 of confusion matrices (..., labels + 1, labels + 1); labels without rows are out.

    As scikit-learn has them for one matrix; these do thousands at once.
    """
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)[..., :-1]
    labelled, answered = matrix.sum(-1)[..., :-1], matrix.sum(-2)[..., :-1]
    seen = labelled > 0
    labels = np.maximum(1, seen.sum(-1))
    recall = np.where(seen, hits / np.maximum(1, labelled), 0).sum(-1) / labels
    f1 = np.where(seen, 2 * hits / np.maximum(1, labelled + answered), 0).sum(-1) / labels
    return recall, f1


def _tails() -> tuple[float, float]:
    tail = (1 - _CONFIDENCE) / 2
    return tail, 1 - tail


def natural(name: str) -> tuple[int, float, str]:
    """Sorts labels that are numbers as numbers, before the others."""
    try:
        return 0, float(name), name
    except ValueError:
        return 1, 0.0, name
