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
from assets.joins.several import MORE, gathered, sql_list, unused
from assets.keys import sql_key
from assets.lake import BATCH_ROWS, sql_among, sql_string
from assets.names import normalize
from assets.settings import AlignSettings
from assets.source_settings import SourceSettings
from assets.storage import Location, locate
from assets.tables import read_table
from assets.view_settings import SOURCE, Views
from training.schema import MODALITIES
from training.validation import check

LinkColumns = dict[str, tuple[tuple[str, ...], ...]]

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
    keys = [column for named in link_columns.values() for key in named for column in key]
    hidden = frozenset([*keys, *texts, *([settings.id] if settings.id else [])])

    _match(connection, settings, sources, link_columns)
    _check_links_match(connection, link_columns, path)
    _pick(connection, settings)
    _check_ids(connection, settings, path)
    return replace(columns, link=frozenset(linked), hidden=hidden)


def _match(
    connection: duckdb.DuckDBPyConnection,
    settings: AlignSettings,
    sources: Sequence[SourceSettings],
    link_columns: LinkColumns,
) -> None:
    """Tables `matches`: for each key that a row of the link table names the items that have it, or none; and
    `left_over`."""
    cells = " UNION ALL ".join(
        f"SELECT link, {sql_string(s.name)} AS source, {sql_string(s.modality)} AS modality, key, min(place) AS place, "
        f"{_view(link_columns[s.name], settings.views.get(s.modality))} AS view "
        f"FROM ({_keys(link_columns[s.name], s.modality in settings.several)}) GROUP BY ALL"
        for s in sources
    )
    # A source without a table has keys without suffix; a link may name the file in full.
    connection.execute(
        f"""
        CREATE TABLE cells AS SELECT * FROM ({cells}) WHERE key IS NOT NULL;
        CREATE TABLE named AS
        SELECT source, key, item_id, id, unit, status, position, time, number, view FROM items WHERE key IS NOT NULL
        UNION ALL
        SELECT source, key || suffix, item_id, id, unit, status, position, time, number, view FROM (
          SELECT *, regexp_extract(coalesce(member, uri), '\\.[^./]*$') AS suffix FROM items WHERE keyless)
        WHERE suffix <> ''
        UNION ALL
        SELECT source, key, NULL, NULL, NULL, status, NULL, NULL, NULL, NULL FROM refused_keys;
        CREATE TABLE matches AS
        SELECT link, c.modality, c.source, c.key, item_id, id, unit, coalesce(status, 'not_found') AS status,
          position, place, time, number, coalesce(c.view, n.view) AS view, n.source IS NOT NULL AS matched
        FROM cells c LEFT JOIN named n ON n.source = c.source AND n.key = c.key;
        CREATE VIEW left_over AS
        SELECT DISTINCT item_id, CASE WHEN key IS NULL THEN 'no_key'
          WHEN NOT EXISTS (FROM matches m WHERE m.item_id = i.item_id) THEN 'not_linked'
          {unused(settings.several, "EXISTS (FROM matches m WHERE m.item_id = i.item_id AND m.view IS NOT NULL)")}
          ELSE 'ambiguous' END AS reason, NULL AS why
        FROM items i;
        """
    )


def _keys(columns: tuple[tuple[str, ...], ...], is_list: bool) -> str:
    """SQL: the keys of a source that each row of the link table names, with their places and the number of the column;
    a cell of one column may hold several, `a;b` or a JSON list."""
    listed = []
    for number, key in enumerate(columns, 1):
        whole = sql_key([cell("values", column) for column in key])
        parts = (
            f"CASE WHEN json_type(try_cast({whole} AS JSON)) = 'ARRAY' THEN from_json({whole}, '[\"VARCHAR\"]') "
            f"ELSE string_split({whole}, ';') END"
        )
        each = f"coalesce({parts if is_list and len(key) == 1 else f'[{whole}]'}, [])"
        listed.append(f"list_transform({each}, lambda key: {{'key': key, 'column': {number}}})")
    every = f"SELECT link, flatten([{', '.join(listed)}]) AS keys FROM links"
    return (
        "SELECT link, nullif(trim(named.key), '') AS key, named.column AS number, place FROM "
        f"(SELECT link, unnest(keys) AS named, generate_subscripts(keys, 1) AS place FROM ({every}))"
    )


def _view(columns: tuple[tuple[str, ...], ...], views: Views | None) -> str:
    """SQL: the number of the view that the column says, where there are several, each called like its view."""
    if views is None or views.by != SOURCE or len(columns) == 1:
        return "NULL::INTEGER"
    return f"{sql_list([views.views.index(column) + 1 for (column,) in columns])}[number]"


def _pick(connection: duckdb.DuckDBPyConnection, settings: AlignSettings) -> None:
    """Table `joined`: of each row of the link table and each modality the first item that can be used, or all that can
    where there may be several; where items were cut, a row for each combination of their parts."""
    slots = ", ".join(
        f"CASE WHEN {m}.status IN ('present', 'incomplete') THEN {m}.item_id END AS {m}_item, "
        f"CASE WHEN {m}.status IN ('present', 'incomplete') THEN {m}.id END AS {m}_id, {m}.more AS {m}_more, "
        f"{m}.views AS {m}_views, "
        f"coalesce({m}.status, 'absent') AS {m}_status"
        for m in MODALITIES
    )
    several, viewed = (sql_among("modality", names) for names in (settings.several, settings.views))
    usable = """
        FROM matches WHERE status = 'present'
        QUALIFY row_number() OVER (PARTITION BY link, modality, item_id, id ORDER BY place, number) = 1
    """
    together = gathered(usable, "link", "position, place, time, number", settings.several)
    units = ", ".join(f"{m}.unit" for m in MODALITIES)
    joins = " ".join(f"LEFT JOIN (FROM picked WHERE modality = '{m}') {m} ON {m}.link = links.link" for m in MODALITIES)
    named = cell("values", settings.id) if settings.id else "left(sha256(keys), 32)"
    connection.execute(
        f"""
        CREATE TABLE joined AS
        WITH picked AS (
          SELECT link, modality, item_id, id, unit, NULL::{MORE} AS more, NULL::VARCHAR[] AS views, status
          FROM matches WHERE NOT {several}
          WINDOW best AS (PARTITION BY link, modality ORDER BY
            array_position(['present', 'quarantined', 'not_found', 'absent'], status), number)
          QUALIFY row_number() OVER best = 1 OR status = 'present' AND item_id = first_value(item_id) OVER best
          UNION ALL BY NAME
          FROM (
            SELECT link, modality, CASE WHEN bool_and(status = 'present') THEN 'present'
              WHEN bool_or(status = 'present') THEN 'incomplete' ELSE
              min_by(status, array_position(['quarantined', 'not_found', 'absent'], status)) END AS status
            FROM (SELECT link, modality, CASE WHEN status = 'present' AND view IS NULL AND {viewed} THEN 'not_found'
                ELSE status END AS status FROM matches WHERE {several}) GROUP BY ALL
          ) LEFT JOIN ({together}) USING (link, modality)
        ), keyed AS (
          SELECT link, to_json(list([source, key] ORDER BY source, place))::VARCHAR AS keys FROM cells GROUP BY link
        )
        SELECT links.line, links.uri AS link_uri, {named} AS split_key, values,
          split_key || CASE WHEN count(*) OVER (PARTITION BY links.link) = 1 THEN ''
            ELSE '#' || left(sha256(concat_ws(' ', {units})), 16) END AS sample_id, {slots}
        FROM links LEFT JOIN keyed USING (link) {joins}
        """
    )


def _load_links(connection: duckdb.DuckDBPyConnection, settings: AlignSettings, path: Location) -> list[str]:
    """Tables `links(link, uri, line, values)` and `broken_links`; returns the names of the link table's columns."""
    named = [column for keys in settings.key_columns.values() for key in _each(keys, settings) for column in key]
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


def _each(key: tuple[str, ...], settings: AlignSettings) -> tuple[tuple[str, ...], ...]:
    """The keys that `align.columns` says for a source: `front;side` are two columns, each with a key of its own."""
    if settings.several and len(key) == 1:
        return tuple((column.strip(),) for column in key[0].split(";"))
    return (key,)


def _link_columns(
    settings: AlignSettings, sources: Sequence[SourceSettings], root: Path, linked: Sequence[str]
) -> LinkColumns:
    """Source -> its keys in a row of the link table, each a column or columns that are the key together."""
    assert settings.table is not None
    path, names = locate(settings.table, root), [s.name for s in sources]
    if unknown := settings.key_columns.keys() - set(names):
        raise ValueError(
            f"align.columns names {sorted(unknown)[0]!r}, which is no source; there are {', '.join(names)}"
        )
    columns: LinkColumns = {}
    for source in sources:
        shared = source.keys if source.table and locate(source.table, root).uri == path.uri else ()
        views = settings.views.get(source.modality)
        each_view = views.views if views is not None and views.by == SOURCE and source.name not in views.views else ()
        choices = [settings.key_columns.get(source.name, ()), shared, (";".join(each_view),), (source.name,)]
        choices.append((source.modality,))
        keys = [_each(choice, settings) for choice in choices if choice]
        named = next((key for key in keys if {column for one in key for column in one} <= set(linked)), None)
        if named is None:
            raise ValueError(
                f"align.table {path.uri} has no column {source.name!r} or {source.modality!r} with the keys of source "
                f"{source.name!r}: name it under align.columns; it has {', '.join(linked)}"
            )
        expected = f"one column, unless align.several lets a sample have several of modality {source.modality}"
        check(len(named) == 1 or source.modality in settings.several, f"align.columns.{source.name}", named, expected)
        if views is not None and views.by == SOURCE:
            told = [column for (column,) in named] if len(named) > 1 else [source.name]
            odd = [name for name in told if name not in views.views]
            expected = (
                f"columns called like the views of {source.modality} ({', '.join(views.views)}), or one source each"
            )
            check(not odd, f"align.columns.{source.name}", told, expected)
        columns[source.name] = named
    return columns


def _check_links_match(connection: duckdb.DuckDBPyConnection, link_columns: LinkColumns, path: Location) -> None:
    """Notes cells that name nothing; raises ValueError where no cell of a modality names anything."""
    cells = "SELECT source, modality, key FROM matches"
    names = "SELECT source, NULL AS modality, key FROM named"
    missed = unmatched(connection, cells, names, "o.source = k.source")
    for miss in missed:
        column = f"column {';'.join(map('/'.join, link_columns[miss.source]))!r} of {path}"
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
        # Without an id, rows that name no key have none, and give no sample.
        f"HAVING CASE WHEN sample_id IS NULL THEN {settings.id is not None} ELSE count(*) > 1 END "
        f"ORDER BY min(line) LIMIT {SHOWN}"
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
