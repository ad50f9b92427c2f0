"""The gate never promotes what is not better, and says why in words."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training import comparison
from training.bootstrap import paired_bootstrap
from training.comparison import Decision
from training.fusion_check import FusionCheck
from training.metrics import ACCURACY, Metric, mean_figure
from training.outputs.text import TextOutput
from training.records import Means, Standing
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


def decide(
    challenger: pa.Table,
    champion: pa.Table | None,
    singles: dict[str, pa.Table],
    rule: PromotionSettings,
    majority: str = "no",  # which is wrong in every row
    fusion: FusionCheck | None = None,
) -> Decision:
    return comparison.decide(challenger, champion, singles, majority, rule, TextOutput({}), fusion)


def beside(decision: Decision) -> dict[str, Standing]:
    return {standing.name: standing for standing in decision.standings}


def off_by(label: float, answer: float | None) -> float:
    return 1000.0 if answer is None else abs(label - answer)


class DollarsOutput(TextOutput):
    """Answers are numbers; the mean error is in their unit, and less is better."""

    metrics = (Metric("error", off_by, higher_is_better=False), ACCURACY)
    arrow_type = pa.float64()


def errors(values: Any, subset: str = "text+image") -> pa.Table:
    rows = [
        {"sample_id": f"s{n}", "subset": subset, "label": 0.0, "prediction": float(value)}
        for n, value in enumerate(values)
    ]
    return pa.Table.from_pylist(rows, predictions_schema(pa.float64()))


def score(n: int, rate: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(n) < rate


@given(st.lists(st.booleans(), min_size=1, max_size=200), st.floats(0.01, 0.5))
def test_identical_answers_are_not_better_and_within_a_margin_if_rows_can_tell(
    right: list[bool], margin: float
) -> None:
    outcome = paired_bootstrap(right, right)
    assert not outcome.better and outcome.low == outcome.high == outcome.difference == 0
    # One that loses a row with a chance of `margin` would have lost none of so many with the chance p.
    within = paired_bootstrap(right, right, margin=margin)
    assert within.p == pytest.approx((1 - margin) ** len(right)) and within.better == (within.p < 0.05)
    assert paired_bootstrap(right * 300, right * 300, margin=margin).better


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
    assert outcome.promote and list(beside(outcome)) == ["image", "majority"]
    assert outcome.reasons[-1] == "there was no champion before"
    assert not decide(predictions(image, "text+image"), None, singles, RULE).promote


def test_a_better_model_must_beat_champion_and_single_modality() -> None:
    new, old, image = score(800, 0.95), score(800, 0.85, 1), score(800, 0.97, 2)
    assert decide(predictions(new), predictions(old), {}, RULE).promote
    outcome = decide(predictions(new), predictions(old), {"image": predictions(image, "image")}, RULE)
    assert not outcome.promote and len(outcome.reasons) == 3
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
    champion = beside(outcome)["champion"].all
    assert champion.low == champion.high == 0 and not outcome.promote


def test_other_rows_are_refused() -> None:
    right = [True] * 10
    with pytest.raises(ValueError, match=r"champion were not scored on the same test rows \(2 stand"):
        decide(predictions(right), predictions(right, ids=["other", *(f"s{n}" for n in range(1, 10))]), {}, RULE)
    with pytest.raises(ValueError, match="2 predictions of 1 samples"):
        decide(predictions(right[:2], ids=["a", "a"]), None, {}, RULE)
    with pytest.raises(ValueError, match="at least one"):
        paired_bootstrap([], [])


def test_a_modality_that_no_test_row_has_is_not_compared() -> None:
    fused, nothing = np.ones(20, bool), predictions([], "speech")
    outcome = decide(predictions(fused), None, {"image": predictions(~fused, "image"), "speech": nothing}, RULE)
    assert outcome.promote and list(beside(outcome)) == ["image", "majority"]
    assert outcome.reasons[0] == "speech alone was not compared: no test row has speech"
    with pytest.raises(ValueError, match="at least one"):
        decide(nothing, None, {"speech": nothing}, RULE)


def test_a_single_modality_answers_as_most_of_training_where_its_input_is_missing() -> None:
    # 30 rows: an x-ray in all, a note in 12; the majority answer "yes" is right in 20 of the 30.
    ids = [f"s{n}" for n in range(30)]
    labels = ["yes" if n < 20 else "no" for n in range(30)]

    def table(subset: str, answers: dict[str, str]) -> pa.Table:
        rows = [
            {"sample_id": i, "subset": subset, "label": label, "prediction": answers[i]}
            for i, label in zip(ids, labels, strict=True)
            if i in answers
        ]
        return pa.Table.from_pylist(rows, predictions_schema(pa.string()))

    fused = table("text+image", dict.fromkeys(ids, "yes"))  # says nothing but the majority: 20 of 30
    notes = table("text", dict(list(zip(ids, labels, strict=True))[14:26]))  # all 12 right: 6 yes, 6 no
    outcome = decide(fused, None, {"text": notes}, RULE, majority="yes")
    note = beside(outcome)["text"]
    assert (note.all.b, note.all.rows) == (pytest.approx(26 / 30), 30), "its 12, and the majority's 14 of the other 18"
    assert note.answered == Means(a=0.5, b=1.0, rows=12) and note.all.a == pytest.approx(20 / 30)
    assert not outcome.promote and outcome.reasons[0].startswith(
        "worse than the best single modality (text): accuracy 0.6667 against 0.8667 on the same 30 test rows"
    )
    assert outcome.reasons[0].endswith(
        "; on 18 of them it has no answer, and the majority's counts; on the other 12 it is 0.5000 against 1.0000"
    )
    assert beside(outcome)["majority"].all.difference == 0
    with pytest.raises(ValueError, match="image"):
        decide(fused.slice(0, 10), None, {"image": fused}, RULE)


def test_the_majority_answer_is_a_rival() -> None:
    usual = predictions(np.arange(100) < 60)
    refused = decide(usual, None, {}, RULE, majority="yes")
    assert not refused.promote, "who is right in all rows is ahead of 60 of 100"
    assert refused.reasons[0].startswith("worse than the majority answer (yes): accuracy 0.6000 against 1.0000 on the")
    same = pa.table({**{name: usual[name] for name in usual.schema.names}, "label": ["yes"] * 60 + ["no"] * 40})
    same = same.set_column(3, "prediction", pa.array(["yes"] * 100)).cast(usual.schema)
    tie = decide(same, None, {}, RULE, majority="yes")
    assert not tie.promote and tie.reasons[0].startswith("not shown to be better than the majority answer (yes)")
    assert decide(same, None, {}, replace(RULE, must_beat=("champion",)), majority="yes").promote
    # A margin is for the champion only.
    assert not decide(same, same, {}, replace(RULE, margin=0.3), majority="yes").promote
    hidden = decide(usual, None, {}, RULE, majority="x\n" * 500).reasons[0]
    assert len(hidden) < 300 and "(x x x x" in hidden and "…" in hidden and "\n" not in hidden


def test_an_empty_rule_is_said() -> None:
    outcome = decide(predictions([True] * 9), None, {}, replace(RULE, must_beat=("champion",)))
    assert outcome.promote and outcome.reasons[0] == "nothing was compared: promotion.must_beat is champion"
    assert "must_beat is empty" in decide(predictions([True]), None, {}, replace(RULE, must_beat=())).reasons[0]


def test_with_few_rows_it_is_said_how_many_must_differ() -> None:
    four, none = predictions([True] * 4), predictions([False] * 4)
    few = decide(four, none, {}, RULE)
    assert not few.promote
    assert few.reasons[0].endswith("; the two differ on 4 rows, and at least 5 must be better, and none worse")
    assert decide(predictions([True] * 5), predictions([False] * 5), {}, RULE).promote
    right = np.ones(100, bool)
    alike = decide(predictions(right), predictions(right), {}, replace(RULE, margin=0.02))
    assert not alike.promote and alike.reasons[0].endswith("; with a margin of 0.02 at least 149 rows are needed")
    right = np.ones(149, bool)
    assert decide(predictions(right), predictions(right), {}, replace(RULE, margin=0.02)).promote


def test_so_many_rows_are_needed_as_can_prove_it() -> None:
    for confidence, needed in ((0.5, 2), (0.9, 4), (0.95, 5), (0.99, 7)):
        enough, few = ([1] * n for n in (needed, needed - 1))
        assert paired_bootstrap(enough, [0] * needed, confidence).better
        assert not paired_bootstrap(few, [0] * (needed - 1), confidence).better
        assert paired_bootstrap(few, few, confidence).needed == needed
    for margin, needed in ((0.02, 149), (0.2, 14), (1.0, 1), (3.0, 1)):
        assert paired_bootstrap([1] * needed, [1] * needed, margin=margin).better
        assert paired_bootstrap([1], [1], margin=margin).needed == needed
    assert not paired_bootstrap([1] * 148, [1] * 148, margin=0.02).better
    assert paired_bootstrap([2.5], [2.5], margin=0.02).needed == 5, "of other scores than right and wrong"
    # One loss among 20 rows is seen by chance alone, where one of five would be lost: 0.069.
    assert not paired_bootstrap([1] * 19 + [0], [1] * 20, margin=0.2).better
    assert paired_bootstrap([1] * 19 + [0], [1] * 20, margin=0.2).p == pytest.approx(0.8**20 + 20 * 0.2 * 0.8**19)


def test_a_champion_without_an_answer_answers_as_most_of_training() -> None:
    ours, right = predictions(np.arange(100) < 50), predictions(np.ones(100, bool))
    silent = [None] * 40 + ["yes"] * 60
    champion = right.set_column(3, "prediction", pa.array(silent, pa.string()))
    outcome = decide(ours, champion, {}, RULE, majority="yes")
    standing = beside(outcome)["champion"]
    assert standing.all.b == 1 and standing.answered == Means(a=pytest.approx(1 / 6), b=1.0, rows=60)
    assert "on 40 of them it has no answer, and the majority's counts" in outcome.reasons[0]


def test_a_model_that_diverged_is_no_champion() -> None:
    random = np.random.default_rng(0)
    champion = errors(random.gamma(2, 1, 100))
    for broken in (float("nan"), float("inf")):
        outcome = comparison.decide(errors([broken] * 100), champion, {}, 50.0, RULE, DollarsOutput({}))
        assert not outcome.promote and outcome.reasons[0].startswith("worse than the champion: error 1000.0000 against")
    with pytest.raises(ValueError, match="3 scores are no finite numbers"):
        paired_bootstrap([float("nan")] * 3, [1.0] * 3)
    endless = Metric("error", lambda label, answer: float("inf"))
    with pytest.raises(ValueError, match=r"error of no answer to 1\.0 is inf"):
        endless.of(1.0, 2.0)


def test_a_model_that_does_not_listen_is_stopped_where_that_is_asked() -> None:
    deaf, right = FusionCheck(False, "the model is not shown to listen"), predictions(np.ones(20, bool))
    assert decide(right, None, {}, RULE, fusion=deaf).promote, "a warning by default"
    refused = decide(right, None, {}, replace(RULE, unused_fusion="block"), fusion=deaf)
    assert not refused.promote
    assert refused.reasons[-1] == "the model is not shown to listen (promotion.unused_fusion is block)"
    hears = FusionCheck(True, "it listens")
    assert decide(right, None, {}, replace(RULE, unused_fusion="block"), fusion=hears).promote


def test_where_less_is_better_the_smaller_mean_wins() -> None:
    random = np.random.default_rng(0)
    small, large, middle = random.gamma(2, 1, 300), random.gamma(2, 2, 300), random.gamma(2, 1.5, 300)
    singles = {"text": errors(large, "text"), "image": errors(middle, "image")}
    outcome = comparison.decide(errors(small), errors(large), singles, 50.0, RULE, DollarsOutput({}))
    assert outcome.promote and list(beside(outcome)) == ["champion", "image", "majority"]
    beaten = beside(outcome)["champion"].all
    assert (beaten.a, beaten.b) == (pytest.approx(small.mean()), pytest.approx(large.mean()))
    assert beaten.difference == pytest.approx(large.mean() - small.mean()) and 0 < beaten.low < beaten.difference
    assert outcome.reasons[0].startswith(
        f"better than the champion: error {small.mean():.4f} against {large.mean():.4f} on the same 300 test rows, "
        f"less by +{large.mean() - small.mean():.4f} [+"
    )
    worse = comparison.decide(errors(large), errors(small), {}, 50.0, RULE, DollarsOutput({}))
    assert not worse.promote and worse.reasons[0].startswith("worse than the champion")
    assert not comparison.decide(errors(small), errors(small), {}, 50.0, RULE, DollarsOutput({})).promote
    assert comparison.decide(
        errors(small + 0.1), errors(small), {}, 50.0, replace(RULE, margin=0.2), DollarsOutput({})
    ).promote
    assert not comparison.decide(
        errors(small + 0.3), errors(small), {}, 50.0, replace(RULE, margin=0.2), DollarsOutput({})
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
    assert not paired_bootstrap(a, a).better
    assert paired_bootstrap(a + 7, a + 7, margin=0.1).better == (len(a) >= 5)  # above 1: of no share


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


def test_the_worst_slice_can_keep_a_model_back() -> None:
    right = np.arange(100) >= 12  # s0 to s11 are wrong
    columns = {"half": {f"s{n}": "first" if n < 40 else "rest" for n in range(100)}}
    columns["few"] = {f"s{n}": "wrong" if n < 12 else "other" for n in range(100)}

    def judged(asked: float | None, slices: Any = columns, rule: PromotionSettings = RULE) -> Decision:
        rule = replace(rule, worst_slice=asked)
        return comparison.decide(predictions(right), None, {}, "no", rule, TextOutput({}), None, slices)

    kept, passed = judged(0.8), judged(0.7)
    assert not kept.promote and kept.reasons[-1] == (
        "the worst slice is not within promotion.worst_slice (at least 0.8): half=first has accuracy 0.7000 (n = 40; 3 "
        "slices)"
    )
    assert passed.promote and passed.reasons[-1].startswith("the worst slice is within promotion.worst_slice (at least")
    assert judged(None).promote and len(judged(None).reasons) == len(kept.reasons) - 1
    assert "no slice of the test rows has 20 rows" in judged(0.8, {}).reasons[-1] and judged(0.8, {}).promote
    errors_rate = replace(RULE, metric="cer")
    assert judged(0.9, rule=errors_rate).promote and not judged(0.1, rule=errors_rate).promote, "of errors, at most"
