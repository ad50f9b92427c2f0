"""Cleaning up: removes what nothing refers to, compacts, vacuums. For erasing see `orchestration.erasure`."""

import json
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from assets import featurizing, pipeline
from assets.compaction import compact
from assets.lake import Lake, sql_among, sql_string
from assets.processing import CLEAN_STEP, FEATURES_STEP
from assets.settings import Project
from orchestration.search import embedding_fingerprint
from training.schema import MODALITIES, TABLES

_FILES = 8  # a table of fewer files is not worth compacting
_IDS = 5000  # ids in one predicate; delta-rs ends the process at 100,000

Key = tuple[str, str]  # id and fingerprint of a clean or feature row


@dataclass(frozen=True)
class Collected:
    """What `collect` removed, or would remove in a dry run."""

    project: str
    dry_run: bool
    removed: dict[str, int]  # table -> rows
    compacted: dict[str, int]  # table -> files that became few
    files: int  # of older table versions


@dataclass(frozen=True)
class Snapshot:
    """A version of the table `dataset` that a registered version of the model was trained on."""

    model: int  # the model's version
    run_id: str
    version: int  # the table's
    ids: Mapping[str, Set[str]]  # modality -> contents
    note: Mapping[str, str]
    features: Mapping[str, str]  # modality -> fingerprint of its feature rows
    tags: Mapping[str, str]  # of the model's version


def collect(project: Project, dry_run: bool) -> Collected:
    """Removes clean and feature rows that neither the manifest nor a kept snapshot needs, and refusals that hold no
    longer, then compacts and vacuums.

    A snapshot is kept while a registered version was trained on it. Files of older table versions go, except those of
    kept snapshots of `dataset`. The caller holds the project's lock: a run would lose what it is reading.

    Returns:
        Rows removed and files compacted by table; with `dry_run` those that would be.

    Raises:
        ValueError: the snapshot of a registered version is not there, so what it needs cannot be told.
    """
    lake = pipeline.open_lake(project)
    kept = kept_snapshots(project, lake)
    removed: dict[str, int] = {}
    for name, alive in _needed(project, lake, kept).items():
        rows = lake.sql(f"SELECT id, fingerprint FROM {name}")  # file after file
        keys = dict.fromkeys(zip(rows["id"].to_pylist(), rows["fingerprint"].to_pylist(), strict=True))
        dead = [key for key in keys if key not in alive]
        removed[name] = len(dead)
        if not dry_run:
            _delete(lake, name, dead, {fingerprint for _, fingerprint in alive})
    present = pipeline.quarantined(lake, project)
    removed["quarantine"] = lake.read("quarantine").num_rows - present.num_rows
    if removed["quarantine"] and not dry_run:
        lake.replace("quarantine", present)
    tables = {name: table for name in TABLES if (table := lake.open(name)) is not None}
    compacted = {name: files for name, table in tables.items() if (files := len(table.file_uris())) >= _FILES}
    vacuumed = 0
    if not dry_run:
        for name in tables:
            if name in compacted:
                compact(lake, name)
            vacuumed += lake.vacuum(name, [s.version for s in kept] if name == "dataset" else None)
    return Collected(project.name, dry_run, removed, compacted, vacuumed)


def _needed(project: Project, lake: Lake, kept: Iterable[Snapshot]) -> dict[str, set[Key]]:
    """The keys of the rows of each table of contents that the manifest or a kept snapshot needs.

    A clean row lives as long as its content is needed at all.
    """
    needed: dict[str, set[Key]] = {"measurements": set(), "embeddings": set()}
    tags = [s.tags for s in kept]
    for modality in MODALITIES:
        now = featurizing.make_step(project, modality).fingerprints if modality in project.modalities else None
        listed = f"""
            SELECT id FROM clean_{modality} c JOIN manifest m ON sha256 = parent_id AND m.cut IS NOT DISTINCT FROM c.cut
            WHERE modality = $m
            UNION SELECT sha256 FROM manifest WHERE modality = $m
        """
        current = set(lake.sql(listed, {"m": modality})["id"].to_pylist())
        ids = current.union(*(snapshot.ids[modality] for snapshot in kept))
        features = {(id, now["features"]) for id in current} if now else set()
        for snapshot in kept:
            if (fingerprint := snapshot.features.get(modality)) is not None:
                features |= {(id, fingerprint) for id in snapshot.ids[modality]}
        needed[f"clean_{modality}"] = {(id, now["clean"]) for id in ids} if now else set()
        # Whatever cut them: only these rows tell erasing which item the parts in a kept snapshot come from.
        parts = lake.sql(f"SELECT id, fingerprint FROM clean_{modality} WHERE id <> parent_id").to_pylist()
        trained = set().union(*(snapshot.ids[modality] for snapshot in kept))
        needed[f"clean_{modality}"] |= {(part["id"], part["fingerprint"]) for part in parts if part["id"] in trained}
        needed[f"{modality}_features"] = features
        measures = [key for step, key in (now or {}).items() if step not in (CLEAN_STEP, FEATURES_STEP)]
        needed["embeddings"] |= {(id, embedding_fingerprint(of, modality)) for id in current for of in tags}
        needed["measurements"] |= {(id, key) for id in ids for key in measures}
    return needed


def kept_snapshots(project: Project, lake: Lake) -> list[Snapshot]:
    """The datasets that registered versions were trained on: one for each version.

    Raises:
        ValueError: one of them is no longer there.
    """
    from training import model_registry

    snapshots = []
    for version in model_registry.versions(project.mlflow_uri, project.name):
        tags = model_registry.version_tags(project.mlflow_uri, project.name, str(version["version"]))
        if "dataset_version" not in tags:
            continue  # not of our training
        number = int(tags["dataset_version"])
        if (rows := lake.read_version("dataset", number)) is None:
            raise ValueError(
                f"version {version['version']} of the model {project.name} was trained on version {number} of the "
                "table dataset, which is no longer there, so nobody can tell which rows it needs: delete that version "
                "of the model in MLflow (`triptych ui`), then try again"
            )
        note = lake.note("dataset", number)
        snapshots.append(
            Snapshot(
                model=version["version"],
                run_id=version["run_id"],
                version=number,
                ids={m: _ids(rows, m) for m in MODALITIES},
                note=note,
                features=json.loads(note.get("features", "{}")),
                tags=tags,
            )
        )
    return snapshots


def _ids(rows: pa.Table, modality: str) -> set[str]:
    """The contents that rows of `dataset` have of a modality."""
    further = pc.list_flatten(rows[f"{modality}_more"]).to_pylist()
    return {*rows[f"{modality}_id"].to_pylist(), *further} - {None}


def _delete(lake: Lake, name: str, keys: Iterable[Key], alive: Set[str]) -> None:
    """Removes rows by (id, fingerprint).

    Each deletion rewrites the files that it finds rows in: keys in the order of the files rewrite each about once.

    Args:
        alive: fingerprints that some row needed has; a deletion of all rows of another rewrites nothing.
    """
    by_fingerprint: dict[str, list[str]] = {}
    for item, fingerprint in keys:
        by_fingerprint.setdefault(fingerprint, []).append(item)
    for fingerprint, ids in by_fingerprint.items():
        condition = f"fingerprint = {sql_string(fingerprint)}"
        if fingerprint not in alive:
            lake.delete(name, condition)
            continue
        for start in range(0, len(ids), _IDS):
            lake.delete(name, f"{condition} AND {sql_among('id', ids[start : start + _IDS])}")
