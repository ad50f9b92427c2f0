"""Stretches of a recording as the cuts that name them: `1500000-3250000`, microseconds from its beginning."""

import re

_SPAN = re.compile(r"(\d+)-(\d+)")
SECOND = 1_000_000  # microseconds


def span(start: int, end: int) -> str:
    """The cut from one microsecond to another."""
    return f"{start}-{end}"


def frames_of(cut: str, rate: int) -> tuple[int, int]:
    """The first frame of a span, and the one behind its last, of a recording of so many frames a second.

    Raises:
        ValueError: the cut is no span.
    """
    if (found := _SPAN.fullmatch(cut)) is None:
        raise ValueError(f"{cut!r} is no stretch of a recording: materialize the manifest anew")
    start, end = ((2 * int(time) * rate + SECOND) // (2 * SECOND) for time in found.groups())  # rounded
    return start, end
