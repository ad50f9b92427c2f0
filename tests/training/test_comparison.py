"""The gate never promotes what is not better, and says why in words."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training import comparison
from training.comparison import Decision, paired_bootstrap
from training.metrics import ACCURACY, Metric, mean_figure
from training.outputs.text import TextOutput
from training.schema import predictions_schema
from training.settings import PromotionSettings

RULE = PromotionSettings()
PAIRS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200)


def predictions(right: Any, subset: str = "text+image", ids: list[str] | None = None) -> pa.Table:
    rows = [
        {"sample_id": name, "subset": subset, "label": "yes", "prediction": "yes" if ok else "no"}
        for name, ok in zip(ids or [f"s{n}" for n in range(len(right))], right, strict=True)
    ]
    return pa.Table.from_pylist(rows, predictions_schema(pa.string()))


def decide(*arguments: Any) -> Decision:
    return comparison.decide(*arguments, TextOutput({}))


def score(n: int, rate: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(n) < rate


@given(st.lists(st.booleans(), min_size=1, max_size=200), st.floats(0.01, 0.5))
def test_identical_answers_are_not_better_and_within_any_margin(right: list[bool], margin: float) -> None:
    outcome = paired_bootstrap(right, right)
    assert not outcome.better and outcome.low == outcome.high == outcome.difference == 0
    assert paired_bootstrap(right, right, margin=margin).better


@given(PAIRS, st.floats(0.5, 0.99))
def test_what_is_not_ahead_is_never_better(pairs: list[tuple[bool, bool]], confidence: float) -> None:
    a, b = zip(*pairs, strict=True)
    outcome = paired_bootstrap(a, b, confidence)
    if sum(a) <= sum(b):
        assert not outcome.better
    assert outcome.low <= outcome.difference <= outcome.high
    assert not outcome.better or outcome.low > 0


@given(PAIRS, st.floats(0.5, 0.99))
def test_swapping_the_two_negates_the_result(pairs: list[tuple[bool, bool]], confidence: float) -> None:
    a, b = zip(*pairs, strict=True)
    one, other = paired_bootstrap(a, b, confidence), paired_bootstrap(b, a, confidence)
    assert (one.difference, one.low, one.high) == (-other.difference, -other.high, -other.low)
    assert not (one.better and other.better)


@given(PAIRS, st.floats(0, 0.3), st.floats(0.001, 0.3))
def test_a_wider_margin_never_turns_better_into_worse(
    pairs: list[tuple[bool, bool]], margin: float, more: float
) -> None:
    a, b = zip(*pairs, strict=True)
    narrow, wide = (paired_bootstrap(a, b, margin=m) for m in (margin, margin + more))
    assert wide.better or not narrow.better


@settings(max_examples=10)
@given(st.integers(30, 300), st.floats(0.3, 0.7), st.integers(0, 99))
def test_the_distribution_is_that_of_resampled_rows(n: int, rate: float, seed: int) -> None:
    a, b = score(n, rate, seed), score(n, 0.5, seed + 100)
    outcome = paired_bootstrap(a, b, 0.9)
    rows = np.random.default_rng(seed).integers(0, n, (20_000, n))
    means = (a.astype(float) - b)[rows].mean(axis=1)
    noise, step = 0.012, 0.5 / n  # over five standard errors of a share of 20,000; means are multiples of 1 / n
    assert np.mean(means < outcome.low - step) - noise <= 0.1 <= np.mean(means < outcome.low + step) + noise
    assert np.mean(means > outcome.high + step) - noise <= 0.1 <= np.mean(means > outcome.high - step) + noise


def test_a_few_rows_are_no_proof() -> None:
    right = np.ones(1000, bool)
    for lead, better in ((3, False), (4, False), (5, True)):  # 1 of 2**5 is the first below 5 %
        rival = right.copy()
        rival[:lead] = False
        assert paired_bootstrap(right, rival).better == better


def test_false_promotions_are_as_rare_as_the_confidence_says() -> None:
    # Two models of equal worth, 400 times: 5 % may pass, 9 % would mean the test is wrong (chance below 1 in 1,000).
    passed = sum(paired_bootstrap(score(300, 0.8, 2 * n), score(300, 0.8, 2 * n + 1)).better for n in range(400))
    assert passed <= 36


def test_a_margin_lets_a_slightly_worse_model_pass_and_a_much_worse_one_not() -> None:
    champion = np.ones(2000, bool)
    slightly, much = champion.copy(), champion.copy()
    slightly[:10], much[:100] = False, False
    rule = replace(RULE, margin=0.02)
    assert not decide(predictions(slightly), predictions(champion), {}, RULE).promote
    allowed = decide(predictions(slightly), predictions(champion), {}, rule)
    assert allowed.promote and allowed.reasons[0].startswith("not worse than the champion")
    refused = decide(predictions(much), predictions(champion), {}, rule)
    assert not refused.promote and "margin 0.02" in refused.reasons[0]
    # A margin is for the champion only: a single modality must be beaten.
    assert not decide(predictions(slightly), None, {"text": predictions(champion, "text")}, rule).promote


def test_the_first_model_must_beat_the_best_single_modality() -> None:
    fused, image, text = score(500, 0.9), score(500, 0.6, 1), score(500, 0.3, 2)
    singles = {"text": predictions(text, "text"), "image": predictions(image, "image")}
    outcome = decide(predictions(fused), None, singles, RULE)
    assert outcome.promote and list(outcome.comparisons) == ["image"]
    assert outcome.reasons[-1] == "there was no champion before"
    assert not decide(predictions(image, "text+image"), None, singles, RULE).promote


def test_a_better_model_must_beat_champion_and_single_modality() -> None:
    new, old, image = score(800, 0.95), score(800, 0.85, 1), score(800, 0.97, 2)
    assert decide(predictions(new), predictions(old), {}, RULE).promote
    outcome = decide(predictions(new), predictions(old), {"image": predictions(image, "image")}, RULE)
    assert not outcome.promote and len(outcome.reasons) == 2
    assert decide(
        predictions(new), predictions(old), {"image": predictions(image)}, replace(RULE, must_beat=("champion",))
    ).promote


def test_the_reason_is_a_sentence_with_the_figures() -> None:
    champion, challenger = np.arange(1000) < 934, np.arange(1000) < 912
    outcome = decide(predictions(challenger), predictions(champion), {}, RULE)
    assert outcome.reasons[0].startswith(
        "worse than the champion: accuracy 0.9120 against 0.9340 on the same 1,000 test rows, difference -0.0220 [-0.0"
    )


def test_rows_are_joined_by_sample_whatever_their_order() -> None:
    right = score(300, 0.9)
    ids = [f"s{n}" for n in range(300)]
    shuffled = np.random.default_rng(0).permutation(300)
    other = predictions(right[shuffled], ids=[ids[n] for n in shuffled])
    outcome = decide(predictions(right), other, {}, RULE)
    assert outcome.comparisons["champion"].low == outcome.comparisons["champion"].high == 0 and not outcome.promote


def test_other_rows_are_refused() -> None:
    right = [True] * 10
    with pytest.raises(ValueError, match=r"champion were not scored on the same test rows \(1 and 1"):
        decide(predictions(right), predictions(right, ids=["other", *(f"s{n}" for n in range(1, 10))]), {}, RULE)
    with pytest.raises(ValueError, match="2 predictions of 1 samples"):
        decide(predictions(right[:2], ids=["a", "a"]), None, {}, RULE)
    with pytest.raises(ValueError, match="at least one"):
        paired_bootstrap([], [])


def test_a_modality_that_no_test_row_has_is_not_compared() -> None:
    fused, nothing = np.ones(20, bool), predictions([], "speech")
    outcome = decide(predictions(fused), None, {"image": predictions(~fused, "image"), "speech": nothing}, RULE)
    assert outcome.promote and list(outcome.comparisons) == ["image"]
    assert outcome.reasons[0] == "speech alone was not compared: no test row has speech"
    with pytest.raises(ValueError, match="at least one"):
        decide(nothing, None, {"speech": nothing}, RULE)


def test_a_row_that_lacks_the_single_modality_counts_against_it() -> None:
    fused = np.ones(20, bool)
    outcome = decide(predictions(fused), None, {"image": predictions(fused[:10], "image")}, RULE)
    assert outcome.promote and outcome.comparisons["image"].b == 0.5
    with pytest.raises(ValueError, match="image"):
        decide(predictions(fused[:10]), None, {"image": predictions(fused, "image")}, RULE)


class DollarsOutput(TextOutput):
    """Answers are numbers; the mean error is in their unit, and less is better."""

    metrics = (Metric("error", lambda label, answer: abs(label - answer), higher_is_better=False), ACCURACY)
    arrow_type = pa.float64()


def errors(values: Any, subset: str = "text+image") -> pa.Table:
    rows = [
        {"sample_id": f"s{n}", "subset": subset, "label": 0.0, "prediction": float(value)}
        for n, value in enumerate(values)
    ]
    return pa.Table.from_pylist(rows, predictions_schema(pa.float64()))


def test_where_less_is_better_the_smaller_mean_wins() -> None:
    random = np.random.default_rng(0)
    small, large, middle = random.gamma(2, 1, 300), random.gamma(2, 2, 300), random.gamma(2, 1.5, 300)
    singles = {"text": errors(large, "text"), "image": errors(middle, "image")}
    outcome = comparison.decide(errors(small), errors(large), singles, RULE, DollarsOutput({}))
    assert outcome.promote and list(outcome.comparisons) == ["champion", "image"], "the best single one errs least"
    beaten = outcome.comparisons["champion"]
    assert (beaten.a, beaten.b) == (pytest.approx(small.mean()), pytest.approx(large.mean()))
    assert beaten.difference == pytest.approx(large.mean() - small.mean()) and 0 < beaten.low < beaten.difference
    assert outcome.reasons[0].startswith(
        f"better than the champion: error {small.mean():.4f} against {large.mean():.4f} on the same 300 test rows, "
        f"less by +{large.mean() - small.mean():.4f} [+"
    )
    worse = comparison.decide(errors(large), errors(small), {}, RULE, DollarsOutput({}))
    assert not worse.promote and worse.reasons[0].startswith("worse than the champion")
    assert not comparison.decide(errors(small), errors(small), {}, RULE, DollarsOutput({})).promote
    assert comparison.decide(
        errors(small + 0.1), errors(small), {}, replace(RULE, margin=0.2), DollarsOutput({})
    ).promote
    assert not comparison.decide(
        errors(small + 0.3), errors(small), {}, replace(RULE, margin=0.2), DollarsOutput({})
    ).promote


@settings(max_examples=20)
@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=1, max_size=60), st.floats(0, 2))
def test_of_any_scores_swapping_negates_and_a_margin_only_helps(
    pairs: list[tuple[float, float]], margin: float
) -> None:
    a, b = (np.array(side) for side in zip(*pairs, strict=True))
    one, other = paired_bootstrap(a, b), paired_bootstrap(b, a)
    assert (one.difference, one.low, one.high) == pytest.approx((-other.difference, -other.high, -other.low), abs=1e-9)
    assert not (one.better and other.better)
    assert one.low - 1e-9 <= one.difference <= one.high + 1e-9
    assert paired_bootstrap(a, b, margin=margin).better or not one.better
    flipped = paired_bootstrap(-a, -b, higher_is_better=False)
    assert one == paired_bootstrap(a, b) == replace(flipped, a=one.a, b=one.b)
    assert not paired_bootstrap(a, a).better and paired_bootstrap(a, a, margin=0.1).better


def test_right_and_wrong_is_exact_as_numbers_too_and_other_scores_are_drawn_close_to_it() -> None:
    a, b = score(400, 0.8), score(400, 0.7, 1)
    exact = paired_bootstrap(a, b)
    assert paired_bootstrap(a.astype(float), b.astype(int)) == exact
    drawn = paired_bootstrap(2.0 * a, 2.0 * b)
    assert (drawn.low / 2, drawn.high / 2) == pytest.approx((exact.low, exact.high), abs=0.006)
    assert drawn.difference / 2 == pytest.approx(exact.difference) and drawn.p == pytest.approx(exact.p, abs=0.03)
    assert mean_figure(a.astype(float)) == mean_figure(a)


def test_a_champion_that_cannot_read_the_labels_is_judged_by_the_challengers() -> None:
    ours, theirs = predictions(np.ones(30, bool)), predictions(np.arange(30) < 10)
    unread = theirs.set_column(theirs.column_names.index("label"), "label", pa.nulls(30, pa.string()))
    assert decide(ours, unread, {}, RULE) == decide(ours, theirs, {}, RULE)


@pytest.mark.parametrize("name", ["n", "loss", "slice", "error_low", "two words"])
def test_a_metric_is_not_called_like_what_stands_beside_it(name: str) -> None:
    with pytest.raises(ValueError, match="a metric is called"):
        Metric(name, lambda label, answer: 0.0)


def test_a_few_rows_of_any_score_are_no_proof() -> None:
    assert not paired_bootstrap([1.0, 2.0, 1.5, 1.0], [0.0] * 4).better
    assert paired_bootstrap([1.0, 2.0, 1.5, 1.0, 1.0], [0.0] * 5).better
