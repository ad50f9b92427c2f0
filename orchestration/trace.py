"""From an answer, a test prediction or an item to what it hangs together with: model, dataset, rows, raw files; and
from an item to every sample, snapshot and model that saw it.

What a dataset was made of is read as it was then (`assets.snapshots`), whatever was written or deleted since.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from assets import pipeline, snapshots
from assets.feedback import taught_by
from assets.lake import Lake, sql_among
from assets.settings import Project
from orchestration.item_trace import items_of, of_item
from orchestration.nearest import by_features, places_of
from orchestration.traced import ModelFacts, Near, SnapshotFacts, Traced
from training import mlflow_facts
from training.runs import TAG
from training.schema import MODALITIES


def trace(project: Project, name: str, version: str | None = None, k: int = 5) -> Traced:
    """What hangs together with an answer, a sample or an item.

    Args:
        name: id of an answer or sample; or of an item its id, key, hash, or its file's path or name in its archive.
        version: of the model, by number or alias, that a sample was a test row of; default: the champion, or the newest
            version. An answer knows its own.
        k: how many of the nearest training rows.

    Raises:
        ValueError: nothing is called that, or there is no such version.
    """
    lake = pipeline.open_lake(project)
    if answers := lake.sql("SELECT * FROM answers WHERE answer_id = $id", {"id": name}).to_pylist():
        return _of_answer(project, lake, answers[0], k)
    model = _version(project, version)
    if model is not None and (traced := _of_sample(project, lake, name, model, k)) is not None:
        return traced
    return of_item(project, lake, name)


def _version(project: Project, wanted: str | None) -> ModelFacts | None:
    """A registered version: the one that is wanted, else the champion or the newest; None where there is no model.

    Raises:
        ValueError: there is no such version.
    """
    found = mlflow_facts.versions(project.mlflow_uri, project.name)
    called = {name: version for version in found for name in (str(version.number), *version.aliases)}
    if wanted is not None and wanted not in called:
        from training import model_registry

        model_registry.find_version(project.mlflow_uri, project.name, wanted)  # says which there are
    version = called.get(wanted or "champion", found[-1] if found else None)
    return None if version is None else _facts(version)


def _facts(version: mlflow_facts.Version) -> ModelFacts:
    fingerprint = version.tags.get(f"{TAG}dataset_fingerprint")
    return ModelFacts(str(version.number), version.aliases, version.run_id, fingerprint)


def _of_answer(project: Project, lake: Lake, row: Mapping[str, Any], k: int) -> Traced:
    version, fingerprint = row["model_version"], row["dataset_fingerprint"]
    found = [] if version is None else mlflow_facts.versions(project.mlflow_uri, project.name)
    model = next((_facts(one) for one in found if str(one.number) == version), None)
    remarks = [] if model else [f"version {version} of {project.name} is no longer registered"]
    told = {name: row[name] for name in ("subset", "inputs", "probability")}
    told |= {"adapter": row["adapter"]} if row["adapter"] is not None else {}
    told |= {"time": row["time"].isoformat(), "prediction": json.loads(row["prediction"] or "null")}
    told |= _feedback(project, lake, row["answer_id"])
    traced = Traced(project.name, row["answer_id"], "answer", model or ModelFacts(version, [], None, fingerprint))
    then, snapshot, more = _then(lake, fingerprint)
    traced = replace(traced, snapshot=snapshot, answer=told, remarks=remarks + more)
    if then is None:
        return traced
    asked = {one["name"]: one["sha256"] for one in reversed(row["inputs"])}  # the first of each modality
    hashes = sql_among("sha256", sorted({one["sha256"] for one in row["inputs"]}))
    listed = then.sql(f"SELECT * FROM manifest WHERE {hashes} ORDER BY item_id").to_pylist()
    items = items_of(project, lake, then, [(one, one["sha256"]) for one in listed], snapshot)
    place = None if row["x_m"] is None else np.array(row["x_m"], np.float32)
    nearest_by, nearest = _nearest(project, then, model, place, asked, k, None)
    return replace(traced, items=items, nearest=nearest, nearest_by=nearest_by)


def _feedback(project: Project, lake: Lake, answer_id: str) -> dict[str, Any]:
    """What people said of an answer, and the MLflow runs of versions that have learned from it."""
    said = lake.sql('SELECT * FROM feedback WHERE answer_id = $id ORDER BY time, "by"', {"id": answer_id}).to_pylist()
    if not said:
        return {}
    listed = [{"verdict": one["verdict"], "answer": one["answer"], "by": one["by"]} for one in said]
    return {"feedback": listed, "learned_by": taught_by(project, [answer_id]).get(answer_id, [])}


def _of_sample(project: Project, lake: Lake, sample_id: str, model: ModelFacts, k: int) -> Traced | None:
    """None where the version's dataset has no such sample."""
    then, snapshot, remarks = _then(lake, model.dataset_fingerprint)
    if then is None:
        return None
    rows = then.sql("SELECT * FROM samples WHERE sample_id = $id", {"id": sample_id}).to_pylist()
    if not rows:
        return None
    row = rows[0]
    wanted = [pair for m in MODALITIES for pair in _contents(row, m)]
    listed = then.sql(f"SELECT * FROM manifest WHERE {sql_among('item_id', {item for item, _ in wanted})}")
    of = {one["item_id"]: one for one in listed.to_pylist()}
    items = items_of(project, lake, then, [(of[item], content) for item, content in wanted if item in of], snapshot)
    gone = [f"the snapshot's manifest does not list {item}" for item, _ in wanted if item not in of]
    places = None if model.run_id is None else places_of(project.mlflow_uri, model.run_id)
    place = None if places is None else places.of(sample_id)
    contents = {m: row[f"{m}_id"] for m in MODALITIES if row[f"{m}_id"] is not None}
    nearest_by, nearest = _nearest(project, then, model, place, contents, k, sample_id)
    told = _prediction(project, model, sample_id) if row["split"] == "test" else None
    if told is None:
        said = "was not predicted" if row["split"] == "test" else f"is a row of {row['split']}: test rows are predicted"
        remarks.append(f"sample {sample_id} {said}")
    return Traced(
        project=project.name,
        id=sample_id,
        kind="sample",
        model=model,
        snapshot=snapshot,
        answer=told,
        sample={name: value for name, value in row.items() if value is not None} | _plain_time(row),
        items=items,
        nearest=nearest,
        nearest_by=nearest_by,
        remarks=remarks + gone,
    )


def _plain_time(row: Mapping[str, Any]) -> dict[str, str]:
    return {} if row["time"] is None else {"time": row["time"].isoformat()}


def _contents(row: Mapping[str, Any], modality: str) -> list[tuple[str, str]]:
    """Item and content of each that a sample has of a modality."""
    first = [(row[f"{modality}_item"], row[f"{modality}_id"])] if row[f"{modality}_id"] is not None else []
    return first + [(one["item"], one["id"]) for one in row[f"{modality}_more"] or ()]


def _then(lake: Lake, fingerprint: str | None) -> tuple[Lake | None, SnapshotFacts | None, list[str]]:
    """The lake as it was when a dataset was made, and why it cannot be read where it cannot."""
    if fingerprint is None:
        return None, None, ["the model does not say what dataset it was trained on"]
    try:
        then, made = snapshots.as_of(lake, fingerprint), snapshots.recorded(lake)[fingerprint]
    except ValueError as error:
        return None, SnapshotFacts(fingerprint, None, {}), [str(error)]
    return then, SnapshotFacts(fingerprint, made.time.isoformat(), dict(made.versions)), []


def _prediction(project: Project, model: ModelFacts, sample_id: str) -> dict[str, Any] | None:
    """What the version answered with all of its inputs when it was tested; None where that is not known any more."""
    if model.run_id is None:
        return None
    if (kept := mlflow_facts.artifact(project.mlflow_uri, model.run_id, "predictions.parquet")) is None:
        return None  # the run was deleted
    rows = pq.read_table(pa.BufferReader(kept), filters=[("sample_id", "==", sample_id)]).to_pylist()
    if not rows:
        return None
    row = max(rows, key=lambda row: row["subset"].count("+"))
    return {name: _shown(row.get(name)) for name in ("subset", "prediction", "probability")}


def _shown(value: Any) -> Any:
    """Of a picture or recording that was answered how long it is: JSON has no bytes."""
    return f"<{len(value)} bytes>" if isinstance(value, bytes) else value


def _nearest(
    project: Project,
    then: Lake,
    model: ModelFacts | None,
    place: np.ndarray | None,
    contents: Mapping[str, str],
    k: int,
    but: str | None,
) -> tuple[str, list[Near]]:
    """What is compared, in words, and the nearest training rows."""
    places = None if model is None or model.run_id is None else places_of(project.mlflow_uri, model.run_id)
    found = [] if places is None or place is None else places.nearest(place, k, but)
    by = "the model's own x_m" if found else ""
    if not found:
        by, found = by_features(then, project, contents, k, but)
    rows = then.sql(f"SELECT * FROM samples WHERE {sql_among('sample_id', [name for name, _ in found])}").to_pylist()
    of = {row["sample_id"]: row for row in rows}  # of what was erased meanwhile there is none
    items = {item for row in rows for m in MODALITIES for item, _ in _contents(row, m)}
    listed = then.sql(f"SELECT item_id, uri, member, text FROM manifest WHERE {sql_among('item_id', items)}")
    given = {row["item_id"]: row["text"] or row["member"] or PurePath(row["uri"]).name for row in listed.to_pylist()}
    near = []
    for name, similarity in found:
        if (row := of.get(name)) is not None:
            shown = [given[item] for m in MODALITIES for item, _ in _contents(row, m) if item in given]
            near.append(Near(name, similarity, row["label"], shown))
    return by, near
