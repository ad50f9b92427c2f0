"""Segments whose times are given: each row of a table is one, with what its other columns say of it."""

import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from assets.findings import listed as words
from assets.formats.base import Record
from assets.keys import key_of
from assets.names import as_object, normalize
from assets.segments.base import Segments
from assets.sources.base import Entry, SourceError
from assets.table_settings import TableSettings
from assets.tables import read_table, table_entries, table_files
from assets.times import parse_duration
from training.spans import span
from training.validation import Names

_SHOWN = 3  # recordings of many in a message
NO_SEGMENTS = "no_segments"  # the reason of a recording that no row names


class TimesSegments(Segments):
    """A row names a recording, by its key or by its file, and where in it the segment starts and ends.

    Without a `table` of its own, each item of the source is one segment, and the columns of its own row say its times.
    A recording that no row names is unmatched.
    """

    finds = False

    @dataclass(frozen=True, kw_only=True)
    class Options(TableSettings):
        table: str | None = None  # one row a segment; default: the source's own
        columns: Names = ()  # names of a table without header
        recording: Names | None = None  # column that names the recording: its key; several are one key
        key: Names | None = None  # column that is the segment's key; default: it has its recording's
        start: str = "start"  # column with seconds, or hh:mm:ss.mmm, from the beginning of the recording
        end: str = "end"

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.table is not None and not self.recording:
                raise ValueError("table: name its column that names the recording, under `recording`")
            for name in ("columns", "recording", "key", "delimiter", "quote", "rows", "missing"):
                if self.table is None and getattr(self, name):
                    raise ValueError(f"{name} is {getattr(self, name)!r}, expected nothing unless there is a `table`")

    def entries(self, listed: Iterator[Entry], name: str, root: Path) -> Iterator[Entry]:
        if self.options.table is None:
            yield from map(self._of_own_row, listed)
            return
        there = list(listed)  # in full, since a row may name any of them
        items = [entry for entry in there if entry.reason is None]
        named = _by_name(items)
        cut, missing = set[int](), list[Entry]()
        yield from (entry for entry in there if entry.reason is not None)
        for record in self._records(root):
            found, refused = self._of_row(record, items, named)
            cut.update(found)
            missing += [refused] if refused is not None and refused.reason == "not_found" else []
            yield from [refused] if refused is not None else found.values()
        if missing and not cut:
            some = words([entry.key or entry.where for entry in items]) if items else "none that can be read"
            raise SourceError(
                f"{missing[0].uri}: none of its rows names a recording of the source: correct segments.recording or "
                f"its cells. The column has {words([row.member or '' for row in missing])}; the recordings are {some}"
            )
        for n, entry in enumerate(items):
            if n not in cut:
                yield entry.refuse(NO_SEGMENTS, f"no row of {self.options.table} names this recording")

    def exists(self, root: Path) -> bool:
        table = self.options.table
        return table is None or any(file.exists() for file in table_files(table, root, self.options))

    def signature(self, root: Path) -> Sequence[Any]:
        table = self.options.table
        files = [] if table is None else table_entries(table, root, self.options)
        return [(file.uri, file.size, file.version) for file in files]

    def _records(self, root: Path) -> Iterator[Record]:
        options = self.options
        asked = [*options.recording, *(options.key or ()), options.start, options.end]
        return read_table(options.table, options, asked, root=root, columns=options.columns)

    def _of_row(
        self, record: Record, items: Sequence[Entry], named: Mapping[str, list[int]]
    ) -> tuple[dict[int, Entry], Entry | None]:
        """The segment that a row says, by the number of its recording (several may have one key), or why it is none."""
        options = self.options
        called = None if record.problem is not None else key_of(record.values, options.recording)
        cut, problem = self._cut(record.values) if record.problem is None else (None, record.problem)
        numbers = named.get(called or "", [])
        key = key_of(record.values, options.key) if options.key else called
        refused = Entry(key, record.table, called, record.line, listing=record.where)
        if record.problem is not None or (called is not None and numbers and problem is not None):
            said = f"line {record.line}, {problem}" if record.problem is None else problem
            refused.reason, refused.message = "malformed", f"{record.table}: {said}"
        elif called is None:
            refused.reason = "absent"
            refused.message = f"{record.where}: column {'/'.join(options.recording)!r} names no recording"
        elif not numbers:
            refused.reason, refused.message = "not_found", f"{record.where}: {called!r} is no recording of the source"
        elif len({items[n].key for n in numbers}) > 1:
            several = " and ".join(items[n].where for n in numbers[:_SHOWN])
            refused.reason = "ambiguous"
            refused.message = f"{record.where}: {called!r} fits {several}; write the key of one of them"
        else:
            return {n: self._segment(record, items[n], cut) for n in numbers}, None
        return {}, refused

    def _segment(self, record: Record, recording: Entry, cut: str | None) -> Entry:
        options = self.options
        own = options.key or ()
        values = json.loads(recording.attributes) | json.loads(record.attributes(*(own if len(own) == 1 else ())))
        key = key_of(record.values, own) if own else recording.key
        return replace(recording, key=key, cut=cut, attributes=as_object(values), listing=record.where)

    def _of_own_row(self, entry: Entry) -> Entry:
        options, values = self.options, json.loads(entry.attributes)
        if entry.reason is not None:
            return entry
        if options.start not in values and options.end not in values:
            return entry.refuse(NO_SEGMENTS, f"nothing in columns {options.start!r} and {options.end!r} says its times")
        entry.cut, problem = self._cut(values)
        if problem is None:
            return entry
        refused = entry.refuse("malformed", problem)
        refused.message = f"{entry.listing or entry.where}: {problem}"
        return refused

    def _cut(self, values: Mapping[str, str | None]) -> tuple[str | None, str | None]:
        """The cut, or why there is none."""
        times = []
        for column in (self.options.start, self.options.end):
            try:
                times.append(parse_duration(values.get(column) or ""))
            except ValueError as error:
                return None, f"column {column!r}: {error}"
        start, end = times
        if end <= start:
            said = f"{self.options.end!r} is {values[self.options.end]}, {self.options.start!r}"
            return None, f"{said} is {values[self.options.start]}: a segment ends after it starts"
        return span(start, end), None


def _by_name(items: Sequence[Entry]) -> dict[str, list[int]]:
    """What a table may call recordings -> their numbers: by key, with the suffix of the file or without it, and, where
    that is no key of another, by the name of the file."""
    by_key: dict[str, list[int]] = {}
    by_file: dict[str, list[int]] = {}
    for n, entry in enumerate(items):
        file = entry.member if entry.member is not None else entry.uri
        for key in {entry.key, entry.key and entry.key + posixpath.splitext(file)[1]} - {None}:
            by_key.setdefault(normalize(key or ""), []).append(n)
        for name in {file, posixpath.basename(file)}:
            by_file.setdefault(normalize(name), []).append(n)
    return by_file | by_key
