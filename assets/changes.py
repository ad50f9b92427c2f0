"""What a listing of the sources has that the one before had not: new items, changed ones, and those that vanished."""

from collections.abc import Iterable
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from assets.lake import Lake, open_duckdb
from training.schema import MANIFEST

_SHOWN = 5  # items that are named, of each source and kind
_ITEM = ["item_id", "source", "uri", "member", "key", "sha256", "cut", "attributes", "time", "until"]


@dataclass(frozen=True)
class SourceChange:
    """A source beside its last listing. An item is known by its place and key."""

    items: int  # in the manifest now
    new: int
    changed: int  # another content, time or other columns, or refused now
    vanished: int
    changed_items: list[str]  # where some of them lie
    vanished_items: list[str]

    @property
    def words(self) -> str:
        """5 new, 1 changed; nothing where all is as before."""
        counts = {"new": self.new, "changed": self.changed, "vanished": self.vanished}
        return ", ".join(f"{n:,} {what}" for what, n in counts.items() if n)


def manifest_before(lake: Lake) -> pa.Table | None:
    """The manifest that is there, as `source_changes` wants it; null before the first run."""
    if lake.version("manifest") is None:
        return None
    return lake.sql(f"SELECT {', '.join(_ITEM)} FROM manifest")


_CHANGES = """
WITH everything AS (
  SELECT coalesce(now.source, before.source) AS source, coalesce(now.uri, before.uri) AS uri,
    coalesce(now.member, before.member) AS member, coalesce(now.key, before.key) AS key,
    now.item_id IS NOT NULL AS there,
    CASE WHEN before.item_id IS NULL THEN 'new'
      WHEN now.item_id IS NULL AND before.item_id NOT IN (SELECT item_id FROM refused) THEN 'vanished'
      WHEN now.item_id IS NULL OR (now.sha256, now.cut, now.attributes, now.time, now.until)
        IS DISTINCT FROM (before.sha256, before.cut, before.attributes, before.time, before.until)
        THEN 'changed' END AS change
  FROM now FULL JOIN before ON now.item_id = before.item_id
), named AS (
  SELECT *, uri || coalesce(': ' || member, '') || coalesce(' (' || key || ')', '') AS place FROM everything
)
SELECT source, count(*) FILTER (there) AS items,
  count(*) FILTER (change = 'new') AS new, count(*) FILTER (change = 'changed') AS changed,
  count(*) FILTER (change = 'vanished') AS vanished,
  coalesce(min(place, {shown}) FILTER (change = 'changed'), []) AS changed_items,
  coalesce(min(place, {shown}) FILTER (change = 'vanished'), []) AS vanished_items
FROM named GROUP BY source
"""


def source_changes(
    sources: Iterable[str], before: pa.Table | None, now: pa.Table, refused: pa.Table
) -> dict[str, SourceChange]:
    """By source: those listed now, then those that are no sources any more.

    Args:
        before: `manifest_before`; null: everything is new.
        now: manifest rows.
        refused: quarantine rows of the same listing.
    """
    with open_duckdb() as connection:
        connection.register("now", now.select(_ITEM))
        connection.register("before", MANIFEST.empty_table().select(_ITEM) if before is None else before)
        connection.register("refused", refused.select(["item_id"]).drop_null())
        return changes_in(connection, sources)


def changes_in(connection: duckdb.DuckDBPyConnection, sources: Iterable[str]) -> dict[str, SourceChange]:
    """`source_changes` of the relations `now`, `before` and `refused`."""
    rows = connection.sql(_CHANGES.format(shown=_SHOWN)).to_arrow_table().to_pylist()
    found = {row.pop("source"): SourceChange(**row) for row in rows}
    nothing = SourceChange(0, 0, 0, 0, [], [])
    return {name: found.get(name, nothing) for name in dict.fromkeys([*sources, *sorted(found)])}
