"""What answers are worth: metrics of labels and predictions, with intervals. Needs neither torch nor MLflow."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from training.records import Answer, Figure

_TAKEN = ("n", "inputs", "subset", "slice", "filled", "contributions", "loss")  # mean something else beside figures
CLASSES = 50  # with more labels than that, figures per class say little
_RESAMPLES = 1000
_CONFIDENCE = 0.95
_DRAWS = 2**22  # rows that a bootstrap draws at once: some 64 MB
_COUNTS = 2**17  # the same of counts


# Of rows that count so often each (rows, R) to the figure of each such count (R,): what a bootstrap asks thousands of
# times. nan: there is no such figure of these rows.
Statistic = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Metric:
    """A figure of labels and answers: the mean of a `score` of each row, or what `over` makes of all rows together.

    `score` takes label and prediction, both in the output's type; a prediction of None is none at all, and what that
    costs is the metric's to say. It returns a bool (right or wrong), or a finite number. `over` takes the labels and
    `training.records.Answer` of all rows, with what is known of their probabilities.
    """

    name: str  # as results, MLflow and `promotion.metric` name it: letters, digits and _
    score: Callable[[Any, Any], float] | None = None
    higher_is_better: bool = True
    over: Callable[[Sequence[Any], Sequence[Answer]], Statistic] | None = None
    of_probabilities: bool = False  # whether answers that say the same with another probability may count otherwise
    part: str | None = None  # where labels and predictions hold several by name: the one that this is of

    def __post_init__(self) -> None:
        name = self.name.removeprefix(f"{self.part}.")
        if not name.isidentifier() or name.endswith(("_low", "_high")) or self.name in _TAKEN:
            raise ValueError(
                f"a metric is called {self.name!r}, expected letters, digits and _, without _low or _high at the end, "
                f"and none of {', '.join(_TAKEN)}"
            )
        if (self.score is None) == (self.over is None):
            raise ValueError(f"the metric {self.name} has both score and over, or none: expected one of them")

    @property
    def words(self) -> str:
        """The name, as sentences have it."""
        return self.name.replace("_", " ")

    def of_part(self, part: str) -> "Metric":
        """This one, of one of several answers: over the rows that have a label of it."""
        return replace(self, name=f"{part}.{self.name}", part=part)

    def rows(self, labels: Sequence[Any]) -> list[int]:
        """The numbers of the rows that it is of."""
        return [n for n, label in enumerate(labels) if self.part is None or label[self.part] is not None]

    def mine(self, labels: Sequence[Any], answers: Sequence[Any]) -> tuple[list[Any], list[Answer]]:
        """Labels and answers of those rows, and of its part."""
        rows, given = self.rows(labels), list(map(Answer.of, answers))
        if self.part is None:
            return list(labels), given
        return [labels[n][self.part] for n in rows], [given[n].part(self.part) for n in rows]

    def of(self, label: Any, prediction: Any) -> float:
        """The score of one answer. One that has no finite score (nan, of a model that diverged) is no answer.

        Raises:
            ValueError: no answer has no finite score, either.
        """
        assert self.score is not None
        for answer in (prediction, None):
            if math.isfinite(value := self.score(label, answer)):
                return value
        raise ValueError(f"{self.name} of no answer to {label!r} is {value}, expected what it costs: a finite number")

    def scores(self, labels: Sequence[Any], answers: Sequence[Any]) -> np.ndarray:
        """(rows,) of bool or float64, where rows have scores. Answers are predictions or `Answer`s, here and below;
        here and in `statistic` they and the labels are the metric's own (`mine`)."""
        pairs = zip(labels, map(Answer.of, answers), strict=True)
        values = np.array([self.of(label, answer.prediction) for label, answer in pairs])
        return values if values.dtype == bool else values.astype(float)

    def statistic(self, labels: Sequence[Any], answers: Sequence[Any]) -> Statistic:
        """The figure as a function of how often each row counts."""
        if self.over is not None:
            return self.over(labels, list(map(Answer.of, answers)))
        scores = self.scores(labels, answers).astype(float)
        return lambda counts: scores @ counts / counts.sum(0)

    def value(self, labels: Sequence[Any], answers: Sequence[Any]) -> float | None:
        """The figure; None where there are no rows, or it cannot be said of these."""
        return self._value(*self.mine(labels, answers))

    def _value(self, labels: Sequence[Any], answers: Sequence[Any]) -> float | None:
        if len(labels) == 0:
            return None
        if self.over is None:
            return float(self.scores(labels, answers).mean())
        value = float(self.statistic(labels, answers)(np.ones((len(labels), 1), np.float32))[0])
        return value if math.isfinite(value) else None

    def figure(self, labels: Sequence[Any], answers: Sequence[Any], seed: int = 0) -> Figure:
        """The figure with its 95 % interval; `seed` is the bootstrap's."""
        labels, answers = self.mine(labels, answers)
        if self.over is None:
            return mean_figure(self.scores(labels, answers), seed)
        if (value := self._value(labels, answers)) is None:
            return Figure()
        statistic = self.statistic(labels, answers)
        drawn = np.concatenate([statistic(counts) for counts in resampled_counts(len(labels), _RESAMPLES, seed)])
        low, high = np.nanquantile(drawn, _tails())
        # Resampled rows repeat, so a figure that is not linear may lie beside all that is drawn.
        return Figure(value, min(value, float(low)), max(value, float(high)))


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


def resampled_counts(rows: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each row is drawn when as many are drawn with replacement: (rows, some of the resamples), float32."""
    random = np.random.default_rng(seed)
    portion = max(1, _COUNTS // rows)
    for start in range(0, resamples, portion):
        size = min(portion, resamples - start)
        cells = random.integers(0, rows, (rows, size)) * size + np.arange(size)
        yield np.bincount(cells.ravel(), minlength=rows * size).reshape(rows, size).astype(np.float32)


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


def _tails() -> tuple[float, float]:
    tail = (1 - _CONFIDENCE) / 2
    return tail, 1 - tail


def natural(name: str) -> tuple[int, float, str]:
    """Sorts labels that are numbers as numbers, before the others."""
    try:
        return 0, float(name), name
    except ValueError:
        return 1, 0.0, name
