"""Metrics against scikit-learn and cases worked out by hand, and the gate's comparison by figures of all rows."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau, spearmanr
from sklearn import metrics as sklearn

from training.bootstrap import compare, paired_bootstrap
from training.label_metrics import AUROC, AVERAGE_PRECISION, BALANCED_ACCURACY, ECE, MACRO_F1
from training.metrics import ACCURACY, Metric, resampled_counts
from training.multi_label_metrics import MACRO_F1 as MULTI_MACRO_F1
from training.multi_label_metrics import MAP, SAMPLE_F1, SUBSET_ACCURACY
from training.number_metrics import MAE, R2, RMSE, SPEARMAN
from training.ranking_metrics import KENDALL_TAU, NDCG, TOP_1
from training.records import Answer
from training.text_metrics import CER, ROUGE_L, TOKEN_F1, WER, common_length, edit_distance, words


def guesses(rows: int, skill: float, seed: int, names: str = "abc") -> tuple[list[str], list[Answer]]:
    """Labels, and answers with probabilities that know them by `skill`."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, len(names), rows)
    logits = random.normal(size=(rows, len(names))).round(1)
    logits[np.arange(rows), labels] += skill
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return [names[n] for n in labels], [answer(dict(zip(names, row.tolist(), strict=True))) for row in chances]


def answer(chances: dict[str, float]) -> Answer:
    best = tuple(sorted(chances.items(), key=lambda pair: -pair[1]))
    return Answer(best[0][0], best[0][1], best)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("names", ["ab", "abcde"])
def test_figures_by_rank_are_those_of_scikit_learn(seed: int, names: str) -> None:
    labels, answers = guesses(80, 1.0, seed, names)
    scores = np.array([[dict(a.best)[name] for name in names] for a in answers])
    given = np.array(labels)
    expected = [
        [f(given == name, scores[:, n]) for n, name in enumerate(names)]
        for f in (sklearn.roc_auc_score, sklearn.average_precision_score)
    ]
    assert AUROC.value(labels, answers) == pytest.approx(np.mean(expected[0]))
    if len(names) > 2:
        whole = sklearn.roc_auc_score(given, scores, multi_class="ovr", labels=list(names))
        assert AUROC.value(labels, answers) == pytest.approx(whole)
    assert AVERAGE_PRECISION.value(labels, answers) == pytest.approx(np.mean(expected[1]))


def test_orders_are_measured_as_scipy_and_scikit_learn_do() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        label, said = (["abcdef"[n] for n in random.permutation(6)] for _ in range(2))
        places = [[order.index(item) for item in "abcdef"] for order in (label, said)]
        assert KENDALL_TAU.of(label, said) == pytest.approx(kendalltau(*places).statistic)
        gains = [[6 - place for place in places[0]]]
        assert NDCG.of(label, said) == pytest.approx(sklearn.ndcg_score(gains, [[-place for place in places[1]]]))
        assert TOP_1.of(label, said) == (label[0] == said[0])
    assert KENDALL_TAU.of(["a", "b"], ["b", "a", "c"]) == pytest.approx(1 / 3), "c comes after both, in any order"
    assert KENDALL_TAU.of(["a", "b"], ["a"]) == 1 and KENDALL_TAU.of(["a"], ["c"]) == -1
    assert [metric.of(["a"], None) for metric in (KENDALL_TAU, NDCG, TOP_1)] == [-1, 0, 0]


@pytest.mark.parametrize("metric", [AUROC, AVERAGE_PRECISION, BALANCED_ACCURACY, MACRO_F1, ECE, CER, WER])
def test_a_row_that_counts_twice_is_a_row_that_stands_twice(metric: Metric) -> None:
    """So the bootstrap, which counts, is of rows that are really drawn."""
    labels, answers = guesses(40, 1.0, 3)
    statistic = metric.statistic(labels, answers)
    for counts in resampled_counts(40, 5, seed=1):
        assert counts.shape[0] == 40 and (counts.sum(0) == 40).all()
        for column, value in zip(counts.T, statistic(counts), strict=True):
            rows = np.repeat(np.arange(40), column.astype(int))
            drawn = metric.value([labels[n] for n in rows], [answers[n] for n in rows])
            assert drawn == pytest.approx(value)


def test_the_bootstrap_draws_rows_evenly() -> None:
    counts = np.concatenate(list(resampled_counts(50, 4000, seed=0)), axis=1)
    assert counts.shape == (50, 4000) and counts.mean(1) == pytest.approx(np.ones(50), abs=0.08)
    assert counts.var() == pytest.approx(1 - 1 / 50, abs=0.02), "of a multinomial"


def test_who_gives_no_probability_is_taken_at_his_word() -> None:
    labels = list("aabb")
    assert AUROC.value(labels, list("aabb")) == 1 and AUROC.value(labels, list("aaaa")) == 0.5
    assert AUROC.value(labels, [None] * 4) == 0.5 and AVERAGE_PRECISION.value(labels, list("aaaa")) == 0.5
    assert ECE.value(labels, list("aaaa")) == 0.5 and ECE.value(labels, [None] * 4) == 0


def test_a_single_label_has_no_figures_per_label() -> None:
    for metric in (AUROC, AVERAGE_PRECISION, BALANCED_ACCURACY, MACRO_F1):
        assert metric.value(["a"] * 5, ["a"] * 5) is None and metric.figure(["a"] * 5, ["a"] * 5).value is None
        with pytest.raises(ValueError, match=r"cannot be said of these 5 rows with 1 different labels: name another"):
            compare(metric, ["a"] * 5, ["a"] * 5, ["b"] * 5)


def test_the_calibration_error_of_a_published_form() -> None:
    """Guo et al. 2017, equation 3: bins (0.5333, 0.6] and (0.7333, 0.8] of fifteen."""
    answers = [Answer("x", 0.6)] * 5 + [Answer("x", 0.8)] * 5
    labels = ["x", "x", "y", "y", "y"] + ["x"] * 5
    assert ECE.value(labels, answers) == pytest.approx(0.5 * abs(0.4 - 0.6) + 0.5 * abs(1 - 0.8))
    assert ECE.value(["x", "y"], [Answer("x", 0.0), Answer("x", 1.0)]) == pytest.approx(1)


def test_intervals_hold_the_figure_and_most_often_the_truth() -> None:
    inside = 0
    truth = AUROC.value(*guesses(20_000, 1.0, 99))
    assert truth is not None
    for seed in range(60):
        figure = AUROC.figure(*guesses(150, 1.0, seed))
        assert figure.low is not None and figure.value is not None and figure.high is not None
        assert figure.low <= figure.value <= figure.high
        inside += figure.low <= truth <= figure.high
    assert inside >= 50  # 57 expected; fewer than 50 has a chance of 1 in 1,000


LETTERS = st.text("abcd ", max_size=12)


@given(LETTERS, LETTERS)
def test_edits_and_common_parts_are_those_of_the_textbook(a: str, b: str) -> None:
    distance = np.zeros((len(a) + 1, len(b) + 1), int)
    common = np.zeros_like(distance)
    distance[:, 0], distance[0] = np.arange(len(a) + 1), np.arange(len(b) + 1)
    for i in range(len(a)):
        for j in range(len(b)):
            same = a[i] == b[j]
            distance[i + 1, j + 1] = min(distance[i, j] + (not same), distance[i, j + 1] + 1, distance[i + 1, j] + 1)
            common[i + 1, j + 1] = common[i, j] + 1 if same else max(common[i, j + 1], common[i + 1, j])
    assert edit_distance(a, b) == edit_distance(b, a) == distance[-1, -1]
    assert common_length(a, b) == common_length(b, a) == common[-1, -1]


def test_texts_worked_out_by_hand() -> None:
    assert edit_distance("kitten", "sitting") == 3 and edit_distance(("a", "b"), ("b",)) == 1
    assert words("The CAT's 3.5 (red) 猫が好き!") == ["the", "cat", "s", "3", "5", "red", *"猫が好き"]
    # Two of three and two of four words: 2 * 2 / 7, in any order and in one.
    assert TOKEN_F1.of("a red cat", "the cat is red") == pytest.approx(4 / 7)
    assert ROUGE_L.of("a red cat", "the cat is red") == pytest.approx(2 / 7)
    # Lin 2004, section 2: of "police killed the gunman" the first has 3 words in order, the second 2.
    lin = "police killed the gunman"
    assert ROUGE_L.of(lin, "police kill the gunman") == 3 / 4 and ROUGE_L.of(lin, "the gunman kill police") == 2 / 4
    assert TOKEN_F1.of("", None) == 0 and TOKEN_F1.of("!", "?") == 1, "neither has a word"
    # 3 edits of 6 characters and 1 of 3; of all rows together, not the mean of 1/2 and 1/3.
    assert CER.value(["kitten", "abc"], ["sitting", "abd"]) == pytest.approx(4 / 9)
    assert WER.value(["a b c", "d"], ["a x c y", None]) == pytest.approx(3 / 4)
    assert CER.value([""], ["x"]) is None


def plain(answers: Sequence[Answer]) -> list[Any]:
    return [a.prediction for a in answers]


def test_by_a_figure_of_all_rows_the_better_one_is_found() -> None:
    labels, good = guesses(300, 2.0, 0)
    _, poor = guesses(300, 0.0, 0)
    for metric in (AUROC, AVERAGE_PRECISION, MACRO_F1, BALANCED_ACCURACY, CER):
        outcome, other = compare(metric, labels, good, poor), compare(metric, labels, poor, good)
        assert outcome.better and not other.better and outcome.low > 0 and outcome.rows == 300
        assert (outcome.difference, outcome.low, outcome.high) == pytest.approx(
            (-other.difference, -other.high, -other.low)
        )
        sign = 1 if metric.higher_is_better else -1
        assert outcome.difference == pytest.approx(sign * (outcome.a - outcome.b))
        assert outcome.a == metric.value(labels, good)
        assert not compare(metric, labels, good, good).better
        assert compare(metric, labels, good, good, margin=0.01).better


def test_a_few_rows_are_no_proof_by_figures_of_all_rows() -> None:
    labels = list("abab")
    assert not compare(MACRO_F1, labels, labels, list("baba")).better
    assert compare(MACRO_F1, labels * 2, labels * 2, list("baba") * 2).better


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_a_mean_of_all_rows_is_compared_as_scores_are(seed: int) -> None:
    labels, answers = guesses(60, 1.0, seed)
    _, others = guesses(60, 0.0, seed)
    lengths = Metric("length", lambda label, prediction: 2.0 * (label == prediction))
    together = Metric("mean", over=lengths.statistic)
    rows, whole = compare(lengths, labels, answers, others), compare(together, labels, answers, others)
    assert (rows.a, rows.b, rows.difference) == pytest.approx((whole.a, whole.b, whole.difference))
    assert (rows.low, rows.high) == pytest.approx((whole.low, whole.high), abs=0.1)
    assert rows.p == pytest.approx(whole.p, abs=0.07)  # fewer rows differ in the score than in the answer
    exact = paired_bootstrap(ACCURACY.scores(labels, answers), ACCURACY.scores(labels, others))
    assert exact == compare(ACCURACY, labels, answers, plain(others))


def test_a_metric_is_of_rows_or_of_all() -> None:
    with pytest.raises(ValueError, match="the metric x has both score and over, or none"):
        Metric("x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert BALANCED_ACCURACY.value(list("aab"), list("xyz")) == 0


def numbers(rows: int, noise: float, seed: int) -> tuple[list[float], list[float]]:
    random = np.random.default_rng(seed)
    labels = random.normal(50, 10, rows).round()  # with ties
    return labels.tolist(), (labels + random.normal(0, noise, rows)).round().tolist()


@pytest.mark.parametrize("noise", [1.0, 20.0])
def test_figures_of_numbers_are_those_of_scikit_learn_and_scipy(noise: float) -> None:
    labels, said = numbers(60, noise, 0)
    assert MAE.value(labels, said) == pytest.approx(sklearn.mean_absolute_error(labels, said))
    assert RMSE.value(labels, said) == pytest.approx(sklearn.root_mean_squared_error(labels, said))
    assert R2.value(labels, said) == pytest.approx(sklearn.r2_score(labels, said))
    assert SPEARMAN.value(labels, said) == pytest.approx(spearmanr(labels, said).statistic)
    for metric in (MAE, RMSE, R2, SPEARMAN):
        statistic = metric.statistic(labels, said)
        for counts in resampled_counts(60, 3, seed=1):
            for column, value in zip(counts.T, statistic(counts), strict=True):
                rows = np.repeat(np.arange(60), column.astype(int))
                drawn = metric.value([labels[n] for n in rows], [said[n] for n in rows])
                assert drawn == pytest.approx(value, abs=1e-5)


def test_no_number_is_as_far_off_as_can_be() -> None:
    assert MAE.value([0.0, 10.0, 4.0], [0.0, None, float("nan")]) == pytest.approx((0 + 10 + 6) / 3)
    assert MAE.value([5.0], [None]) == 5 and R2.value([5.0, 5.0], [5.0, 5.0]) is None
    assert SPEARMAN.value([1.0, 2.0], [3.0, 3.0]) == 0


def test_of_numbers_the_nearer_ones_are_better() -> None:
    labels, near = numbers(200, 5.0, 0)
    far = numbers(200, 20.0, 0)[1]
    for metric in (MAE, RMSE, R2, SPEARMAN):
        assert compare(metric, labels, near, far).better and not compare(metric, labels, far, near).better


def test_figures_of_several_labels_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    truth = random.random((50, 4)) < 0.3
    chances = (0.6 * truth + 0.7 * random.random((50, 4))) / 1.3
    names = np.array(list("abcd"))
    labels = [names[row].tolist() for row in truth]
    answers = [
        Answer(names[row > 0.5].tolist(), 0.5, tuple(zip(names.tolist(), row.tolist(), strict=True))) for row in chances
    ]
    said = chances > 0.5
    assert MULTI_MACRO_F1.value(labels, answers) == pytest.approx(sklearn.f1_score(truth, said, average="macro"))
    assert MAP.value(labels, answers) == pytest.approx(sklearn.average_precision_score(truth, chances))
    assert SUBSET_ACCURACY.value(labels, answers) == pytest.approx(sklearn.accuracy_score(truth, said))
    expected = sklearn.f1_score(truth, said, average="samples", zero_division=1.0)
    assert SAMPLE_F1.value(labels, answers) == pytest.approx(expected)
    assert compare(MAP, labels, answers, [[]] * 50).better
