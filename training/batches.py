"""Rows that are read together: a batch holds so many contents of a modality at most, however many of them a row has."""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from training.processor import Row, contents


def counted(rows: Sequence[Row], modalities: Sequence[str]) -> list[int]:
    """Of each row how many contents it has of the one of these modalities that it has most of."""
    return [max(len(contents(row, m)) for m in modalities) for row in rows]


def parts(counts: Sequence[int], most: int) -> list[list[int]]:
    """The numbers of the rows of each batch: in order, as even as can be, and no row alone where there is another one.

    Args:
        counts: of each row, how many contents it has of the modality that it has most of.
        most: contents of a batch; three rows may have more.
    """
    weights = np.maximum(1, np.asarray(counts, np.int64))
    if not len(weights):
        return []
    number = -(-int(weights.sum()) // most)
    if weights.max() == 1:
        if most > 1:
            number = min(number, max(1, len(weights) // 2))  # of two each, an odd one would be alone
        return [part.tolist() for part in np.array_split(np.arange(len(weights)), number)]
    found, held = [[0]], int(weights[0])
    even = weights.sum() / number
    for row, (weight, before) in enumerate(zip(weights[1:].tolist(), accumulate(weights.tolist()), strict=False), 1):
        is_full = held + weight > most or before >= even * len(found)
        if is_full and len(found[-1]) > 1:
            found.append([row])
            held = weight
        else:
            found[-1].append(row)
            held += weight
    if len(found) > 1 and len(found[-1]) == 1:
        if len(found[-2]) > 2:
            found[-1].insert(0, found[-2].pop())
        else:
            last = found.pop()
            found[-1] += last
    return found
