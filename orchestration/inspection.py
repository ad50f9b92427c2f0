"""Looks at a project without changing anything: what its sources hold, what its tables and models are."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from assets import pipeline
from assets.alignment import align, validate_samples
from assets.contents import attach_data, portions
from assets.processing import CLEAN_STEP
from assets.scan import scan
from assets.settings import Project
from orchestration.automation import check_schedule
from training.schema import TABLES

_EXAMPLES = 5  # messages shown of many


@dataclass(frozen=True)
class SourceCounts:
    """Items of one source: `seen` = `listed` in the manifest + `refused` (duplicates, too)."""

    seen: int
    listed: int
    refused: int


@dataclass(frozen=True)
class Check:
    """What a run of the project would find."""

    project: str
    sources: Mapping[str, SourceCounts]
    refused: Mapping[str, int]  # reason -> items
    refused_examples: list[str]
    unreadable: list[str]  # why, for those of the decoded items that cannot be read
    problem: str | None  # why a run would end
    samples: Mapping[str, int]  # split -> rows
    unmatched: Mapping[str, int]  # reason -> items
    unmatched_examples: list[str]


@dataclass(frozen=True)
class TableState:
    rows: int
    version: int


@dataclass(frozen=True)
class Status:
    """What a project has: its tables, and the registered versions of its model, the newest first."""

    project: str
    file: str
    lake: str
    tables: Mapping[str, TableState]
    models: list[dict[str, Any]]  # see `training.model_registry.versions`


def check(project: Project, decoded: int = 50) -> Check:
    """What a run would find: items per source, refused ones, a few decoded, and the samples they would make.

    Args:
        decoded: items of each modality that are decoded to see whether they can be read.
    """
    check_schedule(project)
    scans = [scan(source, project.root, limits=project.limits) for source in project.sources]
    manifest = pa.concat_tables(s.rows for s in scans)
    refused = pa.concat_tables(s.quarantine for s in scans)
    unreadable = _unreadable(project, manifest, decoded)
    usable = {
        m: pa.table({"id": pc.unique(manifest.filter(pc.equal(manifest["modality"], m))["sha256"])})
        for m in project.modalities
    }
    aligned = align(manifest, usable, project.align, project.sources, project.root, {}, refused)
    try:
        validate_samples(aligned.samples, project.align)
        problem = None
    except ValueError as error:  # said last: what was refused or does not match is often why
        problem = str(error)
    return Check(
        project=project.name,
        sources={s.source: SourceCounts(s.seen, s.rows.num_rows, s.quarantine.num_rows) for s in scans},
        refused=_counted(refused, "reason"),
        refused_examples=refused["message"].slice(0, _EXAMPLES).to_pylist(),
        unreadable=unreadable,
        problem=problem,
        samples=_counted(aligned.samples, "split"),
        unmatched=_counted(aligned.quarantine, "reason"),
        unmatched_examples=aligned.quarantine["message"].slice(0, _EXAMPLES).to_pylist(),
    )


def _unreadable(project: Project, manifest: pa.Table, decoded: int) -> list[str]:
    """Why some of the first items of each modality cannot be read."""
    messages: list[str] = []
    sources = project.make_sources()
    for modality in project.modalities:
        items = manifest.filter(pc.equal(manifest["modality"], modality)).slice(0, decoded).combine_chunks()
        step = pipeline.make_step(project, modality)
        for part in portions(items, items["size"].to_pylist()):
            batch = attach_data(part, sources)
            batch = batch.append_column("need", pa.array([[CLEAN_STEP]] * batch.num_rows))
            messages += step(batch).quarantine["message"].to_pylist()
    return messages


def _counted(rows: pa.Table, column: str) -> dict[str, int]:
    return dict(Counter(rows[column].to_pylist()))


def status(project: Project) -> Status:
    """Tables with rows and versions, and the registered versions of the model with what they are worth."""
    from training import model_registry

    lake = pipeline.open_lake(project)
    tables = {}
    for name in TABLES:
        if (version := lake.version(name)) is not None:
            rows = lake.sql(f"SELECT count(*) AS n FROM {name}")["n"][0].as_py()
            tables[name] = TableState(rows, version)
    models = model_registry.versions(project.mlflow_uri, project.name)
    return Status(project.name, str(project.path), project.lake_uri, tables, models)
