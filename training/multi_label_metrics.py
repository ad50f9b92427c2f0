"""Metrics of answers that name any number of labels: labels and predictions are lists of names."""

from collections.abc import Sequence

import numpy as np

from training.label_metrics import CalibrationError, average_precision, f1_of, mean_of_defined, undefined
from training.metrics import Metric, Statistic
from training.records import Answer

_MOST_LABELS = 1000


def sample_f1(label: Sequence[str], prediction: Sequence[str] | None) -> float:
    """Harmonic mean of precision and recall of one row's names; 1 where both have none."""
    if prediction is None:
        return 0.0
    theirs, ours = set(label), set(prediction)
    return 2 * len(theirs & ours) / (len(theirs) + len(ours)) if theirs or ours else 1.0


def same_labels(label: Sequence[str], prediction: Sequence[str] | None) -> bool:
    return prediction is not None and set(label) == set(prediction)


def _names(labels: Sequence[Sequence[str]]) -> list[str]:
    return sorted({name for label in labels for name in label})


def macro_f1(labels: Sequence[Sequence[str]], answers: Sequence[Answer]) -> Statistic:
    """Mean over the labels that occur of F1."""
    if not 1 <= len(names := _names(labels)) <= _MOST_LABELS:
        return undefined
    said = [answer.prediction or () for answer in answers]
    labelled, answered = (np.array([[name in row for row in rows] for name in names]) for rows in (labels, said))
    return f1_of(labelled, answered)


def mean_average_precision(labels: Sequence[Sequence[str]], answers: Sequence[Answer]) -> Statistic:
    """Mean over the labels that occur of the average precision of their probabilities."""
    if not 1 <= len(names := _names(labels)) <= _MOST_LABELS:
        return undefined
    chances = [dict(a.best or ((name, 1.0) for name in a.prediction or ())) for a in answers]
    statistics = [
        average_precision(
            np.array([chance.get(name, 0.0) for chance in chances]), np.array([name in label for label in labels])
        )
        for name in names
    ]
    return lambda counts: mean_of_defined([statistic(counts) for statistic in statistics])


SAMPLE_F1 = Metric("sample_f1", sample_f1)
SUBSET_ACCURACY = Metric("subset_accuracy", same_labels)
MACRO_F1 = Metric("macro_f1", over=macro_f1)
MAP = Metric("mean_average_precision", over=mean_average_precision, of_probabilities=True)
ECE = Metric("ece", over=CalibrationError(same_labels), higher_is_better=False, of_probabilities=True)
