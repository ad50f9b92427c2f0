"""Parts of one item, where samples are made: they stay on one side of a split, and should not overlap. Near duplicates
stay on one side, too."""

from collections.abc import Sequence

import duckdb
import numpy as np
import pyarrow as pa

from assets.findings import SHOWN, Finding, counted, note
from assets.joins.several import of_sample
from training.schema import SPLITS

# The bytes that have parts, and which samples hold something of them: a part, or the whole.
_PARTS = "SELECT sha256 FROM items WHERE id <> sha256 AND status = 'present'"
_PAIRS = "SELECT DISTINCT split_key, parent FROM ({used}) WHERE parent IN ({parts})"


def tie_parts(
    connection: duckdb.DuckDBPyConnection, kept: str, modalities: Sequence[str], near: pa.Table | None = None
) -> None:
    """Table `tied(split_key, tied_unit)`: samples that parts of one item, or near duplicates, tie together, directly or
    by others, are one unit, which falls into one split; those that it does not name are units of their own.

    Args:
        kept: SQL of the rows that become samples, joined to their items (`items` under the name of each modality).
        modalities: those whose parts tie.
        near: the contents that have near duplicates (assets.near_duplicates.GROUPS).
    """
    # Not a UNION of the modalities: DuckDB 2.0.0 takes the first for all, since only their aliases differ.
    first = (
        f"SELECT split_key, unnest([{', '.join(f'{m}.sha256' for m in modalities)}]::VARCHAR[]) AS parent FROM {kept}"
    )
    more = ", ".join(f"coalesce([further.item for further in {m}_more], [])" for m in modalities)
    further = f"SELECT split_key, unnest(flatten([{more}]::VARCHAR[][])) AS item_id FROM {kept}"
    used = f"{first} UNION ALL SELECT split_key, sha256 FROM ({further}) JOIN items USING (item_id)"
    has_parts = connection.sql(f"{_PARTS} LIMIT 1").fetchall() != []
    query = f"({_PAIRS.format(used=used, parts=_PARTS)}{'' if has_parts else ' LIMIT 0'})"
    if near is not None and near.num_rows:
        connection.register("near", near)
        query += f" UNION SELECT split_key, near FROM ({_contents(kept, modalities)}) JOIN near USING (id)"
    pairs = connection.sql(query).fetchnumpy()
    connection.register("tied", units(pairs["split_key"], pairs["parent"]))
    if not len(pairs["split_key"]):
        return
    ((most, total),) = connection.sql(
        f"SELECT max(n), (SELECT count(DISTINCT split_key) FROM {kept}) FROM (SELECT count(*) AS n FROM tied "
        "GROUP BY tied_unit)"
    ).fetchall()
    if most is not None and 2 * most > total:
        said = f"parts of the same items, or near duplicates, tie {most:,} of {total:,} samples (or blocks of them) "
        said += "together, so these fall into one split; a modality named under align.allow_shared ties nothing"
        note(connection, Finding("tied_samples", said))


def hold_splits(connection: duckdb.DuckDBPyConnection, kept: str, before: pa.Table | None) -> None:
    """Table `held_splits(tied_unit, held)`: in which split what is tied has been so far. Where it is tied only now and
    was in several, it is the first of SPLITS: what was trained on never becomes a test.

    Args:
        before: `sample_id` and `split` of the samples there were; null: none.
    """
    none = pa.schema([("sample_id", pa.string()), ("split", pa.string())]).empty_table()
    connection.register("samples_before", none if before is None else before)
    connection.execute(
        f"""
        CREATE TABLE held_splits AS
        SELECT tied_unit, arg_min(split, list_position({list(SPLITS)}, split)) AS held
        FROM (SELECT split_key, sample_id FROM {kept}) JOIN tied USING (split_key) JOIN samples_before USING (sample_id)
        WHERE split IN {SPLITS} GROUP BY 1
        """
    )


def _contents(kept: str, modalities: Sequence[str]) -> str:
    """SQL of the contents of each sample that is `kept`."""
    listed = ", ".join(of_sample(m, "id") for m in modalities)
    return f"SELECT split_key, unnest(flatten([{listed}]::VARCHAR[][])) AS id FROM {kept}"


def units(keys: np.ndarray, parents: np.ndarray) -> pa.Table:
    """Each key that hangs together with others, and the first of the parents by which it does."""
    schema = pa.schema([("split_key", pa.string()), ("tied_unit", pa.string())])
    if not len(keys):
        return schema.empty_table()
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    names, key_numbers = np.unique(keys.astype(str), return_inverse=True)
    items, numbers = np.unique(parents.astype(str), return_inverse=True)
    size = len(names) + len(items)
    edges = coo_array((np.ones(len(keys), bool), (key_numbers, len(names) + numbers)), shape=(size, size))
    labels = connected_components(edges, directed=False)[1]
    first = dict(zip(labels[len(names) :][::-1].tolist(), items[::-1].tolist(), strict=True))
    of_keys = labels[: len(names)]
    several = np.bincount(of_keys)[of_keys] > 1
    tied = [first[label] for label in of_keys[several].tolist()]
    return pa.table([pa.array(names[several], pa.string()), pa.array(tied, pa.string())], schema)


def note_overlaps(connection: duckdb.DuckDBPyConnection) -> None:
    """Notes segments that were given by times and begin before another one of their recording ends."""
    rows = connection.sql(
        f"""
        WITH spans AS (
          SELECT source, modality, sha256, uri, member, split_part(cut, '-', 1)::BIGINT AS first,
            split_part(cut, '-', 2)::BIGINT AS last
          FROM items WHERE status = 'present' AND regexp_full_match(cut, '[0-9]+-[0-9]+')
        ), behind AS (
          SELECT *, max(last) OVER (PARTITION BY source, sha256, modality ORDER BY first, last
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before FROM spans
        )
        SELECT source, count(*), (list(printf('%s at %.3f s', coalesce(member, uri), first / 1e6) ORDER BY uri, member,
          first))[:{SHOWN}] FROM behind WHERE before > first GROUP BY source ORDER BY source
        """
    ).fetchall()
    for source, count, examples in rows:
        said = f"source {source}: overlaps of {counted(count, 'segment')} with an earlier one of the recording"
        note(connection, Finding("overlapping_segments", f"{said}, such as {', '.join(examples)}"))
