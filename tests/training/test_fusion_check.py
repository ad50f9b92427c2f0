"""Whether a model listens to what was fused: the same rows with their own soft tokens, and with another row's."""

import numpy as np
import pytest

from training.fusion_check import fusion_check, shuffled_figures
from training.metrics import ACCURACY, Metric


def test_a_model_that_answers_the_same_to_other_tokens_does_not_listen() -> None:
    labels = ["yes"] * 60 + ["no"] * 34
    answers = ["yes"] * 94
    figures = shuffled_figures(ACCURACY, labels, answers, answers)
    assert figures == {"shuffled_accuracy": pytest.approx(60 / 94), "shuffled_p": 1.0, "shuffled_same": 94}
    checked = fusion_check({"n": 94, "accuracy": 60 / 94, **figures}, "accuracy", 0.95)
    assert checked is not None and not checked.passed
    assert checked.words == (
        "the model is not shown to listen to what is fused: on the same 94 test rows accuracy is 0.6383, and 0.6383 "
        "with the soft tokens of another row (p = 1.000; 94 answers stay the same)"
    )


def test_the_test_is_paired_and_counts_rows() -> None:
    labels = ["yes", "no"] * 40
    other = ["no" if n < 6 else label for n, label in enumerate(labels)]  # wrong in s0, s2 and s4
    few = shuffled_figures(ACCURACY, labels, labels, other)
    assert few["shuffled_p"] == pytest.approx(1 / 8) and few["shuffled_same"] == 77, "three of three is no proof"
    other = ["no" if n < 10 else label for n, label in enumerate(labels)]
    five = shuffled_figures(ACCURACY, labels, labels, other)
    assert five["shuffled_p"] == pytest.approx(1 / 32)
    for confidence, passed in ((0.95, True), (0.99, False)):
        checked = fusion_check({"n": 80, "accuracy": 1.0, **five}, "accuracy", confidence)
        assert checked is not None and checked.passed == passed
        assert ("the model listens" in checked.words) == passed and "80 test rows" in checked.words


def test_of_errors_the_larger_is_worse() -> None:
    def off_by(label: float, answer: float) -> float:
        return abs(label - answer)

    metric = Metric("error", off_by, higher_is_better=False)
    labels = np.arange(40.0).tolist()
    figures = shuffled_figures(metric, labels, labels, labels[::-1])
    assert figures["shuffled_error"] == pytest.approx(20) and figures["shuffled_p"] < 0.001
    backwards = shuffled_figures(metric, labels, labels[::-1], labels)
    assert backwards["shuffled_p"] > 0.99


def test_what_was_not_measured_is_not_judged() -> None:
    assert fusion_check({"n": 9, "accuracy": 0.5}, "accuracy", 0.95) is None
    assert fusion_check({"n": 0, "accuracy": None}, "accuracy", 0.95) is None
