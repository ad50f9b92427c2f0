"""Figures against independent implementations, and predictions that must not pass unnoticed."""

import json
import warnings
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score

from training.evaluate import answers_by_sample, calibration, coverage, measure, slices, telling_columns
from training.metrics import ACCURACY, Metric, confusion
from training.outputs.text import TextOutput
from training.records import Answer, Calibration, EvaluationRow, Figure
from training.schema import DATASET, MODALITIES, predictions_schema, subset_name, subsets

ANSWERS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([*"abcx", None])), min_size=1, max_size=60)


def rows_of(pairs: list[tuple[str, str | None]]) -> list[dict[str, Any]]:
    return [
        {"sample_id": f"s{n}", "subset": "text", "label": label, "prediction": answer}
        for n, (label, answer) in enumerate(pairs)
    ]


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, predictions_schema(pa.string()))


def to_json(rows: list[EvaluationRow]) -> list[dict[str, Any]]:
    """As users see them; and nothing is lost on the way there and back."""
    values = json.loads(json.dumps([row.to_json() for row in rows]))
    assert [EvaluationRow.from_json(row) for row in values] == rows
    return values


def figures(pairs: list[tuple[str, str | None]], seed: int = 0) -> dict[str, Any]:
    """As they stand in a row of the evaluation."""
    measured = TextOutput({}).figures(*columns_of(pairs), seed)
    return EvaluationRow(inputs="text", subset="text", slice=None, n=len(pairs), metrics=measured).figures()


def columns_of(pairs: list[tuple[str, str | None]]) -> tuple[list[str], list[str | None]]:
    return [label for label, _ in pairs], [answer for _, answer in pairs]


@given(ANSWERS)
def test_figures_are_those_of_scikit_learn(pairs: list[tuple[str, str | None]]) -> None:
    result = figures(pairs)
    labels, answers = [label for label, _ in pairs], [answer or "" for _, answer in pairs]
    assert result["n"] == len(pairs)
    assert result["accuracy"] == pytest.approx(np.mean([a == b for a, b in zip(labels, answers, strict=True)]))
    assert 0 <= result["low"] <= result["accuracy"] + 1e-12 and result["accuracy"] - 1e-12 <= result["high"] <= 1
    if len(set(labels)) > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that an answer is no label
            expected = balanced_accuracy_score(labels, answers)
        assert result["balanced_accuracy"] == pytest.approx(expected)
        f1 = f1_score(labels, answers, labels=sorted(set(labels)), average="macro", zero_division=0)
        assert result["macro_f1"] == pytest.approx(f1)
    else:
        assert result["macro_f1"] is None


def test_wilson_interval_of_a_published_example() -> None:
    # Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662.
    result = figures([("a", "a")] * 81 + [("a", "b")] * 182)
    assert (round(result["low"], 4), round(result["high"], 4)) == (0.2553, 0.3662)


def test_bootstrap_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    inside = 0
    for _ in range(100):
        labels = random.choice(list("abc"), 150)
        answers = np.where(random.random(150) < 0.7, labels, "x")
        result = figures(list(zip(labels.tolist(), answers.tolist(), strict=True)))
        inside += result["balanced_accuracy_low"] <= 0.7 <= result["balanced_accuracy_high"]
    assert 86 <= inside <= 100  # 95 expected; fewer than 86 has a chance of 1 in 5,000


def test_bootstrap_depends_on_the_seed_alone() -> None:
    pairs: list[tuple[str, str | None]] = [("a", "a"), ("b", "a"), ("b", "b"), ("a", "b")] * 5
    assert figures(pairs, seed=1) == figures(pairs, seed=1) != figures(pairs, seed=2)


def test_space_around_an_answer_is_nothing_and_no_answer_is_wrong() -> None:
    rows = rows_of([("seven", " seven\n"), (" nine", "nine"), ("a", None), ("a", ""), ("Two", "two")])
    answers = answers_by_sample(table(rows)).values()
    assert ACCURACY.scores([row["label"] for row in rows], list(answers)).tolist() == [True, True, False, False, False]


@given(ANSWERS, st.integers(1, 4))
def test_confusion_counts_every_row_once(pairs: list[tuple[str, str | None]], most: int) -> None:
    names, matrix = confusion(*columns_of(pairs), most)
    assert matrix.sum() == len(pairs) and matrix.shape == (len(names), len(names)) and names[-1] == "other"
    labels, answers = [label for label, _ in pairs], [answer or "" for _, answer in pairs]
    np.testing.assert_array_equal(matrix[:-1, :-1], _sklearn_confusion(labels, answers, names[:-1]))


def _sklearn_confusion(labels: list[str], answers: list[str], names: list[str]) -> np.ndarray:
    kept = [(label, answer) for label, answer in zip(labels, answers, strict=True) if {label, answer} <= set(names)]
    if not kept:
        return np.zeros((len(names), len(names)), int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that there is one label
        return confusion_matrix(*zip(*kept, strict=True), labels=names)


def test_labels_that_are_numbers_are_in_their_order() -> None:
    names, _ = confusion(["10", "9", "-1", "same"], ["x"] * 4)
    assert names == ["-1", "9", "10", "same", "other"]


def test_every_subset_is_covered_even_without_rows() -> None:
    rows = [{"sample_id": "s", "subset": "text+image+speech", "label": "a", "prediction": "a"}]
    result = to_json(measure(table(rows), MODALITIES, TextOutput({})))
    assert [row["subset"] for row in result] == [subset_name(chosen) for chosen in subsets(MODALITIES)]
    assert len(result) == 7 and [row["n"] for row in result] == [0] * 6 + [1]
    assert result[0]["accuracy"] is None and result[-1]["accuracy"] == 1
    json.dumps(result)


def test_slices_part_the_rows_that_have_all_inputs() -> None:
    rows = [
        {"sample_id": f"s{n}", "subset": subset, "label": "a", "prediction": "a" if n % 4 else "b"}
        for n in range(40)
        for subset in ("text", "image", "text+image")
    ]
    kinds = {"kind": {f"s{n}": "even" if n % 2 == 0 else "odd" for n in range(40)} | {"of another split": "third"}}
    measured = to_json(measure(table(rows), ("text", "image"), TextOutput({}), kinds))
    result = {row["slice"]: row for row in measured if row["slice"]}
    assert set(result) == {"kind=even", "kind=odd"}
    assert result["kind=even"]["n"] == 20 and result["kind=even"]["accuracy"] == 0.5
    assert result["kind=odd"]["accuracy"] == 1 and result["kind=odd"]["subset"] == "text+image"


def test_a_subset_is_measured_on_its_own_rows_and_filled_on_all() -> None:
    # 10 rows, of which 4 have a picture; the majority answer "a" is right in 6 of them.
    labels = {f"s{n}": "a" if n < 6 else "b" for n in range(10)}
    rows = [
        {"sample_id": f"s{n}", "subset": subset, "label": labels[f"s{n}"], "prediction": "b"}
        for subset, asked in (("text", range(10)), ("image", range(4, 8)), ("text+image", range(10)))
        for n in asked
    ]
    columns = {"half": {f"s{n}": str(n % 2) for n in range(10)}}
    measured = measure(table(rows), ("text", "image"), TextOutput({}), columns, labels, "a")
    by_subset = {row.subset: row for row in measured if row.slice is None}
    image = by_subset["image"]
    assert (image.n, image.main.value) == (4, 0.5), "of s4 to s7, two are b"
    assert image.filled.value == pytest.approx((2 + 4) / 10), "and s0 to s3 are a, s8 and s9 are not"
    assert image.filled.low is not None and image.filled.low < 0.6
    assert by_subset["text"].filled == by_subset["text"].main
    # 0.6 without any, 0.4 of text, 0.6 of the picture, 0.4 of both.
    assert by_subset["text+image"].contributions == pytest.approx({"text": -0.2, "image": 0})
    assert not by_subset["text"].contributions
    even = next(row for row in measured if row.slice == "half=0")
    assert sum(even.contributions.values()) == pytest.approx((2 - 3) / 5), "from 3 of 5 rows to 2"
    assert all(row.filled == Figure() for row in measured if row.slice is not None)
    assert all(row.filled == Figure() for row in measure(table(rows), ("text", "image"), TextOutput({})))


def test_an_answer_that_is_no_number_is_none() -> None:
    def error(label: float, answer: float | None) -> float:
        return 9.0 if answer is None else abs(label - answer)

    metric = Metric("error", error, higher_is_better=False)
    assert list(metric.scores([1.0, 1.0, 1.0], [float("nan"), None, 3.0])) == [9.0, 9.0, 2.0]


def test_columns_with_few_values_become_slices() -> None:
    rows = [
        {
            "sample_id": f"s{n}",
            "attributes": json.dumps(
                {"kind": "sum" if n % 2 else "difference", "id": str(n), "same": "1", "split": n % 2}
            ),
            "text_id": "t",
            "image_id": "i" if n % 3 else None,
        }
        for n in range(30)
    ]
    result = slices(
        pa.Table.from_pylist([*rows, {"sample_id": "bare", "attributes": None, "text_id": "t"}], DATASET),
        TextOutput({}),
    )
    assert set(result) == {"kind", "given"}
    assert result["given"]["s0"] == "text" and result["given"]["s1"] == "text+image" and "bare" not in result["kind"]


def test_columns_that_give_the_label_away_are_no_slices() -> None:
    def attributes(n: int) -> dict[str, Any]:
        label = n % 3
        nearly = (label + 1) % 3 if n == 7 else label  # wrong in one row of 60, where the usual label is in 40
        half = label if n % 2 else 0
        return {"code": f"c{label}", "finding": str(nearly), "half": half, "kind": n % 4, "same_twice": min(label, 1)}

    rows = [
        {"sample_id": f"s{n}", "label": "abc"[n % 3], "text_id": "t", "attributes": json.dumps(attributes(n))}
        for n in range(60)
    ]
    unlabelled = {"sample_id": "bare", "text_id": "t", "attributes": json.dumps({"code": "c0"})}
    dataset = pa.Table.from_pylist([*rows, unlabelled], DATASET)
    named = slices(dataset, TextOutput({}), ["code", "half", "absent"])
    assert set(named) == {"code", "half", "kind", "same_twice"}, "what is sensitive is looked at, whatever it tells"
    assert named["half"]["bare"] == "(none)" and named["half"]["s0"] == "0", "and who says nothing is a group, too"
    assert telling_columns(dataset, TextOutput({})) == ["code", "finding"]
    assert set(slices(dataset, TextOutput({}))) == {"half", "kind", "same_twice"}
    alike = pa.Table.from_pylist([row | {"label": "a"} for row in rows], DATASET)
    assert telling_columns(alike, TextOutput({})) == [], "of one label nothing can be given away"


SURE = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from(["a", "b", None]), st.none() | st.floats(0, 1)), min_size=1
)


@given(SURE)
def test_the_curve_is_what_the_calibration_error_is_the_mean_of(
    rows: list[tuple[str, str | None, float | None]],
) -> None:
    told = [r | {"probability": row[2]} for r, row in zip(rows_of([row[:2] for row in rows]), rows, strict=True)]
    halves = {"half": {f"s{n}": "even" if n % 2 == 0 else "odd" for n in range(len(rows))}}
    found = {line.slice: line for line in calibration(table(told), TextOutput({}), halves)}
    assert [line.metric for line in found.values()] == ["ece"] * len(found)
    assert found[None].rows == len(rows) == sum(line.rows for name, line in found.items() if name)
    for line in found.values():
        assert line.rows == sum(one.rows for one in line.bins)
        gaps = [one.rows * abs(one.claimed - (one.right.value or 0)) for one in line.bins]
        assert line.error.value == pytest.approx(sum(gaps) / line.rows, abs=1e-6)
        assert [one.claimed for one in line.bins] == sorted(one.claimed for one in line.bins)
        assert Calibration.from_json(json.loads(json.dumps(line.to_json()))) == line


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"subset": "text+smell"}, "'text\\+smell'.*expected one of text"),
        ({"label": None}, "'s1' has no label"),
        ({"sample_id": "s0"}, "'s0' was predicted twice"),
    ],
)
def test_wrong_predictions_are_named(change: dict[str, Any], words: str) -> None:
    rows = rows_of([("a", "a"), ("b", "b")])
    with pytest.raises(ValueError, match=words):
        measure(table([rows[0], rows[1] | change]), ("text",), TextOutput({}))


def test_the_surest_answers_are_counted_and_measured() -> None:
    answers = [Answer("a", chance) for chance in (0.9, 0.8, 0.7, 0.4)] + [Answer("a")]
    every, some, few, none = coverage(ACCURACY, ["a", "a", "b", "b", "a"], answers, [0.0, 0.7, 0.85, 0.95])
    assert (every.rows, every.of, every.share, every.value) == (5, 5, 1.0, pytest.approx(3 / 5))
    assert (some.rows, some.value) == (4, pytest.approx(3 / 4)), "one without a probability is given"
    assert (few.rows, few.value, none.rows, none.value) == (2, 1.0, 1, 1.0)
    assert coverage(ACCURACY, ["a"], [Answer("a", 0.5)], [0.6])[0].value is None
