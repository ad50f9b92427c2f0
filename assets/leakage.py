"""What stands on more than one side of a split, so that a model could know the answer of a test row by heart."""

from collections.abc import Mapping, Sequence
from typing import Any

import duckdb
import pyarrow as pa

from assets.findings import quoted
from assets.joins.several import of_sample
from assets.lake import open_duckdb, sql_string
from assets.near_duplicates import GROUPS
from assets.settings import AlignSettings
from assets.splits import pointer
from training import catalog
from training.schema import MANIFEST, MODALITIES, SPLITS

LEAKS = pa.schema(
    [
        ("kind", pa.string()),  # group | held_out | content | near | item | inputs
        ("column", pa.string()),  # or modality, or modalities
        ("value", pa.string()),
        ("splits", pa.list_(pa.string())),
        ("samples", pa.int64()),
        ("examples", pa.list_(pa.string())),  # a sample of each of the splits
    ]
)
# SQL over samples: the contents of all modalities as one value; null where there is none.
_CONTENTS = [f"{m}_id, array_to_string([item.id for item in {m}_more], '+')" for m in MODALITIES]
INPUTS = f"nullif(concat_ws('+', {', '.join(_CONTENTS)}), '')"


def leakage(
    samples: pa.Table, settings: AlignSettings, manifest: pa.Table | None = None, near: pa.Table | None = None
) -> pa.Table:
    """What stands on two sides (schema LEAKS; no rows: nothing does).

    A value of a `group` column in two splits; a value of a `held_out` column in test and in another split; the same
    content of a modality (`telling_modalities`), near duplicates, parts of one item, or the same inputs as a whole, in
    two splits. What consists of `allow_shared` modalities only is no leak.

    Args:
        manifest: `item_id`, `sha256` and `cut` of the items, to tell what parts are of; null: nothing was cut.
        near: groups of near duplicates (assets.near_duplicates.GROUPS); null: none were sought.
    """
    given, telling, allowed = _given(samples), telling_modalities(samples), settings.allow_shared
    kinds = [("group", column, _of_groups(column), "") for column in settings.group]
    kinds += [("held_out", c, _of_groups(c), "HAVING bool_or(split = 'test')") for c in settings.held_out]
    kinds += [("content", m, _of_contents(m), "") for m in telling if m not in allowed]
    kinds += [("near", m, f"unnest({m}_near)", "") for m in telling if m not in allowed and near]
    kinds += [("item", m, f"unnest({m}_parents)", "") for m in given if m not in allowed and manifest]
    shared, others = ([f"{m}_id" for m in names] for names in (set(telling) & set(allowed), set(given) - set(allowed)))
    if shared and others:
        both = " AND ".join(f"coalesce({', '.join(columns)}) IS NOT NULL" for columns in (shared, others))
        kinds.append(("inputs", "+".join(given), f"CASE WHEN {both} THEN {INPUTS} END", ""))
    with open_duckdb() as connection:
        connection.register("written", samples)
        connection.register("manifest", manifest or MANIFEST.empty_table())
        connection.register("near", near or GROUPS.empty_table())
        connection.execute(_with_origins(bool(manifest), bool(near)))
        return pa.concat_tables([LEAKS.empty_table(), *(_on_two_sides(connection, *kind) for kind in kinds)])


def repeated(samples: pa.Table, settings: AlignSettings) -> dict[str, int]:
    """Modality -> contents in two splits that are no leak: texts beside media, and what `allow_shared` names."""
    others = [m for m in MODALITIES if m not in telling_modalities(samples) or m in settings.allow_shared]
    with open_duckdb() as connection:
        connection.register("samples", samples)
        counts = {m: _on_two_sides(connection, "content", m, _of_contents(m), "").num_rows for m in others}
    return {m: n for m, n in counts.items() if n}


def telling_modalities(samples: pa.Table) -> list[str]:
    """Those of which an equal content makes two samples alike: media; texts only where there is nothing else, since
    short questions repeat with every picture."""
    given = _given(samples)
    return [m for m in given if not catalog.MODALITIES.load(m).is_text] or given


def _given(samples: pa.Table) -> list[str]:
    return [m for m in MODALITIES if samples[f"{m}_id"].null_count < samples.num_rows]


def _of_groups(column: str) -> str:
    return f"json_extract_string(groups, {sql_string(pointer(column))})"


def _of_contents(modality: str) -> str:
    """Each content of a modality, wherever it stands among several."""
    return f"unnest({of_sample(modality, 'id')})"


def _with_origins(parts: bool, near: bool) -> str:
    """SQL that makes `samples`: those written, with the bytes that are cut somewhere and that their contents are of, as
    the list `X_parents` of each modality X, and the groups of near duplicates of their contents as `X_near`."""
    items = {
        f"{m}_parents": f"""
        SELECT sample_id, list(DISTINCT sha256) AS listed
        FROM (SELECT sample_id, unnest({of_sample(m, "item")}) AS item_id FROM written)
        JOIN cut_items USING (item_id) GROUP BY 1"""
        for m in MODALITIES
    }
    contents = {
        f"{m}_near": f"""
        SELECT sample_id, list(DISTINCT near) AS listed
        FROM (SELECT sample_id, unnest({of_sample(m, "id")}) AS id FROM written) JOIN near USING (id) GROUP BY 1"""
        for m in MODALITIES
    }
    lists = (items if parts else {}) | (contents if near else {})
    return f"""
    CREATE TABLE cut_items AS SELECT item_id, sha256 FROM manifest
    WHERE sha256 IN (SELECT sha256 FROM manifest WHERE cut IS NOT NULL);
    CREATE VIEW samples AS SELECT w.*{"".join(f", {name}.listed AS {name}" for name in lists)} FROM written w
    {" ".join(f"LEFT JOIN ({sql}) {name} USING (sample_id)" for name, sql in lists.items())};
    """


def _on_two_sides(
    connection: duckdb.DuckDBPyConnection, kind: str, column: str, value: str, condition: str
) -> pa.Table:
    """Rows of LEAKS.

    Args:
        value: SQL over `samples`, which may give several of a sample (`unnest`).
        condition: a HAVING over a value's rows.
    """
    return (
        connection.sql(
            f"""
        WITH valued AS (
          SELECT DISTINCT {value} AS "value", split, sample_id FROM samples WHERE split IN {SPLITS}
        ), sided AS (
          SELECT "value", split, count(*) AS samples, min(sample_id) AS example FROM valued
          WHERE "value" IS NOT NULL GROUP BY 1, 2
        ), shared AS (SELECT "value" FROM sided GROUP BY 1 {condition})
        SELECT $kind AS kind, $column AS "column", "value", list(split ORDER BY split) AS splits,
          sum(samples) AS samples, list(example ORDER BY split) AS examples
        FROM sided SEMI JOIN shared USING ("value") GROUP BY "value" HAVING count(*) > 1 ORDER BY "value"
        """,
            params={"kind": kind, "column": column},
        )
        .to_arrow_table()
        .cast(LEAKS)
    )


def leak_words(leaks: pa.Table, settings: AlignSettings) -> str:
    """What `leakage` found and what to do, in a line."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for leak in leaks.to_pylist():
        found.setdefault((leak["kind"], leak["column"]), []).append(leak)
    return "; ".join(_of_kind(kind, column, rows, settings) for (kind, column), rows in found.items())


def _of_kind(kind: str, column: str, rows: Sequence[Mapping[str, Any]], settings: AlignSettings) -> str:
    first, samples = rows[0], sum(row["samples"] for row in rows)
    nouns = {"content": "content", "inputs": "content", "item": "item", "near": "set of near duplicates"}
    noun = nouns.get(kind, "value")
    by_content = kind in nouns
    several = "sets of near duplicates" if kind == "near" else f"{noun}s"
    counted = f"1 {noun} of {column} stands" if len(rows) == 1 else f"{len(rows):,} {several} of {column} stand"
    pairs = zip(first["examples"], first["splits"], strict=True)
    sides = ", ".join(f"{quoted(one)} in {split}" for one, split in pairs)
    example = sides if by_content else f"{quoted(first['value'])}, {sides}"
    said = f"{counted} on more than one side of a split ({samples:,} samples: {example})"
    allow = f"align.allow_shared: [{column.replace('+', ', ')}] where that is meant"
    remedies = []
    if (by := settings.split.column) is not None:
        remedies.append(f"mend column {by!r} (align.split)")
    elif kind == "content" and column in settings.several:
        remedies.append("set align.group to a column that is the same in all samples that share one")
    elif kind == "content":
        groups = ", ".join([*settings.group, f"{column}_id"])
        remedies.append(f"set align.group: [{groups}] to keep equal ones on one side")
    if kind == "near":
        remedies.append(f"set duplicates.{column}: {{keep: one}} to keep one of each")
        remedies.append(f"raise duplicates.{column}.least, or set duplicates.{column}: off, where they are none")
    elif kind == "item" and by is None:
        remedies.append("name under align.group and held_out what all parts of an item have in common")
    if by_content:
        remedies.append(allow if remedies else f"set {allow}")
    return said + (f": {', or '.join(remedies)}" if remedies else "")
