"""Shapley values, beside the definition over orders and their axioms."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.records import Answer, Answered
from training.schema import subset_name
from training.shapley import answer_contributions, shapley_values

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


def answered(sample, chances, present=INPUTS):
    """Answered yes with these chances of it, by the inputs; those that the sample lacks change nothing."""
    rows = []
    for some in SETS:
        if shown := some & set(present):
            yes = chances[shown]
            best = tuple(sorted({"yes": yes, "no": 1 - yes}.items(), key=lambda one: -one[1]))
            rows.append(Answered(sample, subset_name(some), "yes", Answer(*best[0], best)))
    return rows


@given(st.lists(st.floats(0.01, 0.99), min_size=8, max_size=8), st.sets(st.sampled_from(INPUTS), min_size=1))
def test_an_answers_probability_is_the_sum_of_what_inputs_add_to_its_share_of_the_labels(values, present):
    rows = answered("s", dict(zip(SETS, values, strict=True)), present)
    found = answer_contributions(rows, ["yes", "no", "no", "no"], INPUTS)["s"]
    said = rows[-1].answer
    usual = 0.25 if said.prediction == "yes" else 0.75
    assert sum(found.values()) == pytest.approx(said.probability - usual)
    assert set(found) == set(INPUTS) and all(abs(found[name]) < 1e-12 for name in set(INPUTS) - present)


def test_what_a_subset_does_not_say_is_not_guessed():
    rows = [
        Answered("s", "text", "a", Answer("a", 0.6, (("a", 0.6),))),
        Answered("s", "image", "a", Answer("b", 0.9, (("b", 0.9),))),
        Answered("s", "text+image", "a", Answer("a", 0.7, (("a", 0.7),))),
        *(Answered("list", subset, ["a"], Answer(["a"], 0.5)) for subset in ("text", "image", "text+image")),
    ]
    assert answer_contributions(rows, ["a", "b"], ("text", "image")) == {}, "the picture alone says nothing of a"
    known = [*rows[:1], Answered("s", "image", "a", Answer("b", 0.9, (("b", 0.9), ("a", 0.1)))), rows[2]]
    found = answer_contributions(known, ["a", "b"], ("text", "image"))["s"]
    assert found == pytest.approx({"text": (0.6 - 0.5 + 0.7 - 0.1) / 2, "image": (0.1 - 0.5 + 0.7 - 0.6) / 2})
