"""Cleaning up: removes what nothing refers to, compacts, vacuums. For erasing see `orchestration.erasure`."""

import json
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from assets import featurizing, pipeline, snapshots
from assets.compaction import compact
from assets.lake import Lake, sql_among, sql_string
from assets.processing import CLEAN_STEP, SIGNATURE_STEP
from assets.settings import Project
from assets.similarity import pairs_of
from assets.snapshots import Recorded
from orchestration.search import embedding_fingerprint
from training.schema import INDEX_TABLES, MODALITIES, TABLES

_FILES = 8  # a table of fewer files is not worth compacting
IDS = 5000  # ids in one predicate; delta-rs ends the process at 100,000

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

    A snapshot is kept while a registered version was trained on it, and as long as it is the present one or among the
    newest `keep_snapshots` others. Files of older table versions go, except those of kept snapshots. The caller holds
    the project's lock: a run would lose what it is reading.

    Returns:
        Rows removed and files compacted by table; with `dry_run` those that would be.

    Raises:
        ValueError: the snapshot of a registered version is not there, so what it needs cannot be told.
    """
    lake = pipeline.open_lake(project)
    kept = kept_snapshots(project, lake)
    known = snapshots.recorded(lake)
    whole = kept_records(project, lake, kept)
    removed = {"snapshots": sum(len(one.rows()) for name, one in known.items() if name not in whole)}
    if removed["snapshots"] and not dry_run:
        snapshots.keep(lake, whole.values())
    needed = _needed(project, lake, kept, whole.values())
    removed["fits"] = _forget_fits(project, lake, needed, dry_run)
    for name, alive in needed.items():
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
            vacuumed += lake.vacuum(name, kept_versions(name, kept, whole.values()))
    return Collected(project.name, dry_run, removed, compacted, vacuumed)


def _forget_fits(project: Project, lake: Lake, needed: Mapping[str, Set[Key]], dry_run: bool) -> int:
    """Removes what compressions have found for rows that are no longer needed, and gives how many there are."""
    processor = featurizing.make_processor(project)
    alive = {fingerprint for m in MODALITIES for _, fingerprint in needed[f"{m}_features"]}
    alive |= {processor.fingerprint(m) for m in project.modalities}
    dead = [made for made in lake.sql("SELECT made_with FROM fits")["made_with"].to_pylist() if made not in alive]
    if dead and not dry_run:
        lake.delete("fits", sql_among("made_with", dead))
    return len(dead)


def kept_records(project: Project, lake: Lake, kept: Iterable[Snapshot]) -> dict[str, Recorded]:
    """What the snapshots that stay whole were made of, by fingerprint, the newest first."""
    known = {name: one for name, one in snapshots.recorded(lake).items() if not snapshots.missing(lake, one)}
    wanted = {snapshot.note.get("fingerprint") for snapshot in kept} | {lake.note("dataset").get("fingerprint")}
    others = [name for name in known if name not in wanted]
    return {name: known[name] for name in known if name in wanted or name in others[: project.keep_snapshots]}


def kept_versions(name: str, kept: Iterable[Snapshot], whole: Iterable[Recorded]) -> list[int]:
    """The older versions of a table that stay readable."""
    if name not in INDEX_TABLES:
        return []
    trained = {snapshot.version for snapshot in kept} if name == "dataset" else set()
    return sorted(trained | {one.versions[name] for one in whole if name in one.versions})


def _needed(project: Project, lake: Lake, kept: Iterable[Snapshot], whole: Iterable[Recorded]) -> dict[str, set[Key]]:
    """The keys of the rows of each table of contents that the manifest or a kept snapshot needs.

    A clean row lives as long as its content is needed at all.
    """
    needed: dict[str, set[Key]] = {"measurements": set(), "signatures": set(), "embeddings": set()}
    tags = [s.tags for s in kept]
    pairs = [pair.keys(featurizing.make_processor(project)) for pair in pairs_of(project)]
    for modality in MODALITIES:
        step = featurizing.make_step(project, modality) if modality in project.modalities else None
        now, rows = (None, ()) if step is None else (step.fingerprints, tuple(step.feature_rows))
        listed = f"""
            SELECT id FROM clean_{modality} c JOIN manifest m ON sha256 = parent_id AND m.cut IS NOT DISTINCT FROM c.cut
            WHERE modality = $m
            UNION SELECT sha256 FROM manifest WHERE modality = $m
            UNION SELECT sha256 FROM answer_inputs WHERE name = $m
        """
        current = set(lake.sql(listed, {"m": modality})["id"].to_pylist())
        ids = current.union(*(snapshot.ids[modality] for snapshot in kept))
        features = {(id, now[row]) for id in current for row in rows} if now else set()
        for snapshot in kept:
            if (fingerprint := snapshot.features.get(modality)) is not None:
                features |= {(id, fingerprint) for id in snapshot.ids[modality]}
        needed[f"clean_{modality}"] = {(id, now["clean"]) for id in ids} if now else set()
        # Whatever cut them: only these rows tell erasing which item the parts in a kept snapshot come from.
        parts = lake.sql(f"SELECT id, fingerprint FROM clean_{modality} WHERE id <> parent_id").to_pylist()
        trained = set().union(*(snapshot.ids[modality] for snapshot in kept))
        needed[f"clean_{modality}"] |= {(part["id"], part["fingerprint"]) for part in parts if part["id"] in trained}
        needed[f"{modality}_features"] = features
        measures = [key for name, key in (now or {}).items() if name not in (CLEAN_STEP, *rows, SIGNATURE_STEP)]
        needed["signatures"] |= {(id, now[SIGNATURE_STEP]) for id in ids if now and SIGNATURE_STEP in now}
        needed["embeddings"] |= {(id, embedding_fingerprint(of, modality)) for id in current for of in tags}
        needed["embeddings"] |= {(id, pair[modality]) for pair in pairs if modality in pair for id in current}
        needed["measurements"] |= {(id, key) for id in ids for key in measures}
    made = {(one.versions.get("manifest"), str(one.steps)): one for one in whole}  # most share it
    for one in made.values():
        then = snapshots.view(lake, one)
        for name in one.steps:
            rows = then.sql(f"SELECT id, fingerprint FROM {name}")
            needed[name].update(zip(rows["id"].to_pylist(), rows["fingerprint"].to_pylist(), strict=True))
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
        for start in range(0, len(ids), IDS):
            lake.delete(name, f"{condition} AND {sql_among('id', ids[start : start + IDS])}")
