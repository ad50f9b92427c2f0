"""Tests of two samples: what is alike is seldom told apart, and what is not is."""

import numpy as np
import pytest

from training.two_samples import Difference, differing, of_categories, of_numbers, of_places


def draws(kind, random, rows, shift=0.0):
    if kind is of_categories:
        return random.choice(["a", "b", "c"], rows, p=[0.5 - shift / 5, 0.3 + shift / 5, 0.2]).tolist()
    if kind is of_numbers:
        return random.normal(shift, 1, rows).tolist()
    return random.normal(shift / 2, 1, (rows, 8))


@pytest.mark.parametrize("kind", [of_categories, of_numbers, of_places])
def test_alike_is_seldom_told_apart_and_a_shift_nearly_always(kind):
    random = np.random.default_rng(0)
    alike = [kind(draws(kind, random, 80), draws(kind, random, 60)) for _ in range(60)]
    assert sum(one.p <= 0.05 for one in alike) <= 8 and all(0 <= one.size <= 1 for one in alike)
    shifted = [kind(draws(kind, random, 200), draws(kind, random, 200, 1.0)) for _ in range(10)]
    assert sum(one.p <= 0.01 for one in shifted) >= 9
    assert np.median([one.size for one in shifted]) > np.median([one.size for one in alike])
    assert kind(draws(kind, np.random.default_rng(1), 80), draws(kind, np.random.default_rng(2), 60)) == kind(
        draws(kind, np.random.default_rng(1), 80), draws(kind, np.random.default_rng(2), 60)
    )


def test_sizes_are_shares():
    assert of_categories(["a"] * 40, ["b"] * 40).size == 1
    assert of_categories(["a"] * 40 + ["b"] * 40, ["a"] * 80).size == pytest.approx(0.5)
    assert of_places(np.zeros((40, 2)), np.ones((40, 2))).size == pytest.approx(1)
    many = [str(n) for n in range(100)]
    assert of_categories(many, many).p == 1, "rare ones are one together"


def test_of_several_tests_the_level_holds_for_all():
    found = {name: Difference(p, 0.1) for name, p in {"a": 0.004, "b": 0.02, "c": 0.001}.items()}
    assert differing(found, 0.01) == ["a", "c"]  # 0.001 <= 0.01 / 3, 0.004 <= 0.01 / 2, 0.02 > 0.01
    assert differing({"a": Difference(0.006, 0.1), "b": Difference(0.02, 0.1)}, 0.01) == []
