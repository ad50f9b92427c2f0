"""The items that are aligned, as DuckDB has them while samples are made of them, and what becomes of the rest."""

from collections.abc import Mapping, Sequence

import duckdb
import pyarrow as pa

from assets.filtering import TIMES
from assets.lake import sql_name
from assets.source_settings import SourceSettings
from training import catalog
from training.schema import MODALITIES, QUARANTINE, conform

# What tells items apart and where they belong; not the texts, of which samples have the hash.
ITEM_COLUMNS = ["item_id", "source", "modality", "key", "uri", "member", "row"]
ITEM_COLUMNS += ["time", "until", "sha256", "cut", "attributes"]
_STRING = pa.string()
_TIMES = dict.fromkeys(TIMES, pa.float64())


def register_items(
    connection: duckdb.DuckDBPyConnection,
    clean_ids: Mapping[str, pa.Table],
    refused: Mapping[str, set[str]] | None,
    quarantine: pa.Table | None,
) -> None:
    """Relations that `load_items` reads beside `manifest`, of the arguments of `assets.alignment.align`: `quarantine`,
    `parts(modality, id, parent_id, cut, start, seconds)` and `refused(modality, content)`."""
    parts = {m: rows if "parent_id" in rows.column_names else _whole(rows["id"]) for m, rows in clean_ids.items()}
    connection.register("parts", _by_modality(parts, {"id": _STRING, "parent_id": _STRING, "cut": _STRING} | _TIMES))
    hashes = {m: pa.table({"content": pa.array(sorted(rows), _STRING)}) for m, rows in (refused or {}).items()}
    connection.register("refused", _by_modality(hashes, {"content": _STRING}))
    connection.register("quarantine", quarantine if quarantine is not None else QUARANTINE.empty_table())


def load_items(connection: duckdb.DuckDBPyConnection, sources: Sequence[SourceSettings], lenient: bool) -> None:
    """Tables `items` (the manifest with `id`, `status` and a stable `number`), `refused_keys`, `findings` and `report`.

    Args:
        lenient: what is not in `parts` is refused.

    Raises:
        ValueError: an item was neither cleaned nor refused.
    """
    named = {"name": [s.name for s in sources], "keyless": [s.files is not None and s.table is None for s in sources]}
    connection.register("sources", pa.table(named | {"position": list(range(len(sources)))}))
    connection.execute("CREATE TABLE findings(code VARCHAR, message VARCHAR)")
    connection.execute("CREATE TABLE report(name VARCHAR, value VARCHAR)")
    connection.execute(
        f"""
        CREATE TABLE items AS
        SELECT {", ".join(f"m.{sql_name(column)}" for column in ITEM_COLUMNS)}, coalesce(p.id, sha256) AS id, keyless,
          position, NULL::INTEGER AS view,
          p.start, p.seconds,
          row_number() OVER (ORDER BY position, uri, "row" NULLS FIRST, member, item_id, p.start, p.id) AS number,
          CASE WHEN EXISTS (FROM refused r WHERE r.content = concat(sha256, m.cut) AND r.modality = m.modality)
              THEN 'quarantined'
            WHEN p.id IS NOT NULL THEN 'present' WHEN $lenient THEN 'quarantined' END AS status,
          -- what tells one child from another, in the name of a sample
          CASE WHEN coalesce(p.id, sha256) = sha256 THEN item_id ELSE item_id || ' ' || p.id END AS unit
        FROM manifest m JOIN sources s ON s.name = m.source
        LEFT JOIN (SELECT DISTINCT * FROM parts) p
          ON p.parent_id = sha256 AND p.cut IS NOT DISTINCT FROM m.cut AND p.modality = m.modality
        """,
        {"lenient": lenient},
    )
    connection.execute(
        """
        CREATE TABLE refused_keys AS
        SELECT source, modality, key, min(CASE reason WHEN 'absent' THEN 'absent' ELSE 'quarantined' END) AS status
        FROM quarantine WHERE stage = 'manifest' AND outcome = 'quarantined' AND key IS NOT NULL GROUP BY ALL
        """
    )
    count, modality, uri, member, time = connection.sql(
        """
        SELECT count(*), any_value(modality), any_value(uri), any_value(member),
          any_value(make_timestamp(epoch_us("time"))) FROM items WHERE status IS NULL
        """
    ).fetchall()[0]
    if count:
        where = (f"{uri}: {member}" if member else uri) + (f" of {time:%Y-%m-%d %H:%M} UTC" if time else "")
        raise ValueError(
            f"{count} items were neither cleaned nor refused, such as {modality} {where}: clean them first"
        )


def _whole(ids: pa.ChunkedArray) -> pa.Table:
    return pa.table({"id": ids, "parent_id": ids})


def _by_modality(tables: Mapping[str, pa.Table], columns: Mapping[str, pa.DataType]) -> pa.Table:
    """One table of those of all modalities, with these columns; what one lacks is null."""
    schema = pa.schema([("modality", _STRING), *columns.items()])
    named = [
        conform(rows.append_column("modality", pa.repeat(modality, rows.num_rows)), schema)
        for modality, rows in tables.items()
    ]
    return pa.concat_tables([schema.empty_table(), *named])


_WHY = {
    "no_key": "has no key, so nothing can be joined to it",
    "not_linked": "is named by no row of the link table",
    "ambiguous": "shares its key with another item of its modality, which was taken",
    "too_many": "its key gives more samples than align.max_per_key",
    "over_several": "its sample has as many of its modality as align.several allows",
    "no_view": "is of none of the views that align.several names",
    "same_view": "is of the same view as another item of its sample, which was taken",
    "no_input": "none of its inputs can be used",
    "no_time": "says of no time, so nothing can be near it",
    "no_clock": "has the time of a clock that nothing says",
    "no_partner": "nothing is near enough in time",
    "passed_over": "another item of its source is nearer to every sample",
    "same_time": "begins at once with another item of its source, which was taken",
    "outside": "falls between the windows",
} | {f"requires_{m}": f"nothing that matches has the required {m}" for m in MODALITIES}


def tell_unmatched(connection: duckdb.DuckDBPyConnection) -> None:
    """Table `unmatched`: quarantine rows of the items that no sample uses, and of the links that give no sample.

    Reads the tables of a join (`assets.joins.base`), and the view `judged` of its rows with why each is dropped.
    """
    connection.register("reasons", pa.table({"reason": list(_WHY), "why": list(_WHY.values())}))
    connection.register("no_rows", QUARANTINE.empty_table())
    uses = " UNION ALL ".join(
        f"SELECT {m}_item AS item_id, dropped FROM judged WHERE {m}_item IS NOT NULL "
        f"UNION ALL SELECT unnest({m}_more).item, dropped FROM judged"
        for m in MODALITIES
    )
    texts = [name for name in MODALITIES if catalog.MODALITIES.load(name).is_text]
    connection.execute(
        f"""
        CREATE TABLE unmatched AS FROM no_rows;
        INSERT INTO unmatched BY NAME
        WITH uses AS (
          SELECT item_id, bool_or(dropped IS NULL) AS used, min(dropped) AS dropped FROM ({uses}) GROUP BY 1
        ), unused AS (
          SELECT DISTINCT ON (i.item_id) i.*, coalesce(dropped, l.reason) AS reason,
            CASE WHEN dropped IS NULL THEN l.why END AS more
          FROM items i LEFT JOIN uses u USING (item_id) LEFT JOIN left_over l USING (item_id)
          WHERE i.status = 'present' AND NOT coalesce(used, false)
        )
        SELECT 'align' AS stage, 'unmatched' AS outcome, reason,
          concat_ws(' ', uri || coalesce(': ' || member, ''),
            CASE WHEN list_contains({texts}, modality) THEN 'line ' || "row" END,
            '(key ' || key || '):', coalesce(more, why)) AS message,
          item_id, source, modality, key, uri, member, "row", sha256, cut
        FROM unused JOIN reasons USING (reason)
        UNION ALL BY NAME
        SELECT 'align' AS stage, 'unmatched' AS outcome, reason,
          concat_ws(' ', link_uri, 'line ' || line || ':', why) AS message, link_uri AS uri, line AS "row"
        FROM judged JOIN reasons ON reason = dropped WHERE line IS NOT NULL
        UNION ALL BY NAME
        SELECT 'align' AS stage, 'quarantined' AS outcome, 'malformed' AS reason,
          uri || ': ' || problem AS message, uri, line AS "row"
        FROM broken_links
        """
    )
