"""Near duplicates among the items of a modality: told, and, where the project file says so, left out but for one."""

from collections.abc import Collection, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from assets.featurizing import content_key
from assets.findings import SHOWN, Finding, counted
from assets.lake import Lake
from assets.near_duplicates import near_groups
from training.schema import QUARANTINE, conform

# The items whose contents have near duplicates: with their group, in the order of the sources and what these list.
_COPIES = """
WITH listed AS (
  SELECT *, concat(uri, '/' || member, ', row ' || "row") AS place,
    row_number() OVER (ORDER BY list_position($sources, source), uri, "row" NULLS FIRST, member, item_id) AS number
  FROM manifest WHERE modality = $modality AND list_contains($sources, source)
), found AS (
  SELECT m.*, c.id, near, min(number) OVER (PARTITION BY c.id) AS content_number
  FROM listed m JOIN kept c ON parent_id = sha256 AND c.cut IS NOT DISTINCT FROM m.cut JOIN groups USING (id)
)
SELECT *, dense_rank() OVER (PARTITION BY near ORDER BY content_number, id) AS rank,
  first_value(place) OVER (PARTITION BY near ORDER BY number, id) AS kept
FROM found ORDER BY number, id
"""


def copies(lake: Lake, modality: str, sources: Sequence[str], kept: pa.Table, pairs: pa.Table) -> pa.Table:
    """Manifest rows of the items that have near duplicates, with `id` (of the content), `near` (its group), `place`,
    `rank` (of the content in its group, from 1) and `kept` (the place of the first one).

    Args:
        sources: those of samples, in the order of the project file.
        kept: the contents that may be in samples (id, parent_id, cut).
        pairs: training.schema.NEAR_DUPLICATES of the modality.
    """
    with lake.connect("manifest") as connection:
        connection.register("kept", kept)
        connection.register("groups", near_groups(pairs))
        return connection.sql(_COPIES, params={"sources": list(sources), "modality": modality}).to_arrow_table()


def usable(contents: pa.Table, refused: Collection[str]) -> pa.Table:
    """The contents (id, parent_id, cut) that nothing refuses (`content_keys`): of two copies one of these is kept."""
    bad = pa.array(sorted(refused), pa.string())
    return contents.filter(pc.invert(pc.is_in(content_key(contents, "parent_id"), bad)))


def keep_one(contents: pa.Table, found: pa.Table, modality: str) -> tuple[pa.Table, pa.Table]:
    """The contents without all but the first of each group, and rows of `quarantine` for these. Args: `found` as
    `copies` gives it."""
    rows = found.filter(pc.greater(found["rank"], 1))
    kept = contents.filter(pc.invert(pc.is_in(contents["id"], rows["id"].combine_chunks())))
    words = pc.binary_join_element_wise(rows["place"], rows["kept"], " is a near duplicate of ")
    said = {"stage": "filter", "outcome": "duplicate", "reason": "near_duplicate"}
    columns = {name: pa.repeat(value, rows.num_rows) for name, value in said.items()}
    message = pc.binary_join_element_wise(words, f"which is kept (duplicates.{modality}.keep: one)", ", ")
    names = [name for name in QUARANTINE.names if name in rows.column_names]
    return kept, conform(pa.table({name: rows[name] for name in names} | columns | {"message": message}), QUARANTINE)


def copy_findings(found: pa.Table, modality: str, pairs: pa.Table) -> list[Finding]:
    """How many items of which sources are near duplicates, and which for example. Args: as of `copies`."""
    if not pairs.num_rows:
        return []
    places = dict(zip(found["id"].to_pylist(), found["place"].to_pylist(), strict=True))
    counts = {row["values"]: row["counts"] for row in pc.value_counts(found["source"]).to_pylist()}
    sources = ", ".join(f"{name} {n:,}" for name, n in sorted(counts.items()))
    listed = pairs.sort_by([("similarity", "descending"), ("first", "ascending"), ("second", "ascending")])
    shown = "; ".join(
        f"{places[row['first']]} and {places[row['second']]} ({row['similarity']:.2f})"
        for row in listed.slice(0, SHOWN).to_pylist()
    )
    groups = len(pc.unique(found["near"]))
    said = f"{counted(groups, 'group')} of near duplicates of {modality} (items: {sources}), such as {shown}"
    return [Finding("near_duplicates", said)]
