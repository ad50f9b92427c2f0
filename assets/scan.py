"""What exists: each source listed as manifest rows, with everything it holds that cannot be an item in quarantine."""

import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from json.encoder import encode_basestring_ascii as quote
from operator import attrgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from assets.contents import Contents
from assets.findings import DIFFERING, SHOWN, quoted
from assets.names import normalize
from assets.source_settings import SourceSettings
from assets.sources.base import Entry, SourceError
from training.messages import one_line
from training.schema import MANIFEST, QUARANTINE
from training.settings import MediaLimits

_BATCH_ROWS = 8192
_SHOWN = 20  # bad items that an error lists


@dataclass(frozen=True)
class Scan:
    """One source listed. `seen` is counted where things are found: rows + quarantine must come to the same."""

    source: str
    rows: pa.Table  # training.schema.MANIFEST
    quarantine: pa.Table  # training.schema.QUARANTINE, stage manifest; refused items and duplicates
    seen: int  # entries listed; a row of a table and the file it names are one
    reused: int  # files whose hash was taken over because place, size and time are as before


def scan(
    settings: SourceSettings,
    root: Path,
    previous: pa.Table | None = None,
    limits: MediaLimits | None = None,
) -> Scan:
    """Lists a source.

    Args:
        root: folder that the source's relative paths start from.
        previous: this source's manifest rows of the last scan; what has not changed since is not read again.
        limits: what is larger than `max_bytes` is refused unread.

    Raises:
        SourceError: nothing is there, a table or an archive cannot be read as a whole, or `strict` and something is
            refused.
    """
    source, rows, seen = settings.make(root), _Rows(settings, root.resolve()), 0
    if settings.optional and not source.exists():
        return Scan(settings.name, *rows.tables(), 0, 0)
    with Contents(source, settings.modality, limits or MediaLimits(), previous) as contents:
        for entries in _batches(source.list()):
            contents.fill(entries)
            seen += len(entries)
            for entry in entries:
                rows.add(entry)
    if seen == 0 and not settings.optional:
        raise SourceError(f"source {settings.name!r} is empty: there is nothing in {source}")
    manifest, quarantine = rows.tables()
    if settings.strict:
        _check_strict(settings.name, quarantine, seen)
    return Scan(settings.name, manifest, quarantine, seen, contents.reused)


def item_id(source: str, uri: str, member: str | None, key: str | None, ordinal: int = 0) -> str:
    """32 hex digits that name an item's place: `uri` relative to the project, so that a moved project keeps its ids."""
    parts = ", ".join("null" if part is None else quote(part) for part in (source, uri, member, key))
    return hashlib.sha256(f"[{parts}, {ordinal}]".encode()).hexdigest()[:32]


def _batches(entries: Iterator[Entry]) -> Iterator[list[Entry]]:
    while batch := list(itertools.islice(entries, _BATCH_ROWS)):
        yield batch


def _check_strict(name: str, quarantine: pa.Table, seen: int) -> None:
    bad = quarantine.filter(
        pc.and_(pc.equal(quarantine["outcome"], "quarantined"), pc.not_equal(quarantine["reason"], "absent"))
    )
    if bad.num_rows:
        shown = bad["message"].slice(0, _SHOWN).to_pylist()
        more = [f"... and {bad.num_rows - _SHOWN} more"] if bad.num_rows > _SHOWN else []
        head = f"source {name!r} is strict and {bad.num_rows} of {seen} items cannot be used:"
        raise SourceError("\n  ".join([head, *shown, *more]))


@dataclass
class _Rows:
    """Collects manifest and quarantine rows, gives ids, and finds duplicates."""

    source: SourceSettings
    root: Path
    occurrences: Counter[tuple[str, str | None, str | None]] = field(default_factory=Counter)
    # (key, hash) -> the place that is named, and what else is said of the item
    first: dict[tuple[str | None, str | None], tuple[str, str]] = field(default_factory=dict)
    listed: "_Columns" = field(default_factory=lambda: _Columns(MANIFEST))
    refused: "_Columns" = field(default_factory=lambda: _Columns(QUARANTINE))

    def add(self, entry: Entry) -> None:
        """Takes an entry as a manifest row; a refused one, or one of the same key and hash as another, as refused."""
        entry.key = normalize(entry.key or "") or None
        if entry.reason is not None:
            self._refuse(entry, "quarantined", entry.reason, entry.message or entry.where)
            return
        content, where = (entry.key, entry.sha256), entry.listing or entry.where
        if content in self.first:
            first, attributes = self.first[content]
            other = _differences(attributes, entry.attributes)
            message = f"{where}: the same key and content as {first}" + (
                f", and other values ({other})" if other else ""
            )
            self._refuse(entry, "duplicate", DIFFERING if other else "duplicate", message)
            return
        self.first[content] = where, entry.attributes
        self.listed.add((self._id(entry), self.source.name, self.source.modality, *_of_entry(entry)))

    def _refuse(self, entry: Entry, outcome: str, reason: str, message: str) -> None:
        where = (self._id(entry), self.source.name, self.source.modality, entry.key, entry.uri, entry.member, entry.row)
        self.refused.add(("manifest", outcome, reason, one_line(message), *where, entry.sha256, None))

    def _id(self, entry: Entry) -> str:
        # Items of one place and key (rows of a table) are told apart by their order.
        occurrence = (entry.uri.removeprefix(f"{self.root}{os.sep}"), entry.member, entry.key)
        self.occurrences[occurrence] += 1
        return item_id(self.source.name, *occurrence, self.occurrences[occurrence] - 1)

    def tables(self) -> tuple[pa.Table, pa.Table]:
        return self.listed.table(), self.refused.table()


def _differences(first: str, other: str) -> str:
    """The values of a row that are not those of the first one, in words; both as JSON objects."""
    if first == other:
        return ""
    before, now = json.loads(first), json.loads(other)
    columns = sorted(name for name in before | now if before.get(name) != now.get(name))
    said = [f"{c}: {quoted(now.get(c, ''))} instead of {quoted(before.get(c, ''))}" for c in columns[:SHOWN]]
    return ", ".join(said) + (f" and {len(columns) - SHOWN} more" if len(columns) > SHOWN else "")


_of_entry = attrgetter(*MANIFEST.names[3:])


class _Columns:
    """Rows, in the order of a schema, that become Arrow a batch at a time."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._rows: list[tuple[Any, ...]] = []
        self._batches: list[pa.RecordBatch] = []

    def add(self, row: tuple[Any, ...]) -> None:
        self._rows.append(row)
        if len(self._rows) >= _BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        columns = zip(zip(*self._rows, strict=True), self._schema, strict=True)
        arrays = [pa.array(values, field.type) for values, field in columns]
        self._batches.append(pa.RecordBatch.from_arrays(arrays, schema=self._schema))
        self._rows.clear()

    def table(self) -> pa.Table:
        if self._rows:
            self._flush()
        return pa.Table.from_batches(self._batches, self._schema)
