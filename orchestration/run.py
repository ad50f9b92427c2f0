"""One run of a project's job in this process, on the instance that the web UI shows."""

import contextlib
import errno
import importlib.resources
import os
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import dagster as dg
import yaml

from assets import pipeline
from assets.catalog import ENGINES
from assets.dataset import split_counts
from assets.federation import check_silo
from assets.resource import OF_MLFLOW, SILO, TUNING, resource_key
from assets.settings import Project
from assets.variants import check_variants
from orchestration.automation import partition_tags
from orchestration.definitions import job_apart, project_definitions
from orchestration.failures import why
from orchestration.processes import cancel_when_interrupted, free_dead_runs, hold, let_go
from orchestration.registration import register
from orchestration.signals import Stopped, came
from training.files import first_use, write_text
from training.records import SiloReport

_SETTINGS = importlib.resources.files("orchestration") / "dagster.yaml"
# The sections of it with the retries, and what stands in their place.
_SECTIONS = {"run_queue": ("run_coordinator",), "run_retries": ()}
_TRAINED = ("baselines", "model", TUNING, SILO)
# The web UI lists a run under its job when it knows the code location: the names `workspace.yaml` gives.
_LOCATION = {".dagster/repository": "__repository__@triptych"}


class RunFailed(RuntimeError):
    """A run that did not succeed; the message says which step and why."""


def open_instance(home: Path) -> dg.DagsterInstance:
    """The Dagster instance under TRIPTYCH_HOME, made at first use."""
    os.environ["DAGSTER_HOME"] = str(home)  # child processes of Dagster look here
    settings = home / "dagster.yaml"
    with first_use(home):  # Dagster makes its databases now, and two at once would both
        if not settings.exists() or not settings.stat().st_size:  # an empty one would mean no limit of the pools
            write_text(settings, _SETTINGS.read_text())
        elif added := _retries(settings.read_text(encoding="utf-8")):
            # Where it cannot be written it is somebody else's to change.
            with contextlib.suppress(OSError), settings.open("a", encoding="utf-8") as file:
                file.write(added)
        return dg.DagsterInstance.from_config(str(home))


def _retries(text: str) -> str | None:
    """What the settings of a home that was made before there were retries lack; None where they say their own."""
    ours, added = _SETTINGS.read_text(), "" if text.endswith("\n") else "\n"
    try:
        theirs = yaml.safe_load(text)
        if not isinstance(theirs, dict):
            return None
        for name, others in _SECTIONS.items():
            if not theirs.keys() & {name, *others}:
                added += re.findall(rf"^{name}:.*\n(?: .*\n)+", ours, re.MULTILINE)[0]
        both = yaml.safe_load(text + added)
    except yaml.YAMLError:  # Dagster says what is wrong with them; or they are written so that nothing can be added
        return None
    return added if added.strip() and both == theirs | yaml.safe_load(added) else None


def select(job: dg.JobDefinition, project: str, names: str | None) -> list[dg.AssetKey] | None:
    """The assets that a selection such as ``samples``, ``dataset+`` or ``+model,champion`` names; None is all.

    Raises:
        ValueError: a part of it is no asset of the project.
    """
    if names is None:
        return None
    graph = job.asset_layer.asset_graph
    known = {key.path[-1]: key for key in job.asset_layer.executable_asset_keys}
    chosen: set[dg.AssetKey] = set()
    for part in names.split(","):
        match = re.fullmatch(r"(\+?)([a-z_0-9]+)(\+?)", part.strip())
        if match is None or match[2] not in known:
            there = ", ".join(sorted(known))
            raise ValueError(f"--select {part.strip()!r} names no asset of {project}; there are {there}")
        selection: dg.AssetSelection = dg.AssetSelection.assets(known[match[2]])
        if match[1]:
            selection = selection.upstream()
        if match[3]:
            selection = selection | dg.AssetSelection.assets(known[match[2]]).downstream()
        chosen |= set(selection.required_multi_asset_neighbors().resolve(graph))  # one step makes both
    return sorted(chosen)


def run_job(
    project: Project,
    instance: dg.DagsterInstance,
    names: str | None = None,
    overrides: Sequence[str] = (),
    debug: bool = False,
    partition: str | None = None,
    apart: str = "",
) -> dg.ExecuteInProcessResult:
    """Materializes the project's job, or the assets of it that are named.

    Args:
        apart: an asset that has a job of its own (`job_apart`), which this is then.
        partition: a key, or FIRST...LAST; then, unless assets are named, the manifest and what has partitions is made.

    Raises:
        RunFailed: a step failed, or a blocking check did.
        Stopped: Ctrl-C or SIGTERM came.
        ValueError: the selection names no asset, or there is no such partition.
    """
    tags = partition_tags(project, partition)
    if partition is not None and names is None:
        names = ",".join(["manifest", *(f"clean_{modality}" for modality in project.modalities)])
    register(project)
    free_dead_runs(instance)
    job = project_definitions(project).resolve_job_def(job_apart(project, apart) if apart else project.name)
    ENGINES.make(project.engine)  # what it needs has to be installed
    selected, run_id = select(job, project.name, names), str(uuid.uuid4())
    names_of = OF_MLFLOW if selected is None else {key.path[-1] for key in selected}
    if not set(_TRAINED).isdisjoint(names_of):
        from orchestration.inspection import check_pretrained

        check_silo(project)
        check_pretrained(project)  # what the training could not do, before hours of the data side
    if selected is None or "variants" in names_of:
        check_variants(project)
    if selected is None or any(key.path[-1] in OF_MLFLOW for key in selected):
        from training.mlflow_store import check_artifacts, check_reachable

        check_reachable(project.mlflow_uri)  # now, and not when the data side is done
        check_artifacts(project.artifacts_uri)
        if (database := project.home / "mlflow.db").exists() and not os.access(database, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(database))
    hold(instance, run_id)
    cancel_when_interrupted()
    try:
        result = job.execute_in_process(
            instance=instance,
            raise_on_error=False,
            asset_selection=selected,
            run_id=run_id,
            tags=_LOCATION | tags,
            run_config={
                "loggers": {"lines": {"config": {"debug": debug}}},
                "resources": {
                    resource_key(project.name): {"config": {"file": str(project.path), "overrides": list(overrides)}}
                },
            },
        )
    except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError):
        raise _stopped(instance, run_id) from None
    finally:
        let_go(run_id)
    if not result.success:
        raise RunFailed(why(result.all_events)) if came() is None else _stopped(instance, run_id)
    return result


def _stopped(instance: dg.DagsterInstance, run_id: str) -> Stopped:
    """Marks a run that was interrupted as CANCELED, where Dagster has not."""
    run = instance.get_run_by_id(run_id)
    if run is not None and run.status != dg.DagsterRunStatus.CANCELED:
        instance.report_run_canceled(run)
    return Stopped(f"run {run_id[:8]} is CANCELED; what is done is kept, and the same command goes on from there")


@dataclass(frozen=True)
class ModelSummary:
    name: str
    version: int | None  # None where the run made none
    aliases: list[str]


@dataclass(frozen=True)
class DatasetSummary:
    fingerprint: str | None
    rows: Mapping[str, int]  # split -> rows


@dataclass(frozen=True)
class ItemCounts:
    seen: int | None  # None where the run did not list the sources
    processed: int
    reused: int
    quarantined: int


@dataclass(frozen=True)
class Summary:
    """What a run made: what every asset of it reported."""

    project: str
    dagster_run_id: str
    mlflow_run_id: str | None
    model: ModelSummary
    dataset: DatasetSummary
    items: ItemCounts
    metrics: Mapping[str, float]  # test/<name> -> value
    metric: str | None  # the first of the output
    subsets: Mapping[str, float | None]  # inputs given -> that metric; None where no test row has them
    subset_rows: Mapping[str, int]  # inputs given -> test rows that have any of them: those that it is of
    subset_filled: Mapping[str, float | None]  # on all test rows: the majority answer where they have none
    standings: list[Mapping[str, Any]]  # the model beside majority answer and baselines (training.records.Standing)
    warnings: list[str]  # what checks say that did not end the run
    seconds: Mapping[str, float]  # asset -> duration
    findings: list[str]  # what a person should know of items, keys and labels; of the samples that this run made
    outputs: Sequence[Mapping[str, Any]] = ()  # where several answer at once: each beside the majority answer
    # Source -> its items, and how many are new, changed or vanished since the run before (assets.changes.SourceChange)
    sources: Mapping[str, Any] = field(default_factory=dict)
    # Table -> contents whose rows were made anew, or refused: as many as `triptych check` said before the run.
    computed: Mapping[str, int] = field(default_factory=dict)
    # Smaller or faster forms of the champion: the rows of their table, and what has to be said of them
    variants: Sequence[Mapping[str, Any]] = ()
    variant_remarks: Sequence[str] = ()
    coverage: Sequence[Mapping[str, Any]] = ()  # what is answered from which probability on (training.records.Coverage)
    fairness: Sequence[Mapping[str, Any]] = ()  # of each sensitive column (training.records.Fairness)
    noise: Sequence[Mapping[str, Any]] = ()  # of each modality (training.records.NoiseCurve), where it was asked for
    calibration: Sequence[Mapping[str, Any]] = ()  # of all test rows and of each slice (training.records.Calibration)


def silo_report(result: dg.ExecuteInProcessResult) -> SiloReport:
    """What a silo did, as its asset says it."""
    made = [event.step_materialization_data.materialization for event in result.get_asset_materialization_events()]
    (said,) = (one.metadata for one in made if one.asset_key.path[-1] == SILO)
    known: dict[str, Any] = {field.name: said[field.name].value for field in fields(SiloReport) if field.name in said}
    return SiloReport(**{"epsilon": None, **known})


def _dataset(project: Project) -> DatasetSummary:
    """The snapshot that is there, which an earlier run may have written."""
    lake = pipeline.open_lake(project)
    if lake.version("dataset") is None:
        return DatasetSummary(None, {})
    return DatasetSummary(pipeline.present_snapshot(lake).fingerprint, split_counts(lake.read("dataset")))


def summary(project: Project, result: dg.ExecuteInProcessResult) -> Summary:
    """What `triptych run --json` ends with."""
    durations: dict[str, float] = {}
    steps: dict[str, str] = {}  # asset -> step
    metadata: dict[str, dict[str, Any]] = {}
    warnings: list[str] = []
    for event in result.all_events:
        if event.is_step_success:
            durations[str(event.step_key)] = round(event.step_success_data.duration_ms / 1000, 3)
        if event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            check = event.asset_check_evaluation_data
            warnings += [] if check.passed else [check.description or check.check_name]
        if event.event_type == dg.DagsterEventType.ASSET_MATERIALIZATION:
            materialization = event.step_materialization_data.materialization
            steps[materialization.asset_key.path[-1]] = str(event.step_key)
            said = {k: v.value for k, v in materialization.metadata.items()}
            metadata.setdefault(materialization.asset_key.path[-1], {}).update(said)  # of partitions one says the most
    clean = [metadata[name] for name in metadata if name.startswith("clean_")]
    model = metadata.get("model", {})
    return Summary(
        project=project.name,
        dagster_run_id=result.run_id,
        mlflow_run_id=model.get("mlflow_run_id"),
        model=ModelSummary(project.name, model.get("version"), metadata.get("champion", {}).get("aliases", [])),
        dataset=_dataset(project),
        items=ItemCounts(
            seen=metadata.get("manifest", {}).get("seen"),
            processed=sum(m["processed"] for m in clean),
            reused=sum(m["reused"] for m in clean),
            quarantined=metadata.get("samples", {}).get("quarantined", 0),
        ),
        metrics={f"test/{name}": value for name, value in model.get("metrics", {}).items()},
        metric=model.get("metric"),
        subsets=model.get("subset_metrics", {}),
        subset_rows=model.get("subset_rows", {}),
        subset_filled=model.get("subset_filled", {}),
        standings=metadata.get("evaluation", {}).get("standings", []),
        warnings=warnings,
        # The trainer says itself how long each part took; what else a step makes shares its time.
        seconds={asset: metadata[asset].get("seconds", durations[steps[asset]]) for asset in steps},
        findings=metadata.get("samples", {}).get("findings", []),
        outputs=metadata.get("evaluation", {}).get("outputs", []),
        sources=metadata.get("manifest", {}).get("sources", {}),
        computed={table: n for m in clean for table, n in m["computed"].items()},
        coverage=metadata.get("evaluation", {}).get("coverage", []),
        fairness=metadata.get("evaluation", {}).get("fairness", []),
        noise=metadata.get("evaluation", {}).get("noise", []),
        calibration=metadata.get("evaluation", {}).get("calibration", []),
        variants=metadata.get("variants", {}).get("rows", []),
        variant_remarks=metadata.get("variants", {}).get("remarks", []),
    )
