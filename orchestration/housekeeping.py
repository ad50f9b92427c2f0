"""Cleaning up: removes what nothing refers to, compacts, vacuums; and erases an item from every table on request."""

import json
import shutil
from collections.abc import Iterable, Set
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from assets import pipeline
from assets.alignment import samples_fingerprint
from assets.lake import Lake, sql_among, sql_string
from assets.settings import Project
from training.schema import FEATURE_TABLES, MODALITIES, TABLES

_FILES = 8  # a table of fewer files is not worth compacting
_IDS = 5000  # ids in one predicate; delta-rs ends the process at 100,000


def collect(project: Project, dry_run: bool) -> dict[str, Any]:
    """Removes clean and feature rows that neither the manifest nor a kept snapshot needs, and refusals that hold no
    longer, then compacts and vacuums.

    A snapshot is kept while a registered version was trained on it. Files of older table versions go, except those of
    kept snapshots of `dataset`. The caller holds the project's lock: a run would lose what it is reading.

    Returns:
        Rows removed and files compacted by table; with `dry_run` those that would be.

    Raises:
        ValueError: the snapshot of a registered version is not there, so what it needs cannot be told.
    """
    lake, processor = pipeline.open_lake(project), pipeline.make_processor(project)
    kept = _kept_snapshots(project, lake)
    told: dict[str, Any] = {"project": project.name, "dry_run": dry_run, "removed": {}, "compacted": {}, "files": 0}
    for modality in MODALITIES:
        now = pipeline.fingerprints(processor, modality) if modality in project.modalities else None
        listed = lake.sql("SELECT DISTINCT sha256 FROM manifest WHERE modality = $m", {"m": modality})
        # (id, fingerprint) pairs that are alive; a clean row lives as long as its content is needed at all
        current = set(listed["sha256"].to_pylist())
        features = {(i, now["features"]) for i in current} if now else set()
        for snapshot in kept:
            features |= {(i, snapshot["features"].get(modality)) for i in snapshot["ids"][modality]}
        clean = {(i, now["clean"]) for i in {i for i, _ in features}} if now else set()
        for name, alive in ((f"clean_{modality}", clean), (f"{modality}_features", features)):
            rows = lake.sql(f"SELECT id, fingerprint FROM {name}")  # file after file
            keys = dict.fromkeys(zip(rows["id"].to_pylist(), rows["fingerprint"].to_pylist(), strict=True))
            dead = [key for key in keys if key not in alive]
            told["removed"][name] = len(dead)
            if not dry_run:
                _delete(lake, name, dead, {fingerprint for _, fingerprint in alive})
    present = pipeline.quarantined(lake, project)
    told["removed"]["quarantine"] = lake.read("quarantine").num_rows - present.num_rows
    if told["removed"]["quarantine"] and not dry_run:
        lake.replace("quarantine", present)
    for name in TABLES:
        table = lake.open(name)
        if table is None:
            continue
        if (files := len(table.file_uris())) >= _FILES:
            told["compacted"][name] = files
            if not dry_run:
                lake.compact(name)
        if not dry_run:
            told["files"] += lake.vacuum(name, [s["version"] for s in kept] if name == "dataset" else None)
    return told


def erase(project: Project, item: str, dry_run: bool, purge: bool) -> dict[str, Any]:
    """Removes an item from every table, and lists what was made from it elsewhere.

    The item's content goes wherever it occurs (copies of a file share their rows), and the samples it stands in. The
    file itself is not touched: take it from its source first, or the next run lists it again.

    Args:
        item: an item id, a key, a content hash, or a file's path or name within its archive.
        purge: also delete the MLflow runs, baselines too, and registered versions that were trained on it.

    Raises:
        ValueError: nothing in the manifest or in quarantine is called that, or a model's snapshot is not there.
    """
    from training import tracking

    lake = pipeline.open_lake(project)
    named = "item_id = $i OR key = $i OR sha256 = $i OR uri = $i OR member = $i"
    listed = " UNION ".join(f"SELECT item_id, sha256 FROM {name} WHERE {named}" for name in ("manifest", "quarantine"))
    found = lake.sql(listed, {"i": item}).to_pylist()
    if not found:
        raise ValueError(f"{project.name} has no item {item!r}: give an item id, a key, a hash, or a path")
    hashes = sorted({row["sha256"] for row in found} - {None})
    items = sorted({row["item_id"] for row in found} - {None})
    predicates = {
        "manifest": sql_among("sha256", hashes) + " OR " + sql_among("item_id", items),
        "quarantine": sql_among("sha256", hashes) + " OR " + sql_among("item_id", items),
        **{
            name: sql_among("id", hashes)
            for name in TABLES
            if name.startswith("clean_") or name in (*FEATURE_TABLES, "measurements")
        },
        **{name: " OR ".join(sql_among(f"{m}_id", hashes) for m in MODALITIES) for name in ("samples", "dataset")},
    }
    kept = _kept_snapshots(project, lake)
    made = [s for s in kept if any(set(hashes) & s["ids"][m] for m in MODALITIES)]
    affected = {s["note"].get("fingerprint", "") for s in made}
    if lake.sql(f"SELECT sample_id FROM dataset WHERE {predicates['dataset']} LIMIT 1").num_rows:
        affected.add(lake.note("dataset").get("fingerprint", ""))  # may have no registered model yet
    versions = {s["run_id"]: s["model"] for s in made}
    runs = tracking.runs_on(project.mlflow_uri, project.name, affected) | dict.fromkeys(versions, "model")
    told: dict[str, Any] = {
        "project": project.name,
        "dry_run": dry_run,
        "items": items,
        "removed": {
            n: lake.sql(f"SELECT count(*) AS n FROM {n} WHERE {p}")["n"][0].as_py() for n, p in predicates.items()
        },
        "models": [{"version": version, "run_id": run_id} for run_id, version in versions.items()],
        "runs": [{"role": role, "run_id": run_id} for run_id, role in runs.items() if run_id not in versions],
        "previews": f"previews and pictures in Dagster's runs of {project.name}, the report, and the feature cache",
        "purged": [],
    }
    if dry_run:
        return told
    if purge:
        store = tracking.client(project.mlflow_uri)
        for version in versions.values():
            store.delete_model_version(project.name, str(version))
            told["purged"].append(version)
        for run_id in runs:
            tracking.purge_run(project.mlflow_uri, run_id)
    _erase_from_snapshots(project, lake, hashes, [] if purge else made)
    for name in reversed(predicates):  # the manifest last: what is interrupted finds the item again
        if name not in ("samples", "dataset") and lake.open(name) is not None:
            lake.delete(name, predicates[name])
            lake.vacuum(name)
            lake.forget(name)
    _remove_local(project)
    return told


def _erase_from_snapshots(project: Project, lake: Lake, hashes: list[str], kept: list[dict[str, Any]]) -> None:
    """Takes contents out of `samples`, of `dataset`, and of the older versions of `dataset` that models stand on.

    A version of a table cannot be changed: the rest of an older one becomes a version of its own, and its model is
    told. Everything is written whole, since a predicate would name in the log what was erased.
    """
    from training import model_registry

    if lake.open("samples") is not None:
        samples = _without(lake.read("samples"), hashes)
        lake.replace("samples", samples, note={"fingerprint": samples_fingerprint(samples)})
        lake.vacuum("samples")
    if lake.open("dataset") is None:
        return
    rows, note = lake.read("dataset"), lake.note("dataset")
    for snapshot in kept:
        table = _read_version(lake, snapshot["version"])
        assert table is not None
        lake.replace("dataset", _without(table, hashes), note=snapshot["note"])
        tags = {"dataset_version": str(lake.require("dataset"))}
        model_registry.tag_version(project.mlflow_uri, project.name, str(snapshot["model"]), tags)
    lake.replace("dataset", _without(rows, hashes), note=note)
    lake.vacuum("dataset", [snapshot["version"] for snapshot in _kept_snapshots(project, lake)])


def _without(rows: pa.Table, hashes: list[str]) -> pa.Table:
    for modality in MODALITIES:
        rows = rows.filter(pc.invert(pc.is_in(rows[f"{modality}_id"], pa.array(hashes, pa.string()))))
    return rows


def _remove_local(project: Project) -> None:
    """The feature cache, unfinished trainings and the report: all are made again."""
    shutil.rmtree(project.folder / "cache", ignore_errors=True)
    shutil.rmtree(project.folder / "checkpoints", ignore_errors=True)
    (project.folder / "report.html").unlink(missing_ok=True)


def _kept_snapshots(project: Project, lake: Lake) -> list[dict[str, Any]]:
    """The datasets that registered versions were trained on: table version, note, ids and feature fingerprints.

    Raises:
        ValueError: one of them is no longer there.
    """
    from training import model_registry

    found = []
    for version in model_registry.versions(project.mlflow_uri, project.name):
        tags = model_registry.version_tags(project.mlflow_uri, project.name, str(version["version"]))
        if "dataset_version" not in tags:
            continue  # not of our training
        number = int(tags["dataset_version"])
        if (rows := _read_version(lake, number)) is None:
            raise ValueError(
                f"version {version['version']} of the model {project.name} was trained on version {number} of the "
                "table dataset, which is no longer there, so nobody can tell which rows it needs: delete that version "
                "of the model in MLflow (`triptych ui`), then try again"
            )
        note = lake.note("dataset", number)
        found.append(
            {
                "model": version["version"],
                "run_id": version["run_id"],
                "version": number,
                "ids": {m: set(rows[f"{m}_id"].to_pylist()) - {None} for m in MODALITIES},
                "note": note,
                "features": json.loads(note.get("features", "{}")),
            }
        )
    return found


def _read_version(lake: Lake, number: int) -> pa.Table | None:
    """The rows of a version of `dataset`; None where its log or its files are gone."""
    table = lake.open_version("dataset", number)
    try:
        return None if table is None else table.to_pyarrow_dataset().to_table()
    except OSError:
        return None


def _delete(lake: Lake, name: str, keys: Iterable[tuple[str, str]], alive: Set[str]) -> None:
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
