"""The joins behind `assets.alignment.align`, in DuckDB: items by links or by key, into a table `joined`.

Both read the table `items` (and `refused_keys`) of the connection and make

    joined(line, link_uri, sample_id, split_key, values, X_item, X_id, X_status for each modality X)
    candidates(item_id): items that a link names, taken or not
    broken_links(uri, line, problem)
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import pyarrow as pa

from assets.settings import AlignSettings, SourceSettings
from assets.splits import pointer
from assets.tables import read_table
from training.schema import MODALITIES

_LINKS = pa.schema([("line", pa.int64()), ("values", pa.string())])
_SHOWN = 3


def quoted(text: str) -> str:
    """As a string literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


def _cell(json_column: str, column: str) -> str:
    """SQL for the value of a column kept in a JSON object; null where it is empty."""
    return f"nullif(json_extract_string({json_column}, {quoted(pointer(column))}), '')"


@dataclass(frozen=True)
class Columns:
    """The columns that settings can name: those of the link table, and those of each source's items."""

    link: frozenset[str]
    sources: dict[str, frozenset[str]]  # source -> columns
    settings: dict[str, SourceSettings]
    hidden: frozenset[str]  # columns with keys, ids or texts, which are no attributes of a sample

    @classmethod
    def of(cls, connection: duckdb.DuckDBPyConnection, sources: Sequence[SourceSettings]) -> "Columns":
        found = connection.sql("SELECT DISTINCT source, unnest(json_keys(attributes)) FROM items").fetchall()
        columns = {s.name: {s.key} if s.key else set() for s in sources}
        for source, column in found:
            columns[source].add(column)
        texts = frozenset(s.column for s in sources if s.column)
        return cls(frozenset(), {s: frozenset(c) for s, c in columns.items()}, {s.name: s for s in sources}, texts)

    def sql(self, name: str) -> str:
        """The column as SQL over `judged` joined to its items (t, i, s by modality).

        Raises:
            ValueError: there is no such column, or several tables have it.
        """
        if name in self.link:
            return _cell("values", name)
        source, column = name.partition(".")[0], self.bare(name)
        having = [source] if column != name else [s for s, columns in self.sources.items() if name in columns]
        if not having:
            known = [*sorted(self.link), *(f"{s}.{c}" for s, names in self.sources.items() for c in sorted(names))]
            raise ValueError(f"align: no table has a column {name!r}; there are {', '.join(known) or 'none'}")
        modalities = {self.settings[s].modality for s in having}
        # One table that two sources read, joined on its key, gives both the same row.
        rows = {(self.settings[s].table, self.settings[s].key) for s in having}
        if len(modalities) > 1 and (len(rows) > 1 or self.link):
            choices = ", ".join(f"{s}.{name}" for s in having)
            raise ValueError(f"align: column {name!r} is in several tables: write one of {choices}")
        return f"coalesce({', '.join(self._of_items(m, having, column) for m in sorted(modalities))})"

    def bare(self, name: str) -> str:
        """The column's name without that of its source."""
        source, _, column = name.partition(".")
        return column if name not in self.link and column in self.sources.get(source, ()) else name

    def _of_items(self, modality: str, having: Sequence[str], column: str) -> str:
        alias = modality[0]
        named = [self.settings[s] for s in having if self.settings[s].modality == modality]
        values = {s.name: f"{alias}.key" if column == s.key else _cell(f"{alias}.attributes", column) for s in named}
        cases = " ".join(f"WHEN {quoted(s)} THEN {value}" for s, value in values.items())
        return f"CASE {alias}.source {cases} END"


def join_links(
    connection: duckdb.DuckDBPyConnection,
    settings: AlignSettings,
    sources: Sequence[SourceSettings],
    root: Path,
    columns: Columns,
) -> Columns:
    """One row of `joined` per row of the link table; returns the columns with those of the link table."""
    assert settings.table is not None
    path = root / settings.table
    linked = _load_links(connection, settings, path)
    link_columns = _link_columns(settings, sources, root, linked)
    own = {s.column for s in sources if s.column and s.table and (root / s.table).resolve() == path.resolve()}
    hidden = frozenset([*link_columns.values(), *own, *([settings.id] if settings.id else [])])

    cells = " UNION ALL ".join(
        f"SELECT line, {quoted(s.name)} AS source, {quoted(s.modality)} AS modality, "
        f"{_cell('values', link_columns[s.name])} AS key FROM links"
        for s in sources
    )
    # A source without a table has keys without suffix; a link may name the file in full.
    connection.execute(
        f"""
        CREATE TABLE cells AS SELECT * FROM ({cells}) WHERE key IS NOT NULL;
        CREATE TABLE named AS
        SELECT source, key, item_id, id, status, number FROM items WHERE key IS NOT NULL
        UNION ALL
        SELECT source, key || suffix, item_id, id, status, number FROM (
          SELECT *, regexp_extract(coalesce(member, uri), '\\.[^./]*$') AS suffix FROM items WHERE keyless)
        WHERE suffix <> ''
        UNION ALL
        SELECT source, key, NULL, NULL, status, NULL FROM refused_keys;
        CREATE TABLE matches AS
        SELECT line, c.modality, c.source, c.key, item_id, id, coalesce(status, 'not_found') AS status, number,
          n.source IS NOT NULL AS matched
        FROM cells c LEFT JOIN named n ON n.source = c.source AND n.key = c.key;
        CREATE TABLE candidates AS SELECT DISTINCT item_id FROM matches WHERE item_id IS NOT NULL;
        """
    )
    _check_links_match(connection, link_columns, path)
    slots = ", ".join(
        f"max(item_id) FILTER (modality = '{m}' AND status = 'present') AS {m}_item, "
        f"max(id) FILTER (modality = '{m}' AND status = 'present') AS {m}_id, "
        f"coalesce(max(status) FILTER (modality = '{m}'), 'absent') AS {m}_status"
        for m in MODALITIES
    )
    sample_id = f"max({_cell('values', settings.id)})" if settings.id else "left(sha256(max(keys)), 32)"
    connection.execute(
        f"""
        CREATE TABLE joined AS
        WITH picked AS (
          SELECT * FROM matches QUALIFY row_number() OVER (PARTITION BY line, modality ORDER BY
            array_position(['present', 'quarantined', 'not_found', 'absent'], status), number) = 1
        ), keyed AS (
          SELECT line, to_json(list([source, key] ORDER BY source))::VARCHAR AS keys FROM cells GROUP BY line
        )
        SELECT line, {quoted(str(path))} AS link_uri, {sample_id} AS sample_id, sample_id AS split_key,
          max(values) AS values, {slots}
        FROM links LEFT JOIN keyed USING (line) LEFT JOIN picked USING (line) GROUP BY line
        """
    )
    _check_ids(connection, settings, path)
    return replace(columns, link=frozenset(linked), hidden=hidden)


def _load_links(connection: duckdb.DuckDBPyConnection, settings: AlignSettings, path: Path) -> list[str]:
    """Tables `links(line, values)` and `broken_links`; returns the names of the link table's columns."""
    named = [*settings.columns.values(), *([settings.id] if settings.id else [])]
    columns: dict[str, None] = {}
    batches, lines, values, broken = [], [], [], []
    for record in read_table(path, settings.encoding, named):
        if record.problem is not None:
            broken.append({"uri": str(path), "line": record.line, "problem": record.problem})
            continue
        columns.update(dict.fromkeys(record.values))
        lines.append(record.line)
        values.append(json.dumps({k: v for k, v in record.values.items() if v is not None}, ensure_ascii=False))
        if len(lines) >= 8192:
            batches.append(pa.record_batch([lines, values], schema=_LINKS))
            lines, values = [], []
    batches.append(pa.record_batch([lines, values], schema=_LINKS))
    connection.register("links", pa.Table.from_batches(batches, _LINKS))
    schema = pa.schema([("uri", pa.string()), ("line", pa.int64()), ("problem", pa.string())])
    connection.register("broken_links", pa.Table.from_pylist(broken, schema))
    if not columns:
        raise ValueError(f"{path}: the link table has no usable row")
    return list(columns)


def _link_columns(
    settings: AlignSettings, sources: Sequence[SourceSettings], root: Path, linked: Sequence[str]
) -> dict[str, str]:
    """Source -> column of the link table that holds its keys."""
    assert settings.table is not None
    path, names = (root / settings.table).resolve(), [s.name for s in sources]
    if unknown := set(settings.columns) - set(names):
        raise ValueError(
            f"align.columns names {sorted(unknown)[0]!r}, which is no source; there are {', '.join(names)}"
        )
    found = {}
    for source in sources:
        own = source.key if source.table and (root / source.table).resolve() == path else None
        choices = [settings.columns.get(source.name), own, source.name, source.modality]
        column = next((c for c in choices if c is not None and c in linked), None)
        if column is None:
            raise ValueError(
                f"align.table {path} has no column {source.name!r} or {source.modality!r} with the keys of source "
                f"{source.name!r}: name it under align.columns; it has {', '.join(linked)}"
            )
        found[source.name] = column
    return found


def _check_links_match(connection: duckdb.DuckDBPyConnection, link_columns: dict[str, str], path: Path) -> None:
    missed = connection.sql(
        f"""
        SELECT modality, list(DISTINCT source ORDER BY source), list(DISTINCT key ORDER BY key)[:{_SHOWN}] FROM matches
        WHERE EXISTS (FROM items i WHERE i.modality = matches.modality)
        GROUP BY modality HAVING NOT bool_or(matched) ORDER BY modality
        """
    ).fetchall()
    for _, names, keys in missed:
        have = connection.execute(
            "SELECT list(key) FROM (SELECT DISTINCT key FROM items WHERE source = ANY($1) ORDER BY key LIMIT $2)",
            [names, _SHOWN],
        ).fetchall()[0][0]
        columns = ", ".join(sorted({repr(link_columns[name]) for name in names}))
        raise ValueError(
            f"align: nothing in column {columns} of {path} is a key of {', '.join(names)}: the column has "
            f"{_list(keys)}, the source has {_list(have)}"
        )


def _list(keys: Sequence[str] | None) -> str:
    return ", ".join(repr(key) for key in keys or []) or "no keys"


def _check_ids(connection: duckdb.DuckDBPyConnection, settings: AlignSettings, path: Path) -> None:
    wrong = connection.sql(
        "SELECT sample_id, list(line ORDER BY line) FROM joined GROUP BY 1 "
        f"HAVING count(*) > 1 OR (sample_id IS NULL AND {settings.id is not None}) ORDER BY 2 LIMIT {_SHOWN}"
    ).fetchall()
    if not wrong:
        return
    lines = "; ".join(f"{id!r} in lines {', '.join(map(str, at[:5]))}" for id, at in wrong)
    if settings.id is not None:
        raise ValueError(f"{path}: column {settings.id!r} (align.id) has to name each sample once, but has {lines}")
    lines = "; ".join(f"lines {', '.join(map(str, at[:5]))}" for _, at in wrong)
    raise ValueError(f"{path}: rows link the same keys ({lines}): remove them, or name an id column under align.id")


def join_keys(connection: duckdb.DuckDBPyConnection, settings: AlignSettings) -> None:
    """Full outer join of the modalities on key; several items of one key give combinations."""
    _check_keys_match(connection)
    connection.execute(
        """
        CREATE TABLE broken_links(uri VARCHAR, line BIGINT, problem VARCHAR);
        CREATE TABLE candidates(item_id VARCHAR);
        CREATE TABLE ranked AS
        SELECT key, modality, item_id, id, row_number() OVER (PARTITION BY key, modality ORDER BY number) - 1 AS rank,
          count(*) OVER (PARTITION BY key, modality) AS n
        FROM items WHERE status = 'present' AND key IS NOT NULL;
        CREATE TABLE lacking AS
        SELECT DISTINCT key, modality FROM items WHERE status = 'quarantined'
        UNION SELECT key, modality FROM refused_keys WHERE status = 'quarantined';
        """
    )
    # Combinations are numbered with speech running fastest; an item ranked max_per_key or later is in none of them,
    # and numbering text and image first keeps the join small.
    connection.execute(
        """
        CREATE TABLE joined AS
        WITH few AS (SELECT * FROM ranked WHERE rank < $most),
        k AS (SELECT DISTINCT key FROM ranked),
        t AS (FROM few WHERE modality = 'text'),
        i AS (FROM few WHERE modality = 'image'),
        s AS (FROM few WHERE modality = 'speech'),
        two AS (
          SELECT key, t.item_id AS text_item, t.id AS text_id, i.item_id AS image_item, i.id AS image_id,
            coalesce(t.rank, 0) * coalesce(i.n, 1) + coalesce(i.rank, 0) AS position,
            coalesce(t.n, 1) * coalesce(i.n, 1) AS n
          FROM k LEFT JOIN t USING (key) LEFT JOIN i USING (key)
          WHERE coalesce(t.rank, 0) * coalesce(i.n, 1) + coalesce(i.rank, 0) < $most
        ), three AS (
          SELECT two.* EXCLUDE (position, n), s.item_id AS speech_item, s.id AS speech_id, two.n * coalesce(s.n, 1) AS n
          FROM two LEFT JOIN s USING (key) WHERE position * coalesce(s.n, 1) + coalesce(s.rank, 0) < $most
        )
        SELECT NULL::BIGINT AS line, NULL::VARCHAR AS link_uri, three.key AS split_key, NULL::VARCHAR AS values,
          three.key || CASE WHEN n = 1 THEN ''
            ELSE '#' || left(sha256(concat_ws(' ', text_item, image_item, speech_item)), 8) END AS sample_id,
          text_item, text_id, image_item, image_id, speech_item, speech_id,
          CASE WHEN text_item IS NOT NULL THEN 'present' WHEN lt.key IS NULL THEN 'absent' ELSE 'quarantined' END
            AS text_status,
          CASE WHEN image_item IS NOT NULL THEN 'present' WHEN li.key IS NULL THEN 'absent' ELSE 'quarantined' END
            AS image_status,
          CASE WHEN speech_item IS NOT NULL THEN 'present' WHEN ls.key IS NULL THEN 'absent' ELSE 'quarantined' END
            AS speech_status
        FROM three
        LEFT JOIN lacking lt ON lt.key = three.key AND lt.modality = 'text'
        LEFT JOIN lacking li ON li.key = three.key AND li.modality = 'image'
        LEFT JOIN lacking ls ON ls.key = three.key AND ls.modality = 'speech'
        """,
        {"most": settings.max_per_key},
    )


def _check_keys_match(connection: duckdb.DuckDBPyConnection) -> None:
    rows = connection.sql(
        f"""
        WITH keys AS (SELECT DISTINCT modality, key FROM items WHERE key IS NOT NULL),
        shared AS (SELECT *, count(*) OVER (PARTITION BY key) > 1 AS is_shared FROM keys)
        SELECT modality, bool_or(is_shared), list(key ORDER BY key)[:{_SHOWN}] FROM shared GROUP BY 1 ORDER BY 1
        """
    ).fetchall()
    lonely = [modality for modality, shared, _ in rows if not shared]
    if lonely and len(rows) > 1:
        have = "; ".join(f"{modality} has {_list(keys)}" for modality, _, keys in rows)
        raise ValueError(
            f"align: no key of modality {lonely[0]} occurs in another modality: {have}. Name the column they share as "
            "`key` of the sources, or link them by a table (align.table)"
        )
