"""Shapley values, beside the definition over orders and their axioms."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.shapley import shapley_values

INPUTS = ("image", "speech", "text")
SETS = [frozenset(chosen) for size in range(4) for chosen in itertools.combinations(INPUTS, size)]


@given(st.lists(st.floats(-1, 1), min_size=8, max_size=8))
def test_they_are_what_each_adds_on_average_over_all_orders(values):
    worth = dict(zip(SETS, values, strict=True))
    added = dict.fromkeys(INPUTS, 0.0)
    for order in itertools.permutations(INPUTS):
        for n, one in enumerate(order):
            added[one] += (worth[frozenset(order[: n + 1])] - worth[frozenset(order[:n])]) / 6
    found = shapley_values(worth)
    assert found == pytest.approx(added, abs=1e-12)
    assert sum(found.values()) == pytest.approx(worth[SETS[-1]] - worth[SETS[0]], abs=1e-12)


def test_one_input_has_all_of_it_and_one_that_adds_nothing_nothing():
    assert shapley_values({frozenset(): 0.25, frozenset({"text"}): 0.75}) == {"text": 0.5}
    worth = {given: 0.3 + 0.5 * ("image" in given) for given in SETS}
    assert shapley_values(worth) == pytest.approx({"image": 0.5, "speech": 0, "text": 0})
