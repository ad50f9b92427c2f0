"""Whether no item disappeared: what became of each that a source gave, counted."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from assets.lake import open_duckdb
from training.schema import MODALITIES


@dataclass(frozen=True)
class Balance:
    """Items in and out, per modality: seen = passed + unmatched + quarantined + duplicate, and none in two ways."""

    counts: dict[str, dict[str, int]]  # modality -> seen, passed, unmatched, quarantined, duplicate, lost, twice
    examples: list[str]  # ids of items without an outcome, or with two

    @property
    def holds(self) -> bool:
        return not any(count["lost"] or count["twice"] for count in self.counts.values())

    def metadata(self) -> dict[str, Any]:
        """Flat, for an asset check."""
        flat = {f"{modality}_{name}": n for modality, counts in self.counts.items() for name, n in counts.items()}
        return flat | ({"examples": self.examples} if self.examples else {})


def item_balance(manifest: pa.Table, quarantine: pa.Table, samples: pa.Table, noise: Collection[str] = ()) -> Balance:
    """Counts what became of every item that manifest and quarantine list.

    Args:
        quarantine: rows of all stages; those of clean, featurize and filter count by content.
        noise: ids of the items that augmentation can use.
    """
    with open_duckdb() as connection:
        connection.register("manifest", manifest)
        connection.register("quarantine", quarantine)
        connection.register("samples", samples)
        connection.register("noise", pa.table({"item_id": pa.array(list(noise), pa.string())}))
        _judge(connection)
        bad = "passed = unmatched AND NOT quarantined"  # neither, or both
        examples = connection.sql(f"SELECT item_id FROM outcomes WHERE {bad} ORDER BY 1 LIMIT 5").fetchall()
        return Balance(_counts(connection), [row[0] for row in examples])


def _judge(connection: duckdb.DuckDBPyConnection) -> None:
    """Table `outcomes`: of each item of the manifest, in which ways it ended."""
    used = "FROM noise" + "".join(
        f" UNION SELECT {m}_item AS item_id FROM samples WHERE {m}_item IS NOT NULL "
        f"UNION SELECT unnest({m}_more).item FROM samples"
        for m in MODALITIES
    )
    connection.execute(
        f"""
        CREATE TABLE outcomes AS
        SELECT m.item_id, m.modality, u.item_id IS NOT NULL AS passed, a.item_id IS NOT NULL AS unmatched,
          NOT passed AND NOT unmatched AND EXISTS (FROM quarantine q WHERE q.sha256 = m.sha256
            AND q.cut IS NOT DISTINCT FROM m.cut AND q.modality = m.modality
            AND q.stage IN ('clean', 'featurize', 'filter')) AS quarantined, d.item_id IS NOT NULL AS is_copy
        FROM manifest m LEFT JOIN ({used}) u USING (item_id)
        LEFT JOIN (SELECT DISTINCT item_id FROM quarantine WHERE stage = 'align') a USING (item_id)
        LEFT JOIN (
          SELECT DISTINCT item_id FROM quarantine WHERE stage = 'filter' AND outcome = 'duplicate') d USING (item_id)
        """
    )


def _counts(connection: duckdb.DuckDBPyConnection) -> dict[str, dict[str, int]]:
    rows = connection.sql(
        """
        WITH listed AS (
          SELECT modality, count(*) AS items, count_if(passed) AS passed, count_if(unmatched) AS unmatched,
            count_if(quarantined AND NOT is_copy) AS quarantined, count_if(quarantined AND is_copy) AS copies,
            count_if(passed AND unmatched) AS twice
          FROM outcomes GROUP BY 1
        ), refused AS (
          SELECT modality, count_if(outcome = 'quarantined') AS refused, count_if(outcome = 'duplicate') AS duplicate,
            count_if(outcome = 'unmatched') AS left_out
          FROM quarantine WHERE stage = 'manifest' AND modality IS NOT NULL GROUP BY 1
        )
        SELECT modality, coalesce(COLUMNS(* EXCLUDE modality), 0) FROM listed FULL JOIN refused USING (modality)
        """
    ).fetchall()
    counts = {}
    for modality, items, passed, unmatched, quarantined, copies, twice, refused, duplicate, left_out in sorted(
        rows, key=lambda row: MODALITIES.index(row[0])
    ):
        counts[modality] = {
            "seen": items + refused + duplicate + left_out,
            "passed": passed,
            "unmatched": unmatched + left_out,
            "quarantined": quarantined + refused,
            "duplicate": duplicate + copies,
            "lost": items - (passed + unmatched - twice + quarantined + copies),
            "twice": twice,
        }
    return counts
