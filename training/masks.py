"""COCO's run-length masks: `{"size": [height, width], "counts": ...}`, column by column, runs of 0 and of 1 in turns,
the first of 0; as a list, or compressed into a string (`rleFrString` of COCO's maskApi.c).

Shapes: R runs; H, W rows and columns.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_MOST = 200_000_000  # pixels of a mask


def read_mask(value: Mapping[str, Any]) -> tuple[int, int, list[int]]:
    """Height, width and runs. Raises ValueError: it is no such mask."""
    size, counts = value.get("size"), value.get("counts")
    if not (isinstance(size, list) and len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size)):
        raise ValueError(f"a mask of size {size!r}: expected [height, width]")
    height, width = size
    if height * width > _MOST:
        raise ValueError(f"a mask of {height * width:,} pixels, and {_MOST:,} are the most")
    runs = _uncompressed(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(isinstance(n, int) and n >= 0 for n in runs):
        raise ValueError("a mask whose counts are no list of numbers, nor such a list compressed")
    if sum(runs) != height * width:
        raise ValueError(f"a mask whose counts are of {sum(runs):,} pixels, and its size of {height * width:,}")
    return height, width, runs


def _uncompressed(text: str) -> list[int]:
    """Each number as digits of base 32, the lowest first, in the characters from 0 on; from the fourth on it is the
    difference to the one two before."""
    runs: list[int] = []
    number = place = 0
    for character in text:
        digit = ord(character) - 48
        if not 0 <= digit < 64:
            raise ValueError(f"a mask whose counts have {character!r}, which is none of COCO's characters")
        number |= (digit & 31) << place
        place += 5
        if digit & 32:  # more of it follows
            continue
        number -= (1 << place) if digit & 16 else 0
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
        number = place = 0
    if place:
        raise ValueError("a mask whose counts end within a number")
    return runs


def cropped(height: int, runs: Sequence[int]) -> tuple[tuple[int, int, int, int], list[int]]:
    """The box around what a mask shows (left, top, right, bottom), and the runs within it. Raises ValueError: it shows
    nothing."""
    ends_R = np.cumsum(np.asarray(runs, np.int64))
    shown = np.flatnonzero(runs[1::2]) * 2 + 1
    if not len(shown):
        raise ValueError("a mask that shows nothing")
    first_R, last_R = ends_R[shown - 1], ends_R[shown] - 1
    left, right = int(first_R[0] // height), int(last_R[-1] // height) + 1
    spans = (first_R // height != last_R // height).any()  # from one column into the next
    top, bottom = (0, height) if spans else (int((first_R % height).min()), int((last_R % height).max()) + 1)
    within_R = np.diff(np.clip(ends_R, left * height, right * height), prepend=left * height)
    flat_N = expanded(height, right - left, within_R)[top:bottom].T.ravel()
    changes = np.flatnonzero(np.diff(flat_N)) + 1
    bounds = np.concatenate([[0], changes, [len(flat_N)]])
    return (left, top, right, bottom), [*([0] if flat_N[0] else []), *np.diff(bounds).tolist()]


def expanded(height: int, width: int, runs: Sequence[int] | np.ndarray) -> np.ndarray:
    """The mask, bool (H, W)."""
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T
