"""Erases an item, such as what a person asked to have forgotten, from every table and from what models stand on."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from assets import pipeline
from assets.dataset import samples_fingerprint
from assets.lake import Lake, sql_among, sql_string
from assets.names import normalize
from assets.settings import Project
from orchestration.housekeeping import Snapshot, kept_snapshots
from training.schema import FEATURE_TABLES, MODALITIES, TABLES


@dataclass(frozen=True)
class TrainedVersion:
    """A registered version of the model that was trained on an erased item."""

    version: int
    run_id: str


@dataclass(frozen=True)
class TrainedRun:
    """A run in MLflow, not of a registered version, that was trained on an erased item."""

    role: str  # model, or the name of the baseline
    run_id: str


@dataclass(frozen=True)
class Erased:
    """What `erase` removed, or would remove in a dry run, and what was made from it elsewhere."""

    project: str
    dry_run: bool
    items: list[str]  # item ids
    removed: dict[str, int]  # table -> rows
    models: list[TrainedVersion]
    runs: list[TrainedRun]
    history: int  # runs of Dagster's whose previews, pictures and messages may show it
    purged: list[int]  # versions of the model that were deleted


def erase(project: Project, item: str, dry_run: bool, purge: bool) -> Erased:
    """Removes an item from every table, and lists what was made from it elsewhere.

    The item's content goes wherever it occurs (copies of a file share their rows), and the samples it stands in. The
    file itself is not touched: take it from its source first, or the next run lists it again.

    Args:
        item: an item id, a key, a content hash, or a file's path or name within its archive.
        purge: also delete the MLflow runs, baselines too, and registered versions that were trained on it, and what
            Dagster has recorded of the project's runs.

    Raises:
        OSError: another process keeps a database, which still holds what was deleted in it.
        ValueError: nothing in the manifest or in quarantine is called that, or a model's snapshot is not there.
    """
    from orchestration.history import forget, recorded_runs, scrub
    from orchestration.run import open_instance
    from training import mlflow_store
    from training.runs import runs_not_on

    lake = pipeline.open_lake(project)
    items, hashes = _called(project, lake, item)
    contents = _with_children(lake, hashes)
    predicates = _holding(items, hashes, contents)
    kept = kept_snapshots(project, lake)
    snapshots = [s for s in kept if any(set(contents) & s.ids[m] for m in MODALITIES)]
    versions = {s.run_id: s.model for s in snapshots}
    free = _free(lake, kept, predicates["dataset"]) - {s.note.get("fingerprint", "") for s in snapshots}
    runs = runs_not_on(project.mlflow_uri, project.name, free) | dict.fromkeys(versions, "model")
    counts = {
        name: lake.sql(f"SELECT count(*) AS n FROM {name} WHERE {holds}")["n"][0].as_py()
        for name, holds in predicates.items()
    }
    if not dry_run:
        if purge:
            artifacts = mlflow_store.local_path(project.artifacts or "")
            own = [project.home, *([project.root / artifacts] if artifacts and project.artifacts else [])]
            mlflow_store.purge(project.mlflow_uri, project.name, versions.values(), runs, own)
        _erase_from_snapshots(project, lake, contents, [] if purge else snapshots)
        for name in reversed(predicates):  # the manifest last: what is interrupted finds the item again
            if name not in ("samples", "dataset") and lake.open(name) is not None:
                lake.delete(name, predicates[name])
                lake.vacuum(name)
                lake.forget(name)
        _remove_local(project)
    history = 0
    if (project.home / "dagster.yaml").exists():
        with open_instance(project.home) as instance:
            history = len(recorded_runs(instance, project.name))
            if purge and not dry_run:
                forget(instance, project.name)
    if purge and not dry_run:
        scrub(project.home)
    return Erased(
        project=project.name,
        dry_run=dry_run,
        items=items,
        removed=counts,
        models=[TrainedVersion(version, run_id) for run_id, version in versions.items()],
        runs=[TrainedRun(role, run_id) for run_id, role in runs.items() if run_id not in versions],
        history=history,
        purged=list(versions.values()) if purge and not dry_run else [],
    )


def _called(project: Project, lake: Lake, item: str) -> tuple[list[str], list[str]]:
    """Item ids and content hashes of what a person calls `item`; raises ValueError where nothing is called that."""
    named = "item_id = $i OR key = $key OR sha256 = $i OR uri = $i OR member = $i"
    listed = " UNION ".join(f"SELECT item_id, sha256 FROM {name} WHERE {named}" for name in ("manifest", "quarantine"))
    rows = lake.sql(listed, {"i": item, "key": normalize(item)}).to_pylist()
    if not rows:
        raise ValueError(f"{project.name} has no item {item!r}: give an item id, a key, a hash, or a path")
    return sorted({row["item_id"] for row in rows} - {None}), sorted({row["sha256"] for row in rows} - {None})


def _with_children(lake: Lake, hashes: list[str]) -> list[str]:
    """The contents and all parts that they were cut into."""
    parts = [f"SELECT id FROM clean_{m} WHERE {sql_among('parent_id', hashes)}" for m in MODALITIES]
    return sorted({*hashes, *lake.sql(" UNION ".join(parts))["id"].to_pylist()})


def _free(lake: Lake, kept: Sequence[Snapshot], holds: str) -> set[str]:
    """The fingerprints of the datasets that are known not to hold the item; of others nobody can tell any more."""
    free = {snapshot.note.get("fingerprint", "") for snapshot in kept}
    if not lake.sql(f"SELECT sample_id FROM dataset WHERE {holds} LIMIT 1").num_rows:
        free.add(lake.note("dataset").get("fingerprint", ""))  # may have no registered model yet
    return free


def _holding(items: list[str], hashes: list[str], contents: list[str]) -> dict[str, str]:
    """The SQL condition of the rows of each table that hold one of these items or contents."""
    listed = sql_among("sha256", hashes) + " OR " + sql_among("item_id", items)
    sampled = " OR ".join(sql_among(f"{m}_id", contents) for m in MODALITIES)
    keyed = [
        name for name in TABLES if name.startswith("clean_") or name in (*FEATURE_TABLES, "measurements", "embeddings")
    ]
    return {
        **dict.fromkeys(("manifest", "quarantine"), listed),
        **dict.fromkeys(keyed, sql_among("id", contents)),
        "samples": " OR ".join([sampled, *(_holds(f"[more.id for more in {m}_more]", contents) for m in MODALITIES)]),
        "dataset": " OR ".join([sampled, *(_holds(f"{m}_more", contents) for m in MODALITIES)]),
    }


def _holds(listed: str, values: Sequence[str]) -> str:
    """The SQL condition that a list holds one of the values."""
    return f"coalesce(list_has_any({listed}, [{', '.join(map(sql_string, values))}]::VARCHAR[]), false)"


def _erase_from_snapshots(project: Project, lake: Lake, hashes: list[str], kept: Sequence[Snapshot]) -> None:
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
        table = lake.read_version("dataset", snapshot.version)
        assert table is not None
        lake.replace("dataset", _without(table, hashes), note=snapshot.note)
        tags = {"dataset_version": str(lake.require("dataset"))}
        model_registry.tag_version(project.mlflow_uri, project.name, str(snapshot.model), tags)
    lake.replace("dataset", _without(rows, hashes), note=note)
    lake.vacuum("dataset", [snapshot.version for snapshot in kept_snapshots(project, lake)])


def _without(rows: pa.Table, hashes: list[str]) -> pa.Table:
    for modality in MODALITIES:
        rows = rows.filter(pc.invert(pc.is_in(rows[f"{modality}_id"], pa.array(hashes, pa.string()))))
        more, gone = rows[f"{modality}_more"], set(hashes)
        if more.null_count < len(more):
            ids = ({item if isinstance(item, str) else item["id"] for item in cell or ()} for cell in more.to_pylist())
            rows = rows.filter(pa.array([gone.isdisjoint(some) for some in ids], pa.bool_()))
    return rows


def _remove_local(project: Project) -> None:
    """The feature cache, unfinished trainings, their logs, what steps said and the report: all are made again."""
    for name in ("cache", "checkpoints", "tensorboard", "unchanged"):
        shutil.rmtree(project.folder / name, ignore_errors=True)
    (project.folder / "report.html").unlink(missing_ok=True)
