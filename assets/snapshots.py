"""Snapshots: which versions of the tables a dataset was made of, and the lake as it was then.

The small tables are kept by versions (`training.schema.INDEX_TABLES`). Rows of clean contents, measurements and
features are keyed by content and step and never change, so those of a snapshot are picked out of the newest version,
however often that was compacted: by the contents that the snapshot's manifest lists, and its steps.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import duckdb
import pyarrow as pa

from assets.lake import Lake, sql_among, sql_string
from training.schema import INDEX_TABLES, MODALITIES, SNAPSHOTS

_SHOWN = 10  # snapshots that an error names


@dataclass(frozen=True)
class Recorded:
    """A dataset, and what it was made of."""

    fingerprint: str
    time: datetime  # when it was written
    versions: Mapping[str, int]  # table -> version
    steps: Mapping[str, tuple[str, ...]]  # table -> fingerprints of its rows

    def rows(self) -> list[dict[str, object]]:
        """As `training.schema.SNAPSHOTS` has it."""
        key = {"snapshot": self.fingerprint, "time": self.time}
        tables = [key | {"name": name, "version": version} for name, version in self.versions.items()]
        return tables + [key | {"name": n, "fingerprint": step} for n, steps in self.steps.items() for step in steps]


def record(lake: Lake, fingerprint: str, steps: Mapping[str, Iterable[str]], is_new: bool) -> None:
    """Notes what the present dataset is made of, unless that was noted before.

    Args:
        steps: table -> fingerprints of the rows in it that are the dataset's.
        is_new: it has just been written, so what was noted of an earlier one of this name holds no longer.
    """
    known = f"SELECT 1 FROM snapshots WHERE snapshot = {sql_string(fingerprint)} LIMIT 1"
    if not is_new and lake.sql(known).num_rows:
        return
    versions = {name: version for name in INDEX_TABLES if (version := lake.version(name)) is not None}
    for name in versions:
        lake.keep_log(name)
    made = Recorded(fingerprint, datetime.now(UTC), versions, {name: tuple(some) for name, some in steps.items()})
    rows = pa.Table.from_pylist(made.rows(), SNAPSHOTS)
    lake.replace("snapshots", rows, f"snapshot = {sql_string(fingerprint)}")


def recorded(lake: Lake) -> dict[str, Recorded]:
    """The snapshots by fingerprint, the newest first."""
    found: dict[str, Recorded] = {}
    for row in lake.sql("SELECT * FROM snapshots ORDER BY time DESC, snapshot, name, fingerprint").to_pylist():
        one = found.setdefault(row["snapshot"], Recorded(row["snapshot"], row["time"], {}, {}))
        if row["version"] is None:
            steps = dict(one.steps) | {row["name"]: (*one.steps.get(row["name"], ()), row["fingerprint"])}
            found[row["snapshot"]] = replace(one, steps=steps)
        else:
            found[row["snapshot"]] = replace(one, versions=dict(one.versions) | {row["name"]: row["version"]})
    return found


def keep(lake: Lake, kept: Iterable[Recorded]) -> None:
    """Forgets all snapshots but these."""
    rows = [row for one in kept for row in one.rows()]
    lake.replace("snapshots", pa.Table.from_pylist(rows, SNAPSHOTS))


def as_of(lake: Lake, fingerprint: str) -> Lake:
    """The lake as it was when a dataset was made; it can be read only.

    Raises:
        ValueError: there is no such snapshot; the message names those that there are. Or a table is no longer there in
            the version that it was made of.
    """
    found = recorded(lake)
    if fingerprint not in found:
        named = [f"{one.fingerprint} ({one.time:%Y-%m-%d %H:%M})" for one in list(found.values())[:_SHOWN]]
        more = f", and {len(found) - _SHOWN} older ones" if len(found) > _SHOWN else ""
        raise ValueError(f"there is no snapshot {fingerprint}; there are {', '.join(named) or 'none'}{more}")
    if gone := missing(lake, found[fingerprint]):
        raise ValueError(f"snapshot {fingerprint}: its version of {', '.join(gone)} is no longer there")
    return view(lake, found[fingerprint])


def view(lake: Lake, snapshot: Recorded) -> Lake:
    """As `as_of`, of what is known to be there."""
    conditions = {}
    for modality in MODALITIES:
        listed = f"SELECT concat(sha256, cut) FROM manifest WHERE modality = '{modality}'"
        conditions[f"clean_{modality}"] = f"concat(parent_id, cut) IN ({listed})"
        conditions[f"{modality}_features"] = f"id IN (SELECT id FROM clean_{modality})"
    cleaned = " UNION ALL ".join(f"SELECT id FROM clean_{m}" for m in MODALITIES)
    conditions |= dict.fromkeys(("measurements", "signatures"), f"id IN ({cleaned})")
    steps = {**snapshot.steps, "signatures": snapshot.steps.get("measurements", ())}  # which are noted together
    made = {
        name: f"{sql_among('fingerprint', steps.get(name, ()))} AND {condition}"
        for name, condition in conditions.items()
    }
    made["embeddings"] = f"id IN ({cleaned})"
    known = sql_among("fingerprint", sorted({key for keys in steps.values() for key in keys}))
    made["steps"] = f"{known} OR fingerprint IN (SELECT fingerprint FROM quarantine)"
    # A table that had never been written then has no version, and no rows.
    absent = {name: "false" for name in INDEX_TABLES if name not in snapshot.versions}
    if "near_duplicates" in absent:  # older code did not note its version: today's pairs among the contents of then
        absent["near_duplicates"] = f"first IN ({cleaned}) AND second IN ({cleaned})"
    return replace(lake, versions=snapshot.versions, conditions=made | absent)


def missing(lake: Lake, snapshot: Recorded) -> list[str]:
    """The tables whose version, its log or its files, is no longer there."""
    return [name for name, version in snapshot.versions.items() if not _is_there(lake, name, version)]


def _is_there(lake: Lake, name: str, version: int) -> bool:
    if lake.open_version(name, version) is None:
        return False
    try:
        replace(lake, versions={name: version}).sql(f"SELECT count(*) FROM {name}")
    except (OSError, duckdb.IOException):
        return False
    return True
