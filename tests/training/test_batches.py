"""Batches that are bounded by the contents of their rows."""

import itertools

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from training.batches import parts


@given(st.lists(st.integers(0, 9), max_size=40), st.integers(1, 12))
@example([0, 0, 0], 2)
def test_rows_are_parted_in_order_and_no_batch_holds_more_than_it_has_to(counts: list[int], most: int) -> None:
    found = parts(counts, most)
    assert list(itertools.chain(*found)) == list(range(len(counts)))
    weights = [max(1, count) for count in counts]
    for part in found:
        assert len(part) > 1 or len(counts) == 1 or most == 1, "no row is alone where there is another one"
        assert sum(weights[n] for n in part) <= most or len(part) <= 3
    if len(found) > 1 and max(weights) > 1:
        held = [sum(weights[n] for n in part) for part in found]
        assert min(held) + max(weights) >= min(most, sum(weights) / len(found)) / 2, "as even as can be"


@given(st.integers(0, 300), st.integers(1, 70))
def test_rows_of_one_content_are_parted_evenly(rows: int, most: int) -> None:
    sizes = [len(part) for part in parts([1] * rows, most)]
    is_odd = most == 2 and rows % 2 and rows > 1
    assert sum(sizes) == rows and len(sizes) == -(-rows // most) - is_odd
    assert not sizes or (max(sizes) - min(sizes) <= 1 and max(sizes) <= most + is_odd)
    assert [n for part in parts(np.ones(rows, np.int64).tolist(), most) for n in part] == list(range(rows))
