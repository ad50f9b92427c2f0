"""Looks at a project without changing anything: what its sources hold, what its tables and models are."""

import contextlib
from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from assets import pipeline
from assets.alignment import Alignment, align, validate_samples
from assets.changes import SourceChange, manifest_before, source_changes
from assets.copies import copies, keep_one, usable
from assets.dataset import check_attributes, check_columns
from assets.featurizing import content_keys, make_processor, make_step, refusals
from assets.federation import check_silo
from assets.filtering import apply_filters
from assets.findings import Finding
from assets.labels import disputed_inputs, label_findings
from assets.lake import Lake, open_duckdb
from assets.leakage import leak_words, leakage
from assets.near_duplicates import find_pairs
from assets.processing import CLEAN_STEP
from assets.segments.base import FOUND
from assets.settings import Project
from assets.variants import check_variants
from assets.workload import Work, asked_of, workload
from orchestration.automation import check_schedule, partition_keys
from orchestration.forecast import UNCHANGED, Forecast, forecast
from orchestration.probe import Decoded, decode_some
from training.catalog import PRETRAINED_ENCODERS
from training.fusion_check import fusion_check
from training.mlflow_store import kept_elsewhere
from training.schema import QUARANTINE, SAMPLES, SPLITS, TABLES
from training.settings import TINY
from training.spec import training_identity

_EXAMPLES = 5  # messages shown of many
_NO_SAMPLES = Alignment(SAMPLES.empty_table(), QUARANTINE.empty_table(), [])


@dataclass(frozen=True)
class SourceCounts:
    """Items of one source: `seen` = `listed` in the manifest + `refused` (duplicates, too)."""

    seen: int
    listed: int
    refused: int
    suffixes: Mapping[str, Decoded]  # how names of items end -> what became of some of them
    change: SourceChange | None  # since the last run; None where there was none


@dataclass(frozen=True)
class Check:
    """What a run of the project would find."""

    project: str
    partition: str | None  # the only one, or FIRST...LAST, that the run is of; then nothing is said of samples
    sources: Mapping[str, SourceCounts]
    refused: Mapping[str, int]  # reason -> items
    refused_examples: list[str]
    unreadable: list[str]  # why, for those of the decoded items that cannot be read
    problem: str | None  # why a run would end
    samples: Mapping[str, int]  # split -> rows
    unmatched: Mapping[str, int]  # reason -> items
    unmatched_examples: list[str]
    findings: list[Finding]  # what a person should know of items, keys and labels
    run: Forecast  # what a run would make anew, and why


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
    # See `training.model_registry.versions`; and unused_fusion, a sentence where answers do not depend on the fusion.
    models: list[dict[str, Any]]


def check(project: Project, decoded: int = 50, partition: str | None = None) -> Check:
    """What a run would find: items per source, refused ones, a few decoded, and the samples they would make.

    Args:
        decoded: items of each modality that are decoded to see whether they can be read, spread over all; a few of
            each suffix are among them.
        partition: a key, or FIRST...LAST: what a run of it would make of the clean and feature tables, which is all
            that it makes beside the manifest.

    Raises:
        ValueError: there is no such partition.
    """
    within = None
    if keys := partition_keys(project, partition):
        assert project.partitions is not None
        within = project.partitions.within(keys)
    check_schedule(project)
    check_pretrained(project)
    check_variants(project)
    training_identity(project.training)  # reads the files that it names
    check_silo(project)
    processor = make_processor(project)
    for modality in project.modalities:
        processor.prepare(modality)
    lake = pipeline.open_lake(project)
    scans, before = pipeline.scan_sources(lake, project), manifest_before(lake)
    manifest = pa.concat_tables(s.rows for s in scans)
    refused = pa.concat_tables(s.quarantine for s in scans)
    changes = {} if before is None else source_changes([s.source for s in scans], before, manifest, refused)
    lake = replace(lake, instead={"manifest": manifest})
    listed = manifest if within is None else lake.sql(f"SELECT * FROM manifest WHERE {within}")
    tried, unreadable = decode_some(project, listed, decoded)
    work: dict[str, Work] = {}
    asked = {m: asked_of(lake, make_step(project, m), within) for m in project.modalities}
    for modality, rows in asked.items():
        work |= workload(lake, make_step(project, modality), rows, before)
    aligned, problem, run = _NO_SAMPLES, None, Forecast(work, UNCHANGED, UNCHANGED, {})
    if partition is None:
        aligned, problem = _align(lake, project, manifest, refused, unreadable, asked)
        run = forecast(lake, project, work, aligned.samples if problem is None else None)
    return Check(
        project=project.name,
        partition=partition,
        sources={
            s.source: SourceCounts(
                s.seen, s.rows.num_rows, s.quarantine.num_rows, tried.get(s.source, {}), changes.get(s.source)
            )
            for s in scans
        },
        refused=_counted(refused, "reason"),
        refused_examples=refused["message"].slice(0, _EXAMPLES).to_pylist(),
        unreadable=unreadable["message"].to_pylist(),
        problem=problem,
        samples=_counted(aligned.samples, "split"),
        unmatched=_counted(aligned.quarantine, "reason"),
        unmatched_examples=aligned.quarantine["message"].slice(0, _EXAMPLES).to_pylist(),
        findings=[
            *aligned.findings,
            *_unknown_parts(manifest),
            *label_findings(aligned.samples, project),
            *disputed_inputs(aligned.samples, project),
            *_artifacts(project),
        ],
        run=run,
    )


def _artifacts(project: Project) -> list[Finding]:
    """That they are kept elsewhere than the project file says; a server that does not answer is another matter."""
    with contextlib.suppress(ConnectionError):
        uri, place = project.mlflow_uri, project.artifacts and project.artifacts_uri
        if elsewhere := kept_elsewhere(uri, project.name, place):
            return [Finding("artifacts_elsewhere", elsewhere)]
    return []


def check_pretrained(project: Project) -> None:
    """Raises ValueError where the language model, a pretrained encoder in the model, or the model of a filter cannot do
    what is asked of it."""
    if project.model.llm.model != TINY:
        from training.llm import check_llm

        check_llm(project.model.llm, project.make_output(), project.training.packing)
    for name, rule in project.pair_filters.items():
        from training import two_towers

        two_towers.load(rule.options.model, tuple(name.split("+")))
    encoders = {m: encoder for m, encoder in project.model.encoders.items() if encoder.kind in PRETRAINED_ENCODERS}
    if encoders:
        from training.building import check_encoders

        check_encoders(encoders, project.features)


def _check_model(project: Project, samples: pa.Table) -> None:
    """Raises ValueError where a training would end as it starts."""
    from training.job import check_labels

    model, training = project.model, project.training
    splits = {name: samples.filter(pc.equal(samples["split"], name))["label"].to_pylist() for name in SPLITS}
    check_labels(model.output, splits)
    if training.early_stopping is not None and not splits["validation"]:
        raise ValueError("training.early_stopping is set, and no sample is in validation: change align.split")
    if project.tuning is not None and not splits["validation"]:
        raise ValueError("tuning judges its trials on validation rows, and no sample is one: change align.split")
    if training.report_to:
        from training.trainer import check_reports

        check_reports(training.report_to)
    # The default model is made with any settings; to look at others takes seconds.
    writes_codes = bool(project.make_output().answers_with)
    if model.llm.model == TINY and model.prompt is None and not model.fusion.options and not writes_codes:
        return
    from training.building import check_model

    labels = [label for label in splits["train"] if label is not None]
    check_model(model, training, project.features, labels, project.align.places)


def _align(
    lake: Lake,
    project: Project,
    manifest: pa.Table,
    refused: pa.Table,
    unreadable: pa.Table,
    asked: Mapping[str, pa.Table],
) -> tuple[Alignment, str | None]:
    """The samples that the items would make, and why a run would end: told last, since what was refused or does not
    match is often why.

    What is cleaned already is judged as a run judges it; of the rest all that was not found to be unreadable may pass.

    Args:
        asked: of each modality, see `assets.workload.asked_of`.
    """
    passing, bad, known = {}, {}, []
    for m, rows in asked.items():
        new = rows.filter(pc.equal(rows["step"], CLEAN_STEP)).select(["content", "sha256", "cut"])
        new = new.rename_columns(["id", "parent_id", "cut"])  # what is cut where it is decoded counts as one
        broken = content_keys(unreadable.filter(pc.equal(unreadable["modality"], m))) & set(new["id"].to_pylist())
        passing[m] = new.filter(pc.invert(pc.is_in(new["id"], pa.array(broken, pa.string()))))
        bad[m] = broken
        if lake.version(f"clean_{m}") is not None or lake.version("quarantine") is not None:
            kept, refusing, filtered = _judged(lake, project, m, set(rows["step"].to_pylist()))
            bad[m] |= content_keys(refusing) | content_keys(filtered) - content_keys(kept, "parent_id")
            passing[m] = pa.concat_tables([passing[m], kept], promote_options="default")
            known += [refusing, filtered]
    steps = {m: make_step(project, m) for m in asked}
    compared = {m: usable(rows, bad[m]) for m, rows in passing.items()}
    pairs, _ = find_pairs(lake, steps, {m: rows["id"] for m, rows in compared.items()})  # of what is signed already
    for m in filter(project.keeps_one, asked):
        found = copies(lake, m, project.of_samples, compared[m], pairs.filter(pc.equal(pairs["modality"], m)))
        passing[m], more = keep_one(passing[m], found, m)
        bad[m] |= content_keys(more) - content_keys(passing[m], "parent_id")
        known.append(more)
    why, output = pa.concat_tables([refused, unreadable, *known]), project.make_output()
    near = pipeline.tying(pairs, project)
    before = pipeline.assigned(lake, project, near)
    try:
        aligned = align(manifest, passing, project.align, project.sources, project.root, bad, why, output, near, before)
    except ValueError as error:
        return _NO_SAMPLES, str(error)
    try:
        validate_samples(_counted(aligned.samples, "split"), project.align, aligned.findings, output)
        with open_duckdb() as connection:
            connection.register("samples", aligned.samples)
            check_columns(connection, "samples", project.model.columns)
            check_attributes(connection, "samples", project.named_columns)
        _check_model(project, aligned.samples)
    except ValueError as error:
        return aligned, str(error)
    leaks = leakage(aligned.samples, project.align, manifest if project.cuts else None, near)
    return aligned, leak_words(leaks, project.align) if leaks.num_rows else None


def _unknown_parts(manifest: pa.Table) -> list[Finding]:
    """That only decoding tells how many parts the items of some sources have."""
    found = manifest.filter(pc.match_substring_regex(manifest["cut"], FOUND))
    said = "is cut where it is decoded: each item counts as one segment here, and a run makes as many as it finds"
    return [Finding("unknown_segments", f"source {name} {said}") for name in pc.unique(found["source"]).to_pylist()]


def _judged(lake: Lake, project: Project, modality: str, asked: Container[str]) -> tuple[pa.Table, ...]:
    """Of what is cleaned or refused already the contents that pass filters, and rows of `quarantine`: of what clean or
    featurize refused, and of what filters drop, others of which may pass.

    Args:
        asked: steps that are to be done; a filter that has yet to measure lets all pass.
    """
    step = make_step(project, modality)
    measured = {kind: rule for kind, rule in step.filters.items() if kind not in asked}
    kept, filtered = apply_filters(lake, replace(step, filters=measured), project.of_samples)
    refusing = refusals(lake, project, modality)
    refusing = refusing.filter(pc.is_valid(refusing["fingerprint"]))  # what could not be read is tried again
    return kept, refusing, filtered


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
    for model in models:
        checked = fusion_check(model["figures"], model["metric"], project.promotion.confidence)
        model["unused_fusion"] = checked.words if checked is not None and not checked.passed else None
    return Status(project.name, str(project.path), project.lake_uri, tables, models)
