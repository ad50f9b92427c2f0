"""Encoders that have learned without labels: trained in an MLflow run of their own, known by its fingerprint, and
fetched from there by the trainings that start from them."""

import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from training.records import PretrainingReport
from training.runs import download, find_run, read_json
from training.spec import JobSpec, PretrainingSpec
from training.workers import Log

if TYPE_CHECKING:
    from torch import Tensor

    from training.data import SampleDataset
    from training.train import TrainingTask

REPORT = "pretraining.json"
_WEIGHTS = "encoders.safetensors"
_CHECKPOINT = "pretraining.pt"


def find_pretraining(uri: str, project: str, fingerprint: str) -> PretrainingReport | None:
    """What encoders that are there already came to; None where they have to be trained."""
    run_id = find_run(uri, project, fingerprint)
    return None if run_id is None else PretrainingReport(**read_json(uri, run_id, REPORT))


def train_encoders(
    spec: JobSpec, wanted: PretrainingSpec, task: "TrainingTask", unlabelled: "SampleDataset", log: Log
) -> PretrainingReport:
    """Trains the encoders on the training rows of the task and on those without a label, and logs them; where that was
    killed before, it goes on from its last epoch.

    Raises:
        ValueError: another trainer is at work on them.
    """
    import mlflow
    from safetensors.torch import save_file

    from training.pretraining import pretrain
    from training.tracking import open_part_run

    started = time.monotonic()
    rows, folder = task.train.and_more(unlabelled), Path(spec.checkpoints) / wanted.fingerprint
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder.with_suffix(".lock"), timeout=1):
            found = pretrain(
                task, rows, wanted.settings, lambda words: log(f"{wanted.name}: {words}"), folder / _CHECKPOINT
            )
    except Timeout:
        raise ValueError(f"another trainer is at work in {folder}: wait for it, or end it") from None
    with open_part_run(spec, wanted.name, wanted.fingerprint) as active:
        report = PretrainingReport(
            fingerprint=wanted.fingerprint,
            mlflow_run_id=active.info.run_id,
            rows=len(rows),
            unlabelled=len(unlabelled),
            left_out=len(wanted.left_out),
            before=found.before,
            after=found.after,
            seconds=round(time.monotonic() - started, 2),
        )
        losses: Mapping[int, Mapping[str, float]] = {0: found.before, 1: found.after}
        for step, values in losses.items():
            mlflow.log_metrics({f"validation_{name}": value for name, value in values.items()}, step=step)
        with tempfile.TemporaryDirectory() as temporary:
            save_file(found.weights, Path(temporary) / _WEIGHTS)
            mlflow.log_artifact(str(Path(temporary) / _WEIGHTS))
        mlflow.log_dict(report.to_json(), REPORT)
    shutil.rmtree(folder, ignore_errors=True)  # the checkpoint has served
    return report


def fetch_encoders(spec: JobSpec) -> "dict[str, Tensor]":
    """The weights that models start from; none where the project asks for no pretraining. Raises ValueError: they have
    not been trained."""
    from safetensors.torch import load_file

    if spec.pretraining is None:
        return {}
    run_id = find_run(spec.tracking_uri, spec.project, spec.pretraining.fingerprint)
    if run_id is None:
        raise ValueError("the encoders of the present dataset have not been pretrained: materialize pretraining first")
    with tempfile.TemporaryDirectory() as folder:
        return dict(load_file(download(spec.tracking_uri, run_id, _WEIGHTS, folder)))
