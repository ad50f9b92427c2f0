"""Looks at a project without changing anything: what its sources hold, what its tables and models are."""

from collections import Counter
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


def check(project: Project, decoded: int = 50) -> dict[str, Any]:
    """What a run would find: items per source, refused ones, a few decoded, and the samples they would make.

    Args:
        decoded: items of each modality that are decoded to see whether they can be read.
    """
    check_schedule(project)
    scans = [scan(source, project.root, limits=project.limits) for source in project.sources]
    manifest = pa.concat_tables(s.rows for s in scans)
    refused = pa.concat_tables(s.quarantine for s in scans)
    sources = project.make_sources()
    unreadable: list[str] = []
    for modality in project.modalities:
        items = manifest.filter(pc.equal(manifest["modality"], modality)).slice(0, decoded).combine_chunks()
        step = pipeline.make_step(project, modality)
        for part in portions(items, items["size"].to_pylist()):
            batch = attach_data(part, sources)
            batch = batch.append_column("need", pa.array([[CLEAN_STEP]] * batch.num_rows))
            outcome = step(batch)
            unreadable += outcome.quarantine["message"].to_pylist()
    told: dict[str, Any] = {
        "project": project.name,
        "sources": {
            s.source: {"seen": s.seen, "listed": s.rows.num_rows, "refused": s.quarantine.num_rows} for s in scans
        },
        "refused": dict(Counter(refused["reason"].to_pylist())),
        "refused_examples": refused["message"].slice(0, 5).to_pylist(),
        "unreadable": unreadable,
        "problem": None,  # why a run would end
    }
    usable = {
        m: pa.table({"id": pc.unique(manifest.filter(pc.equal(manifest["modality"], m))["sha256"])})
        for m in project.modalities
    }
    aligned = align(manifest, usable, project.align, project.sources, project.root, {}, refused)
    told["samples"] = dict(Counter(aligned.samples["split"].to_pylist()))
    told["unmatched"] = dict(Counter(aligned.quarantine["reason"].to_pylist()))
    told["unmatched_examples"] = aligned.quarantine["message"].slice(0, 5).to_pylist()
    try:
        validate_samples(aligned.samples, project.align)
    except ValueError as error:  # said last: what was refused or does not match is often why
        told["problem"] = str(error)
    return told


def status(project: Project) -> dict[str, Any]:
    """Tables with rows and versions, and the registered versions of the model with aliases and test accuracy."""
    from training import model_registry

    lake = pipeline.open_lake(project)
    tables = {}
    for name in TABLES:
        if (version := lake.version(name)) is not None:
            rows = lake.sql(f"SELECT count(*) AS n FROM {name}")["n"][0].as_py()
            tables[name] = {"rows": rows, "version": version}
    return {
        "project": project.name,
        "file": str(project.path),
        "lake": project.lake_uri,
        "tables": tables,
        "models": model_registry.versions(project.mlflow_uri, project.name),
    }
