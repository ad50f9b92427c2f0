"""Annotations of Praat: interval and point tiers, in its long and its short text form
(https://www.fon.hum.uva.nl/praat/manual/TextGrid_file_formats.html).

Of such a file only what stands free counts: numbers, strings in quotes and flags in <>; the long form says beside what
they are. So both are read alike. An interval or point without text is none.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal

from assets.formats.base import Record, TableFile
from assets.formats.cues import Cue, records

# Strings (and what goes on right behind the quote, which then was a letter), comments, other words.
_TOKEN = re.compile(r'"((?:[^"]|"")*)"(\S[^\n]*)?|![^\n]*|(\S+)')
_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?([eE][-+]?\d\d?)?", re.ASCII)
_TIMES = {"IntervalTier": 2, "TextTier": 1}  # numbers before each text
_HEADER = 3  # numbers of a tier: where it begins and ends, and how many intervals or points it has
# What stands between two texts, within one: its quote was never closed, or a quote in it is not doubled.
_SWALLOWED = re.compile(r"\n\s*(\w+ = )?[-+]?\d+(\.\d*)?\s*(\n|\Z)")

_Token = tuple[int, Decimal | str | None]


def read(table: TableFile) -> Iterator[Record]:
    with table.open_text() as file:
        text = file.read().replace("\r\n", "\n").replace("\r", "\n")
    yield from records(table, ("tier",), _cues(_tokens(text)))


def _tokens(text: str) -> Iterator[_Token]:
    """Lines, and the numbers and strings in quotes that stand there; None for a string that does not end."""
    line, at = 1, 0
    for found in _TOKEN.finditer(text):
        line, at = line + text.count("\n", at, found.start()), found.start()
        if found[1] is not None:
            yield line, None if found[2] else found[1].replace('""', '"')
        elif found[3] and _NUMBER.fullmatch(found[3]):
            yield line, Decimal(found[3])


@dataclass
class _Tier:
    kind: str
    name: str | None = None
    header: list[Decimal] = field(default_factory=list)
    found: int = 0  # texts so far
    numbers: list[Decimal] = field(default_factory=list)  # since the last text
    line: int = 0  # of the first of them

    def add(self, line: int, value: Decimal) -> None:
        if len(self.header) < _HEADER:
            self.header.append(value)
            return
        self.line = self.line if self.numbers else line
        self.numbers.append(value)

    def cue(self, line: int, text: str | None) -> Cue:
        times, line, wanted = self.numbers, self.line if self.numbers else line, _TIMES[self.kind]
        self.numbers, self.found = [], self.found + 1
        if len(times) != wanted:
            return Cue(line, problem=f"has {len(times)} times before its text, expected {wanted}")
        if text is None or _SWALLOWED.search(text):
            return Cue(line, problem='has a text that does not end at its quote: double a quote that is a letter ("")')
        return Cue(line, times[0], times[-1], {"text": text.strip(), "tier": self.name})

    def ending(self, line: int) -> Iterator[Cue]:
        """That something lacks at its end."""
        if len(self.header) < _HEADER or self.found < self.header[-1]:
            yield Cue(line, problem=f"tier {self.name!r} ends after {self.found} texts, before all that it announced")


def _cues(tokens: Iterator[_Token]) -> Iterator[Cue]:
    form, kind = (str(next(tokens, (0, ""))[1]) for _ in range(2))
    if not form.startswith("ooTextFile") or kind != "TextGrid":
        yield Cue(1, problem="is no TextGrid in text form: save it as one in Praat")
        return
    tier: _Tier | None = None
    line = 1
    for line, value in tokens:
        if isinstance(value, Decimal):
            if tier is not None:
                tier.add(line, value)
        elif value in _TIMES and (tier is None or not tier.numbers):
            if tier is not None:
                yield from tier.ending(line)
            tier = _Tier(value)
        elif tier is not None and tier.name is None:
            tier.name = value
        elif tier is not None and not (cue := tier.cue(line, value)).problem and not cue.values["text"]:
            continue
        elif tier is not None:
            yield cue
    if tier is not None:
        yield from tier.ending(line)
