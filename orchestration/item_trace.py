"""Raw items: what became of their files, and every snapshot, sample and model that saw one of them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from assets import snapshots
from assets.contents import attach_data
from assets.lake import Lake, sql_among
from assets.names import normalize
from assets.parts import parts_of
from assets.settings import Project
from orchestration.traced import Item, Seen, SnapshotFacts, Traced
from training import mlflow_facts
from training.catalog import MODALITIES as KINDS
from training.runs import TAG
from training.schema import MANIFEST, MODALITIES


def items_of(
    project: Project,
    lake: Lake,
    then: Lake,
    wanted: Sequence[tuple[Mapping[str, Any], str]],
    snapshot: SnapshotFacts | None,
) -> list[Item]:
    """Manifest rows and the contents of them that are asked for, with what is there now."""
    parts, now = parts_of(then, (content for _, content in wanted)), _states(project, lake, [row for row, _ in wanted])
    note = {} if snapshot is None else lake.note("dataset", snapshot.tables["dataset"])
    features = json.loads(note.get("features", "{}"))
    found = []
    for row, content in wanted:
        modality = row["modality"]
        part = KINDS.load(modality)().where(parts[content].place) if content in parts else None
        key = {"table": f"{modality}_features", "fingerprint": features[modality]} if modality in features else {}
        names = ("modality", "item_id", "source", "uri", "member", "row", "sha256", "text")
        facts = {name: row[name] for name in names}
        found.append(Item(**facts, id=content, part=part, now=now[row["item_id"]], features=key))
    return found


def _states(project: Project, lake: Lake, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Item id -> what is there now, in words. Media are read and hashed again; of texts in a table the newest manifest
    tells."""
    if not rows:
        return {}
    ids = {row["item_id"] for row in rows}
    newest = lake.sql(f"SELECT * FROM manifest WHERE {sql_among('item_id', ids)}").to_pylist()
    hashes, sources = {row["item_id"]: row["sha256"] for row in newest}, project.make_sources()
    states = {}
    for row in rows:
        states[row["item_id"]] = _state(project, row, hashes.get(row["item_id"]), sources)
    return states


def _state(project: Project, row: Mapping[str, Any], listed: str | None, sources: Mapping[str, Any]) -> str:
    if row["source"] not in sources:
        return f"its source {row['source']} is no longer in the project file"
    if row["text"] is None:
        error = attach_data(pa.Table.from_pylist([dict(row)], MANIFEST), sources)["data_error"][0].as_py()
        return "there, with the same bytes" if error is None else f"not as it was: {error}"
    if "://" not in row["uri"] and not (project.root / row["uri"]).exists():
        return "gone: there is no such file"
    if listed is None:
        return "no longer listed by the newest manifest"
    return "listed by the newest manifest, " + ("the same" if listed == row["sha256"] else "with another content")


def of_item(project: Project, lake: Lake, name: str) -> Traced:
    """Every snapshot that lists it, the samples it stands in, and what was trained on them."""
    known = snapshots.recorded(lake)
    found: dict[str, dict[str, Any]] = {}
    named = "item_id = $i OR key = $key OR sha256 = $i OR uri = $i OR member = $i OR ends_with(uri, '/' || $i)"
    asked = {"i": name, "key": normalize(name)}
    lists: dict[str, set[str]] = {}  # snapshot -> hashes of it that it lists
    for version, fingerprints in _by_version(known, "manifest").items():
        then = replace(lake, versions={"manifest": version})
        rows = then.sql(f"SELECT * FROM manifest WHERE {named}", asked).to_pylist()
        found |= {row["item_id"]: row for row in rows if row["item_id"] not in found}
        lists |= {one: {row["sha256"] for row in rows} for one in fingerprints}
    if not found:
        raise ValueError(
            f"{project.name} has no answer, sample or item {name!r}: give the id of an answer (`predict --json` and "
            "the server say it, where `answers.log` is true) or of a sample, or an item's id, key, hash or path"
        )
    hashes = {row["sha256"] for row in found.values()}
    children = [f"SELECT id FROM clean_{m} WHERE {sql_among('parent_id', hashes)}" for m in MODALITIES]
    contents = hashes | set(lake.sql(" UNION ".join(children))["id"].to_pylist())
    among = {m: sql_among(f"{m}_id", contents) for m in MODALITIES}
    quoted = ", ".join(f"'{content}'" for content in sorted(contents))
    more = " OR ".join(f"coalesce(list_has_any({m}_more, [{quoted}]), false)" for m in MODALITIES)
    query = f"SELECT sample_id, split FROM dataset WHERE {' OR '.join(among.values())} OR {more} ORDER BY sample_id"
    samples: dict[str, list[dict[str, str]]] = {}
    for version, fingerprints in _by_version(known, "dataset").items():
        rows = replace(lake, versions={"dataset": version}).sql(query).to_pylist()
        samples |= dict.fromkeys(fingerprints, rows)
    versions, runs = _trained(project)
    seen = [
        Seen(
            snapshot=fingerprint,
            time=made.time.isoformat(),
            samples=_split(samples.get(fingerprint, ())),
            models=versions.get(fingerprint, []) if samples.get(fingerprint) else [],
            runs=runs.get(fingerprint, {}) if samples.get(fingerprint) else {},
        )
        for fingerprint, made in known.items()
        if lists.get(fingerprint) or samples.get(fingerprint)
    ]
    items = items_of(project, lake, lake, [(row, row["sha256"]) for row in found.values()], None)
    return Traced(project.name, name, "item", items=items, seen=seen)


def _by_version(known: Mapping[str, snapshots.Recorded], table: str) -> dict[int, list[str]]:
    """Version of a table -> the snapshots that were made of it, the newest first."""
    found: dict[int, list[str]] = {}
    for fingerprint, made in known.items():
        if table in made.versions:
            found.setdefault(made.versions[table], []).append(fingerprint)
    return found


def _split(rows: Iterable[Mapping[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row["split"], []).append(row["sample_id"])
    return found


def _trained(project: Project) -> tuple[dict[str, list[str]], dict[str, dict[str, str]]]:
    """Dataset -> registered versions, and the runs that are of none of them with their roles."""
    tag = f"{TAG}dataset_fingerprint"
    versions: dict[str, list[str]] = {}
    registered: set[str | None] = set()
    for version in reversed(mlflow_facts.versions(project.mlflow_uri, project.name)):
        versions.setdefault(version.tags.get(tag, ""), []).append(str(version.number))
        registered.add(version.run_id)
    runs: dict[str, dict[str, str]] = {}
    for run in mlflow_facts.runs(project.mlflow_uri, project.name):
        if run.run_id not in registered:
            runs.setdefault(run.tags.get(tag, ""), {})[run.run_id] = run.tags.get(f"{TAG}role", "")
    return versions, runs
