"""What exists: each source listed as manifest rows, with everything it holds that cannot be an item in quarantine."""

import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii as quote
from operator import attrgetter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assets.admission import guard, permit
from assets.checksums import hold, without_marks
from assets.contents import Contents
from assets.findings import DIFFERING, SHOWN, quoted
from assets.lake import BATCH_ROWS, open_duckdb
from assets.names import normalize
from assets.segments.base import FOUND, NO_SEGMENTS, NUMBERED
from assets.source_settings import SourceSettings
from assets.sources.base import Entry, SourceError
from training.credentials import mask_urls
from training.messages import one_line
from training.schema import MANIFEST, QUARANTINE
from training.settings import MediaLimits, TextCleaning

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
    cleaning: TextCleaning | None = None,
) -> Scan:
    """Lists a source.

    Args:
        root: folder that the source's relative paths start from.
        previous: this source's manifest rows of the last scan; what has not changed since is not read again.
        limits: what is larger than `max_bytes` is refused unread.
        cleaning: says what becomes of personal data.

    Raises:
        SourceError: nothing is there, a table or an archive cannot be read as a whole, or `strict` and something is
            refused.
    """
    source, listed, seen, reused = settings.make(root), [_ENTRIES.empty_table()], 0, 0
    changed: Sequence[str] = ()
    if not settings.optional or source.exists():
        marks = hold(source, previous)
        known = None if previous is None else without_marks(previous)
        with Contents(source, settings.modality, limits or MediaLimits(), known) as contents:
            for entries in _batches(source.list()):
                permit(entries, settings.require, cleaning or TextCleaning())
                contents.fill(entries)
                for entry in entries if marks else ():
                    entry.etag = marks.get(entry.uri, entry.etag)
                if cleaning is not None:
                    guard(entries, cleaning)
                seen += len(entries)
                listed.append(_rows(entries))
            reused = contents.reused
            changed = source.changed(contents.read)
    if seen == 0 and not settings.optional:
        raise SourceError(f"source {settings.name!r} is empty: there is nothing in {source}")
    manifest, quarantine = _judge(_without(pa.concat_tables(listed), changed), settings, f"{root.resolve()}{os.sep}")
    if settings.strict:
        _check_strict(settings.name, quarantine, seen)
    return Scan(settings.name, manifest, quarantine, seen, reused)


def item_id(
    source: str, uri: str, member: str | None, key: str | None, ordinal: int = 0, cut: str | None = None
) -> str:
    """32 hex digits that name an item's place: `uri` relative to the project, so that a moved project keeps its ids."""
    parts = ", ".join(["null" if part is None else quote(part) for part in (source, uri, member, key)])
    place = "" if cut is None else f", {quote(cut)}"
    return hashlib.sha256(f"[{parts}, {ordinal}{place}]".encode()).hexdigest()[:32]


def _batches(entries: Iterator[Entry]) -> Iterator[list[Entry]]:
    while batch := list(itertools.islice(entries, BATCH_ROWS)):
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


# What entries say, as rows: of an item what the manifest keeps, how messages name it, and why it is none.
_ENTRIES = pa.schema([*list(MANIFEST)[3:], *((name, pa.string()) for name in ("listing", "reason", "message"))])
_cells = attrgetter(*_ENTRIES.names)


def _rows(entries: Sequence[Entry]) -> pa.Table:
    for entry in entries:
        entry.key = normalize(entry.key or "") or None
        if entry.reason is not None:
            entry.message = one_line(mask_urls(entry.message or entry.where))
    columns = zip(zip(*map(_cells, entries), strict=True), _ENTRIES, strict=True)
    return pa.table([pa.array(values, field.type) for values, field in columns], schema=_ENTRIES)


def _without(rows: pa.Table, changed: Sequence[str]) -> pa.Table:
    """The entries, those refused whose places have changed since they were listed. Args: `rows` has schema _ENTRIES."""
    if not changed:
        return rows
    unsaid = pc.equal(pc.coalesce(rows["reason"], pa.scalar("unreadable")), "unreadable")
    stale = pc.and_(pc.is_in(rows["uri"], pa.array(changed, pa.string())), unsaid)
    words = pc.binary_join_element_wise(rows["uri"], "changed while it was read; run again", ": ")
    for name, value in (("reason", pa.scalar("changed")), ("message", words)):
        rows = rows.set_column(rows.column_names.index(name), name, pc.if_else(stale, value, rows[name]))
    return rows


def _judge(rows: pa.Table, source: SourceSettings, root: str) -> tuple[pa.Table, pa.Table]:
    """Manifest and quarantine of what one source has listed: refused entries, and those of the same key and content as
    one before.

    Args:
        rows: schema _ENTRIES, in the order of the source.
        root: what the ids leave out where a `uri` starts with it.
    """
    parts = _told_parts(rows["cut"])
    ordinals, firsts = _repeats(rows, parts)
    repeated = pa.array(firsts != np.arange(rows.num_rows))
    columns = {
        "item_id": _ids(rows, parts, ordinals, source.name, root),
        "source": pa.repeat(source.name, rows.num_rows),
        "modality": pa.repeat(source.modality, rows.num_rows),
        **{name: rows[name] for name in rows.column_names},
    }
    is_item = pc.and_(pc.is_null(rows["reason"]), pc.invert(repeated))
    if pc.all(is_item).as_py():
        return pa.table(columns).select(MANIFEST.names).cast(MANIFEST), QUARANTINE.empty_table()
    refused = pa.table(columns | {"first": firsts}).filter(pc.invert(is_item))
    return pa.table(columns).select(MANIFEST.names).filter(is_item).cast(MANIFEST), _refused(refused, rows)


def _told_parts(cuts: pa.ChunkedArray) -> pa.ChunkedArray:
    """What of a cut tells a part from the others of its item: what finds parts may change, and the item is the same."""
    given = pc.if_else(pc.match_substring_regex(cuts, FOUND), None, cuts)
    return pc.coalesce(pc.struct_field(pc.extract_regex(cuts, NUMBERED), "number"), given)


def _repeats(rows: pa.Table, parts: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Of each entry how many before it have its place, part and key, as rows of a table do, and the number of the first
    one of its key and content: its own where there is none."""
    numbers = np.arange(rows.num_rows)
    ordinals, firsts = np.zeros_like(numbers), numbers.copy()
    with open_duckdb() as connection:
        entries = rows.select(["uri", "member", "key", "sha256", "cut", "reason"]).append_column("part", parts)
        connection.register("entries", entries.append_column("n", pa.array(numbers)))
        # By their hashes most are seen to be alone at once, in little memory.
        found = connection.sql(
            """
            WITH hashed AS (
              SELECT *, hash(uri, member, key, part) AS place, hash(key, sha256, cut) AS content FROM entries
            ),
            doubtful AS (
              FROM hashed WHERE place IN (SELECT place FROM hashed GROUP BY 1 HAVING count(*) > 1)
                OR content IN (SELECT content FROM hashed GROUP BY 1 HAVING count(*) > 1)
            )
            SELECT n, row_number() OVER (PARTITION BY uri, member, key, part ORDER BY n) - 1 AS ordinal,
              CASE WHEN reason IS NULL THEN min(n) OVER (PARTITION BY key, sha256, cut, reason IS NULL) ELSE n
                END AS first
            FROM doubtful
            """
        ).fetchnumpy()
    ordinals[found["n"]], firsts[found["n"]] = found["ordinal"], found["first"]
    return ordinals, firsts


def _ids(rows: pa.Table, parts: pa.ChunkedArray, ordinals: np.ndarray, source: str, root: str) -> pa.ChunkedArray:
    places, ids = rows.select(["uri", "member", "key"]).append_column("ordinal", pa.array(ordinals)), []
    places = places.append_column("part", parts)
    for batch in places.to_batches():
        columns = (column.to_pylist() for column in batch.columns)
        ids.append([item_id(source, uri.removeprefix(root), *rest) for uri, *rest in zip(*columns, strict=True)])
    return pa.chunked_array(ids, pa.string())


def _refused(refused: pa.Table, rows: pa.Table) -> pa.Table:
    """Rows of quarantine. Args: `refused` has the columns of `rows` and of the manifest, and `first` (`_repeats`)."""
    listed = refused.to_pylist()
    firsts = rows.take(refused["first"]).to_pylist()
    for row, first in zip(listed, firsts, strict=True):
        is_left_out = row["reason"] == NO_SEGMENTS
        row |= {"stage": "manifest", "outcome": "unmatched" if is_left_out else "quarantined"}
        if row["reason"] is None:
            other = _differences(first["attributes"], row["attributes"])
            also = f", and other values ({other})" if other else ""
            message = one_line(f"{_place(row)}: the same key and content as {_place(first)}{also}")
            row |= {"outcome": "duplicate", "reason": DIFFERING if other else "duplicate", "message": message}
    return pa.Table.from_pylist(listed, QUARANTINE)


def _place(entry: Mapping[str, str | None]) -> str | None:
    return entry["listing"] or (entry["uri"] if entry["member"] is None else f"{entry['uri']}: {entry['member']}")


def _differences(first: str, other: str) -> str:
    """The values of a row that are not those of the first one, in words; both as JSON objects."""
    if first == other:
        return ""
    before, now = json.loads(first), json.loads(other)
    columns = sorted(name for name in before | now if before.get(name) != now.get(name))
    said = [f"{c}: {quoted(now.get(c, ''))} instead of {quoted(before.get(c, ''))}" for c in columns[:SHOWN]]
    return ", ".join(said) + (f" and {len(columns) - SHOWN} more" if len(columns) > SHOWN else "")
