"""What exists: each source listed as manifest rows, with everything it holds that cannot be an item in quarantine."""

import glob
import hashlib
import json
import os
import posixpath
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from assets.contents import Known, fill
from assets.files import Entry, Reader, is_outside, last_change, list_files
from assets.settings import SourceSettings
from assets.tables import Record, SourceError, parse_time, read_table
from training.schema import MANIFEST, QUARANTINE
from training.settings import MediaLimits

_BATCH_ROWS = 8192
_SHOWN = 20  # bad items that an error lists
_PORTION_BYTES = 16 * 2**20  # of media that are held at once, in each worker


@dataclass(frozen=True)
class Scan:
    """One source listed. `seen` is counted where things are found: rows + quarantine must come to the same."""

    source: str
    rows: pa.Table  # training.schema.MANIFEST
    quarantine: pa.Table  # training.schema.QUARANTINE, stage manifest; refused items and duplicates
    seen: int  # files and table rows found; a row and the file it names are one
    reused: int  # files whose hash was taken over because place, size and time are as before


def scan(
    source: SourceSettings,
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
    limits, rows = limits or MediaLimits(), _Rows(source, root.resolve())
    if is_absent(source, root):
        return Scan(source.name, *rows.tables(), 0, 0)
    table = None if source.table is None else (root / source.table).resolve()
    if source.files is None:
        assert table is not None
        seen, reused = _scan_texts(source, table, rows), 0
    else:
        seen, reused = _scan_files(source, source.files, table, root, rows, limits, previous)
    if seen == 0 and not source.optional:
        raise SourceError(f"source {source.name!r} is empty: there is nothing in {source.files or source.table}")
    manifest, quarantine = rows.tables()
    if source.strict:
        bad = quarantine.filter(
            pc.and_(pc.equal(quarantine["outcome"], "quarantined"), pc.not_equal(quarantine["reason"], "absent"))
        )
        if bad.num_rows:
            shown = bad["message"].slice(0, _SHOWN).to_pylist()
            more = [f"... and {bad.num_rows - _SHOWN} more"] if bad.num_rows > _SHOWN else []
            head = f"source {source.name!r} is strict and {bad.num_rows} of {seen} items cannot be used:"
            raise SourceError("\n  ".join([head, *shown, *more]))
    return Scan(source.name, manifest, quarantine, seen, reused)


def is_absent(source: SourceSettings, root: Path) -> bool:
    """Whether the source may be missing and is."""
    named = (path for path in (source.files, source.table) if path and not glob.has_magic(path))
    return source.optional and not all((root / path).exists() for path in named)


def item_id(source: str, uri: str, member: str | None, key: str | None, ordinal: int = 0) -> str:
    """32 hex digits that name an item's place: `uri` relative to the project, so that a moved project keeps its ids."""
    place = json.dumps([source, uri, member, key, ordinal])
    return hashlib.sha256(place.encode()).hexdigest()[:32]


@dataclass
class _Rows:
    """Collects manifest and quarantine rows, gives ids, and finds duplicates."""

    source: SourceSettings
    root: Path
    places: Counter[tuple[str, str | None, str | None]] = field(default_factory=Counter)
    first: dict[tuple[str | None, str], str] = field(default_factory=dict)
    pending: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {"manifest": [], "quarantine": []})
    batches: dict[str, list[pa.RecordBatch]] = field(default_factory=lambda: {"manifest": [], "quarantine": []})

    def accept(self, where: str, row: dict[str, Any]) -> None:
        """Takes a manifest row (without its id), or refuses it as the duplicate of one with the same key and hash."""
        content = (row["key"], row["sha256"])
        if content in self.first:
            message = f"{where}: the same key and content as {self.first[content]}"
            self.refuse("duplicate", message, row, outcome="duplicate")
            return
        self.first[content] = where
        self._add("manifest", row)

    def refuse(self, reason: str, message: str, row: dict[str, Any], outcome: str = "quarantined") -> None:
        kept = {name: row.get(name) for name in ("key", "uri", "member", "row", "sha256")}
        self._add("quarantine", kept | {"stage": "manifest", "outcome": outcome, "reason": reason, "message": message})

    def _add(self, name: str, row: dict[str, Any]) -> None:
        place = row["uri"].removeprefix(f"{self.root}{os.sep}")
        # Items of one place and key (rows of a table) are told apart by their order.
        occurrence = (place, row.get("member"), row["key"])
        row["item_id"] = item_id(self.source.name, *occurrence, self.places[occurrence])
        self.places[occurrence] += 1
        row["source"], row["modality"] = self.source.name, self.source.modality
        self.pending[name].append(row)
        if len(self.pending[name]) >= _BATCH_ROWS:
            self._flush(name)

    def _flush(self, name: str) -> None:
        schema = MANIFEST if name == "manifest" else QUARANTINE
        self.batches[name].append(pa.RecordBatch.from_pylist(self.pending[name], schema))
        self.pending[name].clear()

    def tables(self) -> tuple[pa.Table, pa.Table]:
        self._flush("manifest")
        self._flush("quarantine")
        return (
            pa.Table.from_batches(self.batches["manifest"], MANIFEST),
            pa.Table.from_batches(self.batches["quarantine"], QUARANTINE),
        )


def _scan_texts(source: SourceSettings, table: Path, rows: _Rows) -> int:
    assert source.key is not None and source.column is not None
    seen, uri = 0, str(table)
    required = [source.key, source.column, *([source.time] if source.time else [])]
    mtime = None
    for record in read_table(table, source.encoding, required):
        mtime = mtime or last_change(table.stat())
        seen += 1
        key, text = record.values.get(source.key) or None, record.values.get(source.column)
        where = f"{table} line {record.line}"
        place = {"key": key, "uri": uri, "row": record.line}
        time, problem = _time(source, record)
        if problem:
            rows.refuse("malformed", f"{table}: {problem}", place)
        elif not text:
            rows.refuse("absent", f"{where}: column {source.column!r} holds no text", place)
        elif not text.strip():
            rows.refuse("empty", f"{where}: column {source.column!r} holds white space only", place)
        else:
            content = text.encode()
            place |= {"text": text, "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
            attributes = _attributes(record, source.key, source.column)
            rows.accept(where, place | {"mtime": mtime, "time": time, "attributes": attributes})
    return seen


def _scan_files(
    source: SourceSettings,
    files: str,
    table: Path | None,
    root: Path,
    rows: _Rows,
    limits: MediaLimits,
    previous: pa.Table | None,
) -> tuple[int, int]:
    column = source.file or source.key
    required = [name for name in (source.key, source.file, source.time) if name is not None]
    if table is not None:
        next(read_table(table, source.encoding, required), None)  # a wrong column shows before hours of hashing
    place, entries = list_files(files, root)
    if table is not None:
        entries = [entry for entry in entries if entry.uri != str(table)]  # no item of the folder it lies in
    reused = fill(entries, Known(previous), source, limits)

    by_name = {entry.name: entry for entry in entries if entry.reason != "superseded"}
    prefixes, prefix = _shared_folders(entries), ""
    named: set[str] = set()
    records = 0
    for record in read_table(table, source.encoding, required) if table is not None else ():
        assert column is not None and source.key is not None
        records += 1
        name, key = record.values.get(column) or None, record.values.get(source.key) or None
        where = f"{table} line {record.line}"
        claim = {"key": key, "uri": str(table), "member": name, "row": record.line}
        time, problem = _time(source, record)
        entry = None
        if name is not None and not is_outside(name):
            path = posixpath.normpath(name)
            prefix = next((p for p in prefixes if p + path in by_name), prefix)
            entry = by_name.get(prefix + path)
        if entry is not None:
            named.add(entry.name)
        if problem:
            rows.refuse("malformed", f"{table}: {problem}", claim)
        elif name is None:
            rows.refuse("absent", f"{where}: column {column!r} names no file", claim)
        elif is_outside(name):
            rows.refuse("outside_root", f"{where}: {name!r} is no path within {place}; it was not opened", claim)
        elif entry is None:
            rows.refuse("not_found", f"{where}: {name!r} is not in {place}", claim)
        else:
            attributes = _attributes(record, source.key)
            _take(rows, entry, where, {"key": key, "row": record.line, "time": time, "attributes": attributes})
    for entry in entries:
        if entry.name not in named or entry.reason == "superseded":
            key = posixpath.splitext(entry.name)[0] if table is None else entry.name.removeprefix(prefix)
            _take(rows, entry, _where(entry), {"key": key, "attributes": "{}"})
    return records + len(entries) - len(named), reused


def _shared_folders(entries: list[Entry]) -> list[str]:
    """Prefixes that a table may leave out of its names: nothing, then the folders that all files share."""
    folders = {posixpath.dirname(entry.name) for entry in entries if entry.reason is None}
    folder = posixpath.commonpath(folders) if folders else ""
    parts = folder.split("/") if folder else []
    return ["", *("/".join(parts[:n]) + "/" for n in range(1, len(parts) + 1))]


def _take(rows: _Rows, entry: Entry, where: str, row: dict[str, Any]) -> None:
    row |= {"uri": entry.uri, "member": entry.member, "sha256": entry.sha256}
    if entry.reason is not None:
        rows.refuse(entry.reason, f"{_where(entry)}: {entry.message}", row)
        return
    row |= {"offset": entry.offset, "size": entry.size, "mtime": entry.mtime, "text": entry.text}
    rows.accept(where, row)


def _where(entry: Entry) -> str:
    return entry.uri if entry.member is None else f"{entry.uri}: {entry.member}"


def _attributes(record: Record, *left_out: str) -> str:
    values = {k: v for k, v in record.values.items() if v is not None and k not in left_out}
    return _encode(values)


_encode = json.JSONEncoder(ensure_ascii=False, sort_keys=True).encode  # json.dumps makes one at each call


def _time(source: SourceSettings, record: Record) -> tuple[datetime | None, str | None]:
    """When the item was recorded, or why the row cannot be used."""
    value = record.values.get(source.time) if source.time is not None else None
    if record.problem is not None or not value:
        return None, record.problem
    try:
        return parse_time(value), None
    except ValueError as error:
        return None, f"line {record.line}, column {source.time!r}: {error}"


def read_bytes(uri: str, member: str | None, offset: int | None, size: int) -> bytes:
    """The content of one item; nothing is extracted. Errors as `Reader.chunks`."""
    with Reader() as reader:
        return reader.read(uri, member, offset, size)


Rows = TypeVar("Rows", pa.RecordBatch, pa.Table, list)


def portions(rows: Rows, sizes: list[int], most: int | None = None) -> Iterator[Rows]:
    """The rows, in order, in slices of at most `most` rows and 16 MB (or one larger item) of media.

    Args:
        sizes: bytes of media that each row stands for.
    """
    start = total = 0
    for n, size in enumerate(sizes):
        if n - start == most or (n > start and total + size > _PORTION_BYTES):
            yield rows[start:n]
            start, total = n, 0
        total += size
    if sizes:
        yield rows[start:]


def attach_data(rows: pa.RecordBatch | pa.Table) -> pa.RecordBatch:
    """Manifest rows with a column `data` (large_binary) of their bytes; each archive is opened once.

    Where the bytes cannot be had, or are no longer those that were hashed, `data` is null and `data_error` says why.
    Texts get their UTF-8 bytes.
    """
    names = ["uri", "member", "offset", "size", "sha256", "modality", "text"]
    data, errors = [], []
    with Reader() as reader:
        for uri, member, offset, size, sha256, modality, text in _columns(rows, names):
            error, content = None, None
            try:
                content = text.encode() if modality == "text" else reader.read(uri, member, offset, size)
                if hashlib.sha256(content).hexdigest() != sha256:
                    error, content = "changed since it was listed; run again", None
            except (OSError, ValueError) as failure:
                error = f"cannot be read: {failure}"
            data.append(content)
            errors.append(error)
    batch = rows.combine_chunks().to_batches()[0] if isinstance(rows, pa.Table) and rows.num_rows else rows
    fields = [*batch.schema, pa.field("data", pa.large_binary()), pa.field("data_error", pa.string())]
    columns = [batch[name] for name in batch.schema.names]
    columns = [c.combine_chunks() if isinstance(c, pa.ChunkedArray) else c for c in columns]
    return pa.record_batch(
        [*columns, pa.array(data, pa.large_binary()), pa.array(errors, pa.string())], pa.schema(fields)
    )


def _columns(rows: pa.RecordBatch | pa.Table, names: list[str]) -> Iterator[tuple[Any, ...]]:
    return zip(*(rows[name].to_pylist() for name in names), strict=True)
