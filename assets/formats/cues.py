"""Stretches of a recording with what is said in them: what subtitles, annotations and transcripts have in common."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation

from assets.formats.base import Record, TableFile, unstorable
from assets.sources.base import SourceError
from assets.times import LEAST

# Of every such table. `file` is the key of the recording: the name of the table's file without suffix, or what it calls
# the recording; `number` counts the cues of the file from 1, those that are refused too; times are seconds.
COLUMNS = ("file", "number", "start", "end", "text")
_STEP = Decimal("0.000001")  # seconds; what is finer is noise of floats


@dataclass(frozen=True, slots=True)
class Cue:
    """One stretch as its format says it; or why it cannot be read."""

    line: int  # where it starts
    start: Decimal = Decimal(0)  # seconds
    end: Decimal = Decimal(0)
    values: Mapping[str, str | None] = field(default_factory=dict)  # its text, and what else the format has of it
    problem: str | None = None


def records(table: TableFile, beside: Sequence[str], cues: Iterable[Cue]) -> Iterator[Record]:
    """The rows of a file.

    Args:
        beside: columns that its format has beside COLUMNS.
    """
    if table.columns:
        raise SourceError(f"{table}: `columns` name those of a table without header; its own are {', '.join(COLUMNS)}")
    names = table.check([*COLUMNS, *beside])
    for number, cue in enumerate(cues, 1):
        problem = cue.problem or misplaced(cue.start, cue.end) or unstorable_in(cue)
        if problem:
            yield table.broken(cue.line, f"line {cue.line}: {problem}")
            continue
        own = {"file": table.key, "number": str(number), "start": seconds(cue.start), "end": seconds(cue.end)}
        yield table.record(cue.line, dict.fromkeys(names) | own | dict(cue.values))


def misplaced(start: Decimal, end: Decimal) -> str | None:
    """Why there is no such stretch; None where there may be."""
    if not max(abs(start), abs(end)) < LEAST:
        return f"is at {max(start, end):.4g} s, where no recording goes on"
    if start < 0:
        return f"begins at {seconds(start)} s, before the recording does"
    return f"ends at {seconds(end)} s, before it begins at {seconds(start)} s" if end < start else None


def unstorable_in(cue: Cue) -> str | None:
    found = unstorable(cue.values.values())
    return f"holds {found}" if found else None


def seconds(time: Decimal) -> str:
    """As tables say it: 62.5, without what a float adds to it."""
    return f"{time.quantize(_STEP).normalize():f}"


def number(text: str) -> Decimal:
    """Seconds as text. Raises ValueError where it is no number of them."""
    try:
        found = Decimal(text)
    except InvalidOperation:
        found = Decimal("NaN")
    if not (found.is_finite() and abs(found) < LEAST):
        raise ValueError(f"{text[:40]!r} is no time in seconds")
    return found
