"""What exists: each source listed as manifest rows, with everything it holds that cannot be an item in quarantine."""

import hashlib
import itertools
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii as quote
from operator import attrgetter
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from assets.admission import guard, permit
from assets.checksums import hold, without_marks
from assets.contents import Contents
from assets.findings import DIFFERING, SHOWN, quoted
from assets.lake import BATCH_ROWS, open_duckdb, sql_name, sql_string
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
    only: Collection[str] | None = None,
) -> Scan:
    """Lists a source.

    Args:
        root: folder that the source's relative paths start from.
        previous: this source's manifest rows of the last scan; what has not changed since is not read again.
        limits: what is larger than `max_bytes` is refused unread.
        cleaning: says what becomes of personal data.
        only: URIs of the files that are listed (`Source.list_files`); null: all.

    Raises:
        SourceError: nothing is there, a table or an archive cannot be read as a whole, or `strict` and something is
            refused.
    """
    with open_duckdb() as connection:
        seen, reused = scan_into(connection, settings, root, previous, limits, cleaning, only)
        rows = connection.sql("SELECT * EXCLUDE n FROM rows_now ORDER BY n").to_arrow_table().cast(MANIFEST)
        quarantine = connection.table("refused_now").to_arrow_table().cast(QUARANTINE)
    return Scan(settings.name, rows, quarantine, seen, reused)


def scan_into(
    connection: duckdb.DuckDBPyConnection,
    settings: SourceSettings,
    root: Path,
    previous: pa.Table | None = None,
    limits: MediaLimits | None = None,
    cleaning: TextCleaning | None = None,
    only: Collection[str] | None = None,
) -> tuple[int, int]:
    """`scan` in memory that DuckDB bounds: adds rows to the tables `rows_now` (the manifest's columns and their number
    `n`) and `refused_now` (columns of quarantine), and returns what is `seen` and `reused`."""
    make_tables(connection)
    source, place, seen, reused = settings.make(root), f"{root.resolve()}{os.sep}", 0, 0
    if not settings.optional or source.exists():
        marks = hold(source, previous)
        known = None if previous is None else without_marks(previous)
        with Contents(source, settings.modality, limits or MediaLimits(), known) as contents:
            for entries in _batches(source.list() if only is None else source.list_files(only)):
                permit(entries, settings.require, cleaning or TextCleaning())
                contents.fill(entries)
                for entry in entries if marks else ():
                    entry.etag = marks.get(entry.uri, entry.etag)
                if cleaning is not None:
                    guard(entries, cleaning)
                connection.register("batch", _rows(entries, seen, settings.name, place))
                connection.execute("INSERT INTO entries FROM batch")
                seen += len(entries)
            reused = contents.reused
            _refuse_changed(connection, source.changed(contents.read))
    if seen == 0 and only is None and not settings.optional:
        raise SourceError(f"source {settings.name!r} is empty: there is nothing in {source}")
    refused = _judge(connection, settings, place)
    if settings.strict:
        _check_strict(settings.name, refused, seen)
    return seen, reused


def make_tables(connection: duckdb.DuckDBPyConnection) -> None:
    """The tables that `scan_into` fills, where they are not there."""
    numbered = pa.schema([*MANIFEST, ("n", pa.int64())])
    for name, schema in {"rows_now": numbered, "refused_now": QUARANTINE, "entries": _LISTED}.items():
        connection.register("no_rows", schema.empty_table())
        connection.execute(f"CREATE TABLE IF NOT EXISTS {name} AS FROM no_rows")


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
_LISTED = pa.schema([("n", pa.int64()), ("item_id", pa.string()), ("part", pa.string()), *_ENTRIES])
_cells = attrgetter(*_ENTRIES.names)


def _rows(entries: Sequence[Entry], first: int, source: str, root: str) -> pa.Table:
    """Rows with schema _LISTED. Args: `first`: number of the first one; `root`: see `_judge`."""
    for entry in entries:
        entry.key = normalize(entry.key or "") or None
        if entry.reason is not None:
            entry.message = one_line(mask_urls(entry.message or entry.where))
    columns = zip(zip(*map(_cells, entries), strict=True), _ENTRIES, strict=True)
    rows = pa.table([pa.array(values, field.type) for values, field in columns], schema=_ENTRIES)
    parts = _told_parts(rows["cut"])
    ids = _ids(rows.append_column("part", parts).append_column("ordinal", pa.repeat(0, len(entries))), source, root)
    made = {"n": pa.array(range(first, first + len(entries))), "item_id": ids, "part": parts}
    return pa.table([*made.values(), *rows.columns], schema=_LISTED)


def _refuse_changed(connection: duckdb.DuckDBPyConnection, changed: Sequence[str]) -> None:
    """Refuses the entries whose places have changed since they were listed."""
    if changed:
        connection.register("changed", pa.table({"uri": pa.array(changed, pa.string())}))
        connection.execute(
            """
            UPDATE entries SET reason = 'changed', message = uri || ': changed while it was read; run again'
            WHERE coalesce(reason, 'unreadable') = 'unreadable' AND uri IN (SELECT uri FROM changed)
            """
        )


# Of each entry that is not alone how many before it have its place, part and key, as rows of a table do, and the number
# of the first one of its key and content: its own where there is none. By hashes most are seen to be alone at once.
_REPEATED = """
CREATE OR REPLACE TABLE repeated AS
WITH hashed AS (SELECT n, hash(uri, member, key, part) AS place, hash(key, sha256, cut) AS content FROM entries),
doubtful AS (
  SELECT n FROM hashed WHERE place IN (SELECT place FROM hashed GROUP BY 1 HAVING count(*) > 1)
    OR content IN (SELECT content FROM hashed GROUP BY 1 HAVING count(*) > 1)
)
SELECT n, row_number() OVER (PARTITION BY uri, member, key, part ORDER BY n) - 1 AS ordinal,
  CASE WHEN reason IS NULL THEN min(n) OVER (PARTITION BY key, sha256, cut, reason IS NULL) ELSE n END AS first
FROM entries SEMI JOIN doubtful USING (n)
"""


def _judge(connection: duckdb.DuckDBPyConnection, source: SourceSettings, root: str) -> pa.Table:
    """Moves what is listed from `entries` to `rows_now` and `refused_now`: refused entries, and those of the same key
    and content as one before. Returns the latter.

    Args:
        root: what the ids leave out where a `uri` starts with it.
    """
    connection.execute(_REPEATED)
    connection.execute("CREATE OR REPLACE TABLE renamed(n BIGINT, item_id VARCHAR)")
    again = "SELECT n, uri, member, key, part, ordinal FROM repeated JOIN entries USING (n) WHERE ordinal > 0"
    with connection.cursor() as reader:
        for batch in reader.sql(again).to_arrow_reader(BATCH_ROWS):
            ids = pa.table({"n": batch["n"], "item_id": _ids(pa.Table.from_batches([batch]), source.name, root)})
            connection.register("ids", ids)
            connection.execute("INSERT INTO renamed FROM ids")
    said = f"{sql_string(source.name)} AS source, {sql_string(source.modality)} AS modality"
    named = f"SELECT e.* REPLACE (coalesce(r.item_id, e.item_id) AS item_id), coalesce(first, n) AS first, {said} "
    named += "FROM entries e LEFT JOIN renamed r USING (n) LEFT JOIN repeated USING (n)"
    columns = ", ".join(map(sql_name, [*MANIFEST.names, "n"]))
    connection.execute(f"INSERT INTO rows_now SELECT {columns} FROM ({named}) WHERE reason IS NULL AND first = n")
    query = f"FROM ({named}) WHERE reason IS NOT NULL OR first <> n ORDER BY n"
    refused = connection.sql(query).to_arrow_table()
    firsts = "SELECT * FROM entries SEMI JOIN (SELECT first AS n FROM repeated WHERE first <> n) USING (n)"
    quarantine = _refused(refused, connection.sql(firsts).to_arrow_table())
    connection.register("batch", quarantine)
    connection.execute("INSERT INTO refused_now FROM batch; DELETE FROM entries")
    return quarantine


def _told_parts(cuts: pa.ChunkedArray) -> pa.ChunkedArray:
    """What of a cut tells a part from the others of its item: what finds parts may change, and the item is the same."""
    given = pc.if_else(pc.match_substring_regex(cuts, FOUND), None, cuts)
    return pc.coalesce(pc.struct_field(pc.extract_regex(cuts, NUMBERED), "number"), given)


def _ids(places: pa.Table, source: str, root: str) -> pa.Array:
    """Args: `places` has the columns uri, member, key, ordinal and part."""
    columns = [places[name].to_pylist() for name in ("uri", "member", "key", "ordinal", "part")]
    ids = (item_id(source, uri.removeprefix(root), *rest) for uri, *rest in zip(*columns, strict=True))
    return pa.array(ids, pa.string())


def _refused(refused: pa.Table, firsts: pa.Table) -> pa.Table:
    """Rows of quarantine. Args: `refused` has the columns of _LISTED and of the manifest, and `first`: a row of
    `firsts`, by its number."""
    listed = refused.to_pylist()
    numbered = {row["n"]: row for row in firsts.to_pylist()}
    for row in listed:
        is_left_out = row["reason"] == NO_SEGMENTS
        row |= {"stage": "manifest", "outcome": "unmatched" if is_left_out else "quarantined"}
        if row["reason"] is None:
            first = numbered[row["first"]]
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
