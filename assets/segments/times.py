"""Segments whose times are given: each row of a table is one, with what its other columns say of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from assets.segments.listed import ListedOptions, ListedSegments
from assets.times import parse_duration
from training.spans import span
from training.validation import Names


class TimesSegments(ListedSegments):
    """A row says where in a recording the segment starts and ends."""

    modality = "speech"

    @dataclass(frozen=True, kw_only=True)
    class Options(ListedOptions):
        whole: ClassVar = "recording"
        recording: Names | None = None  # column that names the recording: its key; several are one key
        start: str = "start"  # column with seconds, or hh:mm:ss.mmm, from the beginning of the recording
        end: str = "end"

    @property
    def asked(self) -> Sequence[str]:
        return self.options.start, self.options.end

    def cut(self, values: Mapping[str, str | None]) -> str:
        times = []
        for column in self.asked:
            try:
                times.append(parse_duration(values.get(column) or ""))
            except ValueError as error:
                raise ValueError(f"column {column!r}: {error}") from None
        start, end = times
        if end <= start:
            said = f"{self.options.end!r} is {values[self.options.end]}, {self.options.start!r}"
            raise ValueError(f"{said} is {values[self.options.start]}: a segment ends after it starts")
        return span(start, end)
