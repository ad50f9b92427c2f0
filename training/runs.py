"""Runs that are in MLflow: found by what they are of, and what they hold. MLflow is imported where it is used."""

import json
import tempfile
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from training.children import is_free
from training.mlflow_store import client
from training.records import TrainingReport, TuningReport

TAG = "triptych."  # before the names of our tags
TRAINING_PAGES = "?workflowType=machine_learning"  # else MLflow shows those for prompts and agents
REPORT = "report.json"  # the artifact that says a training is whole: logged last
TUNING = "tuning.json"  # the same of a search for settings


def find_run(uri: str, project: str, fingerprint: str) -> str | None:
    """The finished run of a training, by its fingerprint; None where it was never finished."""
    runs = search(uri, project, fingerprint=fingerprint, status="FINISHED")
    return runs[0].info.run_id if runs else None


def find_report(uri: str, project: str, fingerprint: str) -> TrainingReport | None:
    """What a finished training reported; None where it has to be done."""
    run_id = find_run(uri, project, fingerprint)
    return None if run_id is None else TrainingReport.from_json(read_json(uri, run_id, REPORT))


def find_tuning(uri: str, project: str, fingerprint: str) -> TuningReport | None:
    """What a search for settings came to; None where it has not come to its end."""
    run_id = find_run(uri, project, fingerprint)
    return None if run_id is None else TuningReport.from_json(read_json(uri, run_id, TUNING))


def newest_training(uri: str, project: str, role: str) -> tuple[dict[str, str], str | None] | None:
    """Parameters and the dataset's fingerprint of the newest finished training of the model or a baseline; None where
    there is none."""
    runs = (run for run in search(uri, project, status="FINISHED") if run.data.tags.get(TAG + "role") == role)
    found = ((dict(run.data.params), run.data.tags.get(TAG + "dataset_fingerprint")) for run in runs)
    return next(found, None)


class RunFacts(NamedTuple):
    """Where a run comes from."""

    started: datetime  # UTC
    commit: str | None  # of the code, where that was a checkout of git
    parameters: dict[str, str]  # as `log_parameters` wrote them


def run_facts(uri: str, run_id: str) -> RunFacts:
    run = client(uri).get_run(run_id)
    started = datetime.fromtimestamp(run.info.start_time / 1000, UTC)
    return RunFacts(started, run.data.tags.get("mlflow.source.git.commit"), dict(run.data.params))


def search(uri: str, project: str, fingerprint: str | None = None, status: str | None = None) -> Sequence[Any]:
    """Runs of a project, the newest first."""
    store = client(uri)
    experiment = store.get_experiment_by_name(project)
    if experiment is None:
        return []
    wanted = [f"tags.`{TAG}training_fingerprint` = '{fingerprint}'"] if fingerprint else []
    wanted += [f"attributes.status = '{status}'"] if status else []
    newest = ["attributes.start_time DESC"]
    found: list[Any] = []
    token: str | None = ""
    while token is not None:
        page = store.search_runs([experiment.experiment_id], " and ".join(wanted), order_by=newest, page_token=token)
        found, token = [*found, *page], page.token
    return found


def runs_not_on(uri: str, project: str, datasets: Iterable[str]) -> dict[str, str]:
    """Run id -> role (model, or a baseline's name) of all that was trained on another than these datasets, by
    fingerprint."""
    excepted = {None, *datasets}  # without a fingerprint it is not of our training
    tags = {run.info.run_id: run.data.tags for run in search(uri, project)}
    return {i: t.get(TAG + "role", "") for i, t in tags.items() if t.get(TAG + "dataset_fingerprint") not in excepted}


def end_dead_runs(uri: str, project: str, checkpoints: Path) -> list[str]:
    """Marks as KILLED the runs that say RUNNING while nobody holds the lock of their training; returns their ids.

    Args:
        checkpoints: folder with the locks (`training.job`). A training without one there is another machine's.
    """
    dead = []
    for run in search(uri, project, status="RUNNING"):
        lock = checkpoints / f"{run.data.tags.get(f'{TAG}training_fingerprint')}.lock"
        # Asked again, as one may have ended since it was listed: it says so before it gives its lock back.
        if lock.exists() and is_free(lock) and client(uri).get_run(run.info.run_id).info.status == "RUNNING":
            client(uri).set_terminated(run.info.run_id, "KILLED")
            dead.append(run.info.run_id)
    return dead


def run_page(uri: str, ui: str, run_id: str) -> str:
    """Where MLflow's web UI at the address `ui` shows a run, among what it has for models that are trained."""
    return f"{ui}/#/experiments/{client(uri).get_run(run_id).info.experiment_id}/runs/{run_id}{TRAINING_PAGES}"


def download(uri: str, run_id: str, name: str, folder: str) -> Path:
    """A file or folder that a run logged, as it lies in `folder` then, or where it is where this machine has it."""
    import mlflow

    return Path(
        mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name, dst_path=folder, tracking_uri=uri)
    )


def read_artifact(uri: str, run_id: str, name: str) -> bytes:
    """One file that a run logged."""
    with tempfile.TemporaryDirectory() as folder:
        return download(uri, run_id, name, folder).read_bytes()


def find_artifact(uri: str, run_id: str, name: str) -> bytes | None:
    """As `read_artifact`; None where the run has no such file."""
    there = {file.path for file in client(uri).list_artifacts(run_id)}
    return read_artifact(uri, run_id, name) if name in there else None


def write_artifact(uri: str, run_id: str, name: str, data: bytes) -> None:
    """A file of a run, in place of the one it had."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        client(uri).log_artifact(run_id, str(path))


def write_artifacts(uri: str, run_id: str, folder: Path) -> None:
    """All that a folder holds, in place of what the run had there."""
    client(uri).log_artifacts(run_id, str(folder))


def write_json(uri: str, run_id: str, name: str, values: Any) -> None:
    """A file of a run, in place of the one it had."""
    client(uri).log_dict(run_id, values, name)


def find_json(uri: str, run_id: str, name: str) -> Any:
    """As `read_json`; None where the run has no such file."""
    data = find_artifact(uri, run_id, name)
    return None if data is None else json.loads(data)


def read_json(uri: str, run_id: str, name: str) -> Any:
    return json.loads(read_artifact(uri, run_id, name))
