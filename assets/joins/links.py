"""Items that a link table names in one row belong together."""

import json
import posixpath
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from assets.findings import SHOWN, Finding, listed, note
from assets.joins.columns import Columns, cell
from assets.joins.matching import unmatched
from assets.keys import sql_key
from assets.lake import BATCH_ROWS, sql_string
from assets.names import normalize
from assets.settings import AlignSettings
from assets.source_settings import SourceSettings
from assets.storage import Location, locate
from assets.tables import read_table
from training.schema import MODALITIES

# `link` numbers the rows of all files of the table.
_LINKS = pa.schema([("link", pa.int64()), ("uri", pa.string()), ("line", pa.int64()), ("values", pa.string())])


def join_links(
    connection: duckdb.DuckDBPyConnection,
    settings: AlignSettings,
    sources: Sequence[SourceSettings],
    root: Path,
    columns: Columns,
) -> Columns:
    """One row of `joined` per row of the link table; returns the columns with those of the link table."""
    assert settings.table is not None
    path = locate(settings.table, root)
    linked = _load_links(connection, settings, path)
    link_columns = _link_columns(settings, sources, root, linked)
    texts = {s.column for s in sources if s.column and s.table and locate(s.table, root).uri == path.uri}
    keys = [column for columns in link_columns.values() for column in columns]
    hidden = frozenset([*keys, *texts, *([settings.id] if settings.id else [])])

    _match(connection, sources, link_columns)
    _check_links_match(connection, link_columns, path)
    _pick(connection, settings, path)
    _check_ids(connection, settings, path)
    return replace(columns, link=frozenset(linked), hidden=hidden)


def _match(
    connection: duckdb.DuckDBPyConnection, sources: Sequence[SourceSettings], link_columns: dict[str, tuple[str, ...]]
) -> None:
    """Tables `matches`: for each cell of the link table the items that it names, or none; and `left_over`."""
    cells = " UNION ALL ".join(
        f"SELECT link, {sql_string(s.name)} AS source, {sql_string(s.modality)} AS modality, "
        f"{sql_key([cell('values', column) for column in link_columns[s.name]])} AS key FROM links"
        for s in sources
    )
    # A source without a table has keys without suffix; a link may name the file in full.
    connection.execute(
        f"""
        CREATE TABLE cells AS SELECT * FROM ({cells}) WHERE key IS NOT NULL;
        CREATE TABLE named AS
        SELECT source, key, item_id, id, unit, status, number FROM items WHERE key IS NOT NULL
        UNION ALL
        SELECT source, key || suffix, item_id, id, unit, status, number FROM (
          SELECT *, regexp_extract(coalesce(member, uri), '\\.[^./]*$') AS suffix FROM items WHERE keyless)
        WHERE suffix <> ''
        UNION ALL
        SELECT source, key, NULL, NULL, NULL, status, NULL FROM refused_keys;
        CREATE TABLE matches AS
        SELECT link, c.modality, c.source, c.key, item_id, id, unit, coalesce(status, 'not_found') AS status, number,
          n.source IS NOT NULL AS matched
        FROM cells c LEFT JOIN named n ON n.source = c.source AND n.key = c.key;
        CREATE VIEW left_over AS
        SELECT DISTINCT item_id, CASE WHEN key IS NULL THEN 'no_key'
          WHEN EXISTS (FROM matches m WHERE m.item_id = i.item_id) THEN 'ambiguous' ELSE 'not_linked' END AS reason,
          NULL AS why
        FROM items i;
        """
    )


def _pick(connection: duckdb.DuckDBPyConnection, settings: AlignSettings, path: Location) -> None:
    """Table `joined`: of each row of the link table and each modality the first item that can be used; where items were
    cut, a row for each combination of their parts."""
    slots = ", ".join(
        f"CASE {m}.status WHEN 'present' THEN {m}.item_id END AS {m}_item, "
        f"CASE {m}.status WHEN 'present' THEN {m}.id END AS {m}_id, coalesce({m}.status, 'absent') AS {m}_status"
        for m in MODALITIES
    )
    units = ", ".join(f"{m}.unit" for m in MODALITIES)
    joins = " ".join(f"LEFT JOIN (FROM picked WHERE modality = '{m}') {m} ON {m}.link = links.link" for m in MODALITIES)
    named = cell("values", settings.id) if settings.id else "left(sha256(keys), 32)"
    connection.execute(
        f"""
        CREATE TABLE joined AS
        WITH picked AS (
          SELECT * FROM matches
          WINDOW best AS (PARTITION BY link, modality ORDER BY
            array_position(['present', 'quarantined', 'not_found', 'absent'], status), number)
          QUALIFY row_number() OVER best = 1 OR status = 'present' AND item_id = first_value(item_id) OVER best
        ), keyed AS (
          SELECT link, to_json(list([source, key] ORDER BY source))::VARCHAR AS keys FROM cells GROUP BY link
        )
        SELECT links.line, links.uri AS link_uri, {named} AS split_key, values,
          split_key || CASE WHEN count(*) OVER (PARTITION BY links.link) = 1 THEN ''
            ELSE '#' || left(sha256(concat_ws(' ', {units})), 8) END AS sample_id, {slots}
        FROM links LEFT JOIN keyed USING (link) {joins}
        """
    )


def _load_links(connection: duckdb.DuckDBPyConnection, settings: AlignSettings, path: Location) -> list[str]:
    """Tables `links(link, uri, line, values)` and `broken_links`; returns the names of the link table's columns."""
    named = [column for key in settings.key_columns.values() for column in key]
    named += [settings.id] if settings.id else []
    columns: dict[str, None] = {}
    tables, rows, broken = [_LINKS.empty_table()], [], []
    for link, record in enumerate(read_table(path.uri, settings, named, columns=settings.header)):
        if record.problem is not None:
            broken.append({"uri": record.table, "line": record.line, "problem": record.problem})
            continue
        columns.update(dict.fromkeys(record.values))
        given = {name: normalize(value) for name, value in record.values.items() if value is not None}
        values = json.dumps(given, ensure_ascii=False)
        rows.append({"link": link, "uri": record.table, "line": record.line, "values": values})
        if len(rows) >= BATCH_ROWS:
            tables.append(pa.Table.from_pylist(rows, _LINKS))
            rows = []
    connection.register("links", pa.concat_tables([*tables, pa.Table.from_pylist(rows, _LINKS)]))
    schema = pa.schema([("uri", pa.string()), ("line", pa.int64()), ("problem", pa.string())])
    connection.register("broken_links", pa.Table.from_pylist(broken, schema))
    if not columns:
        why = f": {broken[0]['uri']}: {broken[0]['problem']}" if broken else ""
        raise ValueError(f"{path}: the link table has no usable row ({len(broken)} malformed){why}")
    return list(columns)


def _link_columns(
    settings: AlignSettings, sources: Sequence[SourceSettings], root: Path, linked: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Source -> column of the link table that holds its keys, or columns that are its keys together."""
    assert settings.table is not None
    path, names = locate(settings.table, root), [s.name for s in sources]
    if unknown := settings.key_columns.keys() - set(names):
        raise ValueError(
            f"align.columns names {sorted(unknown)[0]!r}, which is no source; there are {', '.join(names)}"
        )
    columns = {}
    for source in sources:
        shared = source.keys if source.table and locate(source.table, root).uri == path.uri else ()
        choices = [settings.key_columns.get(source.name, ()), shared, (source.name,), (source.modality,)]
        key = next((choice for choice in choices if choice and set(choice) <= set(linked)), None)
        if key is None:
            raise ValueError(
                f"align.table {path.uri} has no column {source.name!r} or {source.modality!r} with the keys of source "
                f"{source.name!r}: name it under align.columns; it has {', '.join(linked)}"
            )
        columns[source.name] = key
    return columns


def _check_links_match(
    connection: duckdb.DuckDBPyConnection, link_columns: dict[str, tuple[str, ...]], path: Location
) -> None:
    """Notes cells that name nothing; raises ValueError where no cell of a modality names anything."""
    cells = "SELECT source, modality, key FROM matches"
    names = "SELECT source, NULL AS modality, key FROM named"
    missed = unmatched(connection, cells, names, "o.source = k.source")
    for miss in missed:
        column = f"column {'/'.join(link_columns[miss.source])!r} of {path}"
        has_items = "SELECT count(*) > 0 FROM items WHERE modality = $1"
        matched = "SELECT coalesce(bool_or(matched), false) FROM matches WHERE modality = $1"
        if _value(connection, has_items, miss.modality) and not _value(connection, matched, miss.modality):
            some = f"SELECT list(key) FROM (SELECT DISTINCT key FROM items WHERE source = $1 ORDER BY 1 LIMIT {SHOWN})"
            raise ValueError(
                f"align: nothing in {column} is a key of {miss.source}: the column has {listed(miss.examples)}, the "
                f"source has {listed(_value(connection, some, miss.source) or ['no keys'])}{miss.advice}"
            )
        said = f"{column}: {miss.unmatched:,} of {miss.keys:,} keys name nothing in source {miss.source}"
        note(connection, Finding("unmatched_keys", f"{said}, such as {listed(miss.examples)}{miss.advice}"))


def _value(connection: duckdb.DuckDBPyConnection, query: str, parameter: str) -> Any:
    return connection.execute(query, [parameter]).fetchall()[0][0]


def _check_ids(connection: duckdb.DuckDBPyConnection, settings: AlignSettings, path: Location) -> None:
    wrong = connection.sql(
        "SELECT sample_id, list((link_uri, line) ORDER BY link_uri, line) FROM joined GROUP BY 1 "
        f"HAVING count(*) > 1 OR (sample_id IS NULL AND {settings.id is not None}) ORDER BY min(line) LIMIT {SHOWN}"
    ).fetchall()
    if not wrong:
        return
    if settings.id is not None:
        lines = "; ".join(f"{id!r} in {_places(at[:5])}" for id, at in wrong)
        raise ValueError(f"{path}: column {settings.id!r} (align.id) has to name each sample once, but has {lines}")
    lines = "; ".join(_places(at[:5]) for _, at in wrong)
    raise ValueError(f"{path}: rows link the same keys ({lines}): remove them, or name an id column under align.id")


def _places(at: Sequence[tuple[str, int]]) -> str:
    """Lines 2, 3; with the file's name where the table has several files."""
    if len({uri for uri, _ in at}) == 1:
        return f"lines {', '.join(str(line) for _, line in at)}"
    return ", ".join(f"{posixpath.basename(uri)} line {line}" for uri, line in at)
