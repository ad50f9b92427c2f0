"""Items of equal keys belong together, or, with a link table, those whose keys it names."""

from collections.abc import Sequence
from pathlib import Path

import duckdb

from assets.findings import SHOWN, Finding, listed, note
from assets.joins.base import Join
from assets.joins.columns import Columns
from assets.joins.links import join_links
from assets.joins.matching import unmatched
from assets.joins.several import MORE, gathered, unused
from assets.lake import sql_among
from assets.settings import AlignSettings
from assets.source_settings import SourceSettings
from training.schema import MODALITIES


class KeyJoin(Join):
    def join(
        self,
        connection: duckdb.DuckDBPyConnection,
        settings: AlignSettings,
        sources: Sequence[SourceSettings],
        root: Path,
        columns: Columns,
    ) -> Columns:
        if settings.table is not None:
            return join_links(connection, settings, sources, root, columns)
        join_keys(connection, settings)
        return columns


def join_keys(connection: duckdb.DuckDBPyConnection, settings: AlignSettings) -> None:
    """Full outer join of the modalities on key; several items of one key give combinations, or are together in one
    sample where `settings.several` says so."""
    _check_keys_match(connection)
    usable = "FROM items WHERE status = 'present' AND key IS NOT NULL"
    connection.execute(
        f"""
        CREATE TABLE broken_links(uri VARCHAR, line BIGINT, problem VARCHAR);
        CREATE VIEW left_over AS
        SELECT DISTINCT item_id,
          CASE WHEN key IS NULL THEN 'no_key' {unused(settings.several)} ELSE 'too_many' END AS reason, NULL AS why
        FROM items;
        CREATE TABLE ranked AS
        SELECT *, max(rank) OVER same + 1 AS n, count(*) OVER same AS parts FROM (
          SELECT key, modality, item_id, id, unit, NULL::{MORE} AS more, NULL::VARCHAR[] AS views,
            dense_rank() OVER (PARTITION BY key, modality
              ORDER BY position, uri, "row" NULLS FIRST, member, item_id) - 1 AS rank
          {usable} AND NOT {sql_among("modality", settings.several)})
        WINDOW same AS (PARTITION BY key, modality)
        UNION ALL BY NAME
        SELECT *, 0 AS rank, 1 AS n, 1 AS parts
        FROM ({gathered(usable, "key", "position, time, number", settings.several)});
        CREATE TABLE lacking AS
        SELECT DISTINCT key, modality FROM items WHERE status = 'quarantined'
        UNION SELECT key, modality FROM refused_keys WHERE status = 'quarantined';
        """
    )
    # Combinations of items are numbered with the last modality running fastest; an item ranked max_per_key or later is
    # in none of them, and numbering one modality after the other keeps the join small. Parts have the number of their
    # item.
    first = "1::BIGINT AS n, 0::BIGINT AS position, 1::BIGINT AS parts"
    steps = [f"combined_0 AS (SELECT DISTINCT key, {first} FROM ranked)"]
    for number, m in enumerate(MODALITIES):
        steps.append(
            f"""
            combined_{number + 1} AS (
              SELECT c.* EXCLUDE (n, position, parts), few.item_id AS {m}_item, few.id AS {m}_id,
                few.unit AS {m}_unit, few.more AS {m}_more, few.views AS {m}_views,
                c.parts * coalesce(few.parts, 1) AS parts,
                c.n * coalesce(few.n, 1) AS n, c.position * coalesce(few.n, 1) + coalesce(few.rank, 0) AS position
              FROM combined_{number} c LEFT JOIN (FROM ranked WHERE modality = '{m}' AND rank < $most) few USING (key)
              WHERE c.position * coalesce(few.n, 1) + coalesce(few.rank, 0) < $most
            )"""
        )
    units = ", ".join(f"{m}_unit" for m in MODALITIES)
    slots = ", ".join(
        f"c.{m}_item, c.{m}_id, c.{m}_more, c.{m}_views, CASE WHEN c.{m}_item IS NOT NULL THEN {_there(m, settings)} "
        f"WHEN lacking_{m}.key IS NULL THEN 'absent' ELSE 'quarantined' END AS {m}_status"
        for m in MODALITIES
    )
    lacking = " ".join(
        f"LEFT JOIN lacking lacking_{m} ON lacking_{m}.key = c.key AND lacking_{m}.modality = '{m}'" for m in MODALITIES
    )
    connection.execute(
        f"""
        CREATE TABLE joined AS
        WITH {", ".join(steps)}
        SELECT NULL::BIGINT AS line, NULL::VARCHAR AS link_uri, c.key AS split_key, NULL::VARCHAR AS values,
          c.key || CASE WHEN parts = 1 THEN '' ELSE '#' || left(sha256(concat_ws(' ', {units})), 16) END AS sample_id,
          {slots}
        FROM combined_{len(MODALITIES)} c {lacking}
        """,
        {"most": settings.max_per_key},
    )
    connection.execute("DROP TABLE ranked; DROP TABLE lacking")  # as large as the items


def _there(modality: str, settings: AlignSettings) -> str:
    """SQL: the status of what a sample has."""
    is_whole = f"lacking_{modality}.key IS NULL" if modality in settings.several else "true"
    return f"CASE WHEN {is_whole} THEN 'present' ELSE 'incomplete' END"


def _check_keys_match(connection: duckdb.DuckDBPyConnection) -> None:
    """Notes keys that occur in one modality only; raises ValueError where a modality has no others."""
    keys = connection.sql(
        f"""
        SELECT modality, list(DISTINCT source), list(DISTINCT key ORDER BY key)[:{SHOWN}] FROM items
        WHERE key IS NOT NULL GROUP BY 1 ORDER BY 1
        """
    ).fetchall()
    if len(keys) < 2:
        return
    items = "SELECT source, modality, key FROM items"
    others = f"{items} UNION ALL SELECT source, modality, key FROM refused_keys"
    missed = {m.source: m for m in unmatched(connection, items, others, "o.modality <> k.modality")}
    for modality, sources, _ in keys:
        if all(source in missed and missed[source].unmatched == missed[source].keys for source in sources):
            have = "; ".join(f"{modality} has {listed(keys)}" for modality, _, keys in keys)
            near = "".join(missed[source].advice for source in sources)
            raise ValueError(
                f"align: no key of modality {modality} occurs in another modality: {have}{near}. Name the column they "
                "share as `key` of the sources, or link them by a table (align.table)"
            )
    for miss in missed.values():
        said = f"source {miss.source}: {miss.unmatched:,} of {miss.keys:,} keys occur in no other modality"
        note(connection, Finding("unmatched_keys", f"{said}, such as {listed(miss.examples)}{miss.advice}"))
