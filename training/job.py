"""The trainer: one process that trains, evaluates, logs and registers what its specification asks for.

    python -P -m training.job

Dagster starts it (`assets.launcher`) and passes the specification over Pipes; progress and results go back the same
way, everything else through the lake and MLflow. It dies with the process that started it.
"""

import ctypes
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from dagster_pipes import open_dagster_pipes
from filelock import FileLock, Timeout

from training.schema import MODALITIES, PREDICTIONS, SPLITS, subset_name
from training.settings import to_dict
from training.spec import JobSpec, RunSpec

Log = Callable[[str], None]


def die_with_parent() -> None:
    """Asks the kernel to kill this process when the one that started it is gone (Linux; elsewhere nothing)."""
    parent = os.environ.get("TRIPTYCH_PARENT")
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != int(parent):  # it died before the call
        os._exit(1)


def run_all(spec: JobSpec, report: Callable[[dict[str, Any]], None], log: Log) -> None:
    """Trains the models one after the other; `report` gets each one's results as soon as they are safe in MLflow.

    Raises:
        ValueError: the snapshot is not the one that was asked for, or another trainer is at work on it.
    """
    from training.data import open_samples, open_table

    table = open_table(spec.lake, "dataset", spec.version, spec.storage_options)
    index = table.to_table().sort_by("sample_id")
    splits = {
        split: open_samples(
            index.filter(pc.equal(index["split"], split)),
            spec.lake,
            spec.feature_fingerprints,
            spec.features,
            Path(spec.cache),
            spec.storage_options,
        )
        for split in SPLITS
    }
    attributes = index.filter(pc.equal(index["split"], "test")).select(["sample_id", "attributes"])
    for run in spec.runs:
        report(train_one(spec, run, splits, attributes, log))


def train_one(spec: JobSpec, run: RunSpec, splits: dict[str, Any], attributes: pa.Table, log: Log) -> dict[str, Any]:
    """One model from data to registry. A training that was killed goes on from its last checkpoint."""
    folder = Path(spec.checkpoints) / run.fingerprint
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            return _train_locked(spec, run, splits, attributes, folder, log)
    except Timeout:
        raise ValueError(f"another trainer is at work in {folder}: wait for it, or end it") from None


def _train_locked(
    spec: JobSpec, run: RunSpec, splits: dict[str, Any], attributes: pa.Table, folder: Path, log: Log
) -> dict[str, Any]:
    import mlflow

    from training import tracking
    from training.evaluate import measure, slices
    from training.processor import Processor
    from training.train import fit, predict

    started = time.monotonic()
    with tracking.open_run(spec, run) as active:
        tracking.log_parameters(run, {"model": to_dict(run.model), "training": to_dict(run.training)})
        fitted = fit(
            run.model,
            run.training,
            spec.features,
            splits["train"],
            splits["validation"],
            folder,
            modalities=run.keep,
            log=log,
            track=mlflow.log_metrics,
        )
        trained = time.monotonic() - started
        log(f"{run.name}: trained in {trained:.0f} s, evaluating on {len(splits['test'])} test samples")
        raise NotImplementedError


if __name__ == "__main__":
    pass
