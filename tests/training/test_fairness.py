"""Gaps between groups against figures worked out apart, and intervals against the truth they are drawn from."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.bootstrap import resampled_by_group
from training.fairness import fairness
from training.label_metrics import MACRO_F1
from training.metrics import ACCURACY, Metric
from training.records import Fairness, Figure

ROWS = st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=120)


def judged(rows: Any, metric: Metric = ACCURACY) -> Fairness:
    """Args: rows are (group, whether it is answered right)."""
    groups, labels = [group for group, _ in rows], ["xy"[n % 2] for n in range(len(rows))]
    answers = [label if right else "z" for label, (_, right) in zip(labels, rows, strict=True)]
    return fairness(metric, "kind", groups, labels, answers)


@given(ROWS)
def test_each_group_is_told_and_those_of_enough_rows_are_compared(rows: list[tuple[str, bool]]) -> None:
    found = judged(rows)
    assert Fairness.from_json(json.loads(json.dumps(found.to_json()))) == found
    of = {name: [right for group, right in rows if group == name] for name in "abc"}
    assert {one.group: one.rows for one in found.groups} == {name: len(one) for name, one in of.items() if one}
    assert sum(one.rows for one in found.groups) == found.rows == len(rows)
    enough = {name: np.mean(one) for name, one in of.items() if len(one) >= 20}
    assert {one.group for one in found.groups if one.counted} == set(enough)
    for one in found.groups:
        assert one.figure.value == pytest.approx(np.mean(of[one.group]))
        if one.group in enough and len(enough) > 1:
            others = np.mean([right for group, right in rows if group != one.group])
            assert one.rest.value == pytest.approx(enough[one.group] - others)
        else:
            assert one.rest == Figure()
    if len(enough) > 1:
        assert found.gap.value == pytest.approx(max(enough.values()) - min(enough.values())) and found.note is None
        assert found.gap.low is not None and found.gap.high is not None
        assert found.gap.low <= found.gap.value <= found.gap.high
    else:
        assert found.gap == Figure() and found.note is not None and "20 rows" in found.note


def drawn(random: np.random.Generator, chances: dict[str, float], rows: int) -> list[tuple[str, bool]]:
    return [(name, bool(random.random() < chance)) for name, chance in chances.items() for _ in range(rows)]


def test_intervals_hold_the_true_gap_and_equal_groups_seldom_seem_unequal() -> None:
    random, inside, alarms = np.random.default_rng(0), 0, 0
    for _ in range(50):
        far = judged(drawn(random, {"a": 0.9, "b": 0.5}, 50))
        inside += (far.gap.low or 0) <= 0.4 <= (far.gap.high or 0)
        alike = judged(drawn(random, dict.fromkeys("abcd", 0.7), 40))
        alarms += (alike.gap.low or 0) > 0
    assert inside >= 42, "47 expected; fewer than 42 has a chance of 1 in 100"
    assert alarms <= 8, "of 50 the two that differ most, of four that do not differ"


def test_a_figure_of_all_rows_together_is_resampled_by_group() -> None:
    labels, answers = list("aabbaabb"), list("abbbaaba")
    (whole, half) = resampled_by_group(MACRO_F1, labels, answers, [range(8), [0, 1, 2, 3]], seed=1)
    assert whole.shape == half.shape == (2000,) and np.nanstd(half) > np.nanstd(whole) > 0
    found = judged([("a" if n % 3 else "b", n % 5 > 0) for n in range(90)], MACRO_F1)
    assert found.gap.value is not None and found.metric == "macro_f1"


def test_one_group_of_enough_rows_is_told_and_compared_with_none() -> None:
    found = judged([("a", n % 3 > 0) for n in range(25)] + [("b", True)] * 3)
    assert [(one.group, one.counted) for one in found.groups] == [("a", True), ("b", False)]
    assert found.gap == Figure() and found.largest is None and found.note is not None


def test_too_many_values_are_told_and_not_compared() -> None:
    found = judged([(str(n), True) for n in range(13)])
    assert found.groups == [] and found.note is not None and found.note.startswith("13 different values: at most 12")
