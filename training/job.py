"""The trainer: one process that trains, evaluates, logs and registers what its specification asks for.

    python -P -m training.job

Dagster starts it (`assets.launcher`) and passes the specification over Pipes; progress and results go back the same
way, everything else through the lake and MLflow. It dies with the process that started it.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from training.children import PARENT, die_with_parent
from training.schema import MODALITIES, PREDICTIONS, SPLITS, subset_name
from training.settings import to_dict
from training.spec import JobSpec, RunSpec
from training.workers import Log, side_by_side

if TYPE_CHECKING:
    from training.data import SampleDataset
    from training.model import FusionModel

_EXAMPLES = 12  # test samples in the picture


def run_all(spec: JobSpec, report: Callable[[dict[str, Any]], None], log: Log) -> None:
    """Trains the models; `report` gets each one's results as soon as they are safe in MLflow.

    Raises:
        ValueError: features of the snapshot are missing, or another trainer is at work on the same model.
    """
    import torch

    from training import tracking

    # The product takes longest: first, with the others beside it.
    runs = sorted(spec.runs, key=lambda run: run.is_baseline)
    at_once = spec.parallel or (1 if torch.cuda.is_available() else 2)
    threads = max(1, torch.get_num_threads() // at_once)  # the same however many are left: it decides the last bits
    open_splits(spec)  # fills the cache that all read
    tracking.open_experiment(spec)
    if min(at_once, len(runs)) == 1:
        for run in runs:
            report(train_one(spec, run, threads, log))
    else:
        side_by_side(train_one, [(spec, run, threads) for run in runs], min(at_once, len(runs)), report, log)


def open_splits(spec: JobSpec) -> tuple[dict[str, "SampleDataset"], pa.Table]:
    """The rows of each split, and the test rows as they stand in `dataset`."""
    from training.cache import open_table
    from training.data import open_samples

    index = open_table(spec.lake, "dataset", spec.version, spec.storage_options).to_table().sort_by("sample_id")
    parts = {split: index.filter(pc.equal(index["split"], split)) for split in SPLITS}
    place = (spec.lake, spec.feature_fingerprints, spec.features, Path(spec.cache), spec.storage_options)
    noise: dict[str, list[str]] = {}
    for run in spec.runs:
        for modality, ids in run.noise.items():
            noise[modality] = sorted({*noise.get(modality, ()), *ids})
    return {split: open_samples(rows, *place, noise) for split, rows in parts.items()}, parts["test"]


def train_one(spec: JobSpec, run: RunSpec, threads: int, log: Log) -> dict[str, Any]:
    """One model from data to registry; a training that was killed goes on from its last checkpoint.

    Raises:
        ValueError: another trainer is at work on it, or see `fit`.
    """
    import torch

    torch.set_num_threads(threads)
    folder = Path(spec.checkpoints) / run.fingerprint
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder.with_suffix(".lock"), timeout=1):  # who looks whether it is free holds it for an instant
            return _train(spec, run, folder, log)
    except Timeout:
        raise ValueError(f"another trainer is at work in {folder}: wait for it, or end it") from None


def _train(spec: JobSpec, run: RunSpec, folder: Path, log: Log) -> dict[str, Any]:
    from transformers.utils import logging

    from training import model_registry, tracking
    from training.evaluate import majority_accuracy, measure, slices
    from training.processor import Processor
    from training.train import fit, make_tokenizer, predict

    logging.disable_progress_bar()
    started = time.monotonic()
    splits, test = open_splits(spec)
    noise = clips(splits["train"], spec, run)
    # Where TensorBoard reads, if `training.report_to` names it; the checkpoints' folder is removed in the end.
    logs = Path(spec.checkpoints).parent / "tensorboard" / f"{run.name}-{run.fingerprint}"
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(logs)
    with tracking.open_run(spec, run) as active, tempfile.TemporaryDirectory() as temporary:
        tracking.log_parameters(run, {"model": to_dict(run.model), "training": to_dict(run.training)})
        tokenizer = make_tokenizer(splits["train"], run.model, run.training)
        fitted = fit(
            run.model,
            run.training,
            spec.features,
            splits["train"],
            splits["validation"],
            tokenizer,
            folder,
            keep=frozenset(run.keep),
            callbacks=[tracking.progress_callback(run, log)],
            run_name=f"{spec.project} {run.name}",
            noise=noise,
        )
        seconds = {"train": time.monotonic() - started}
        log(f"{run.name}: trained in {seconds['train']:.0f} s; answering {len(splits['test']):,} test samples")
        predictions = predict_subsets(fitted.model, tokenizer, splits["test"], spec, run)
        rows = measure(predictions, run.keep, slices(test))
        metrics = headline(rows)
        if not run.is_baseline:  # with another row's soft tokens: by chance, if the answers come from the fusion
            shuffled = predict(fitted.model, tokenizer, splits["test"], spec.features, shuffle_seed=0)
            labels = splits["test"].labels
            metrics["shuffled_accuracy"] = sum(map(str.__eq__, shuffled, labels)) / max(1, len(labels))
            metrics["majority_accuracy"] = majority_accuracy(splits["train"].labels, labels)
        subsets = {row["subset"]: row["accuracy"] for row in rows if row["slice"] is None}
        seconds["evaluate"] = time.monotonic() - started - seconds["train"]
        results = Path(temporary) / "results"
        results.mkdir()
        pq.write_table(predictions, results / "predictions.parquet")
        (results / "evaluation.json").write_text(json.dumps({"rows": rows, "history": fitted.history}))
        _pictures(results, fitted.history, rows, predictions, splits["test"])
        tracking.log_results(results, {f"test_{name}": value for name, value in metrics.items()}, subsets)
        version = None
        if not run.is_baseline:
            bundle = Path(temporary) / "bundle"
            fitted.model.save_pretrained(bundle)
            tokenizer.save_pretrained(bundle)
            Processor(spec.features, spec.limits).save_pretrained(bundle)
            version = model_registry.log_model(spec, run, bundle)
        seconds["log"] = time.monotonic() - started - seconds["train"] - seconds["evaluate"]
        report = {
            "name": run.name,
            "mlflow_run_id": active.info.run_id,
            "version": version,
            "dataset_fingerprint": spec.dataset,
            "training_fingerprint": run.fingerprint,
            "metrics": metrics,
            "subsets": subsets,
            "seconds": {name: round(value, 2) for name, value in seconds.items()},
        }
        tracking.log_report(report)
    shutil.rmtree(folder, ignore_errors=True)  # the checkpoints have served
    return report


def clips(train: "SampleDataset", spec: JobSpec, run: RunSpec) -> dict[str, list[Any]]:
    """Modality -> what augmentation may add to it, as the tensors that it changes."""
    augmented = {m: spec.features.featurizer(m).augmented or "" for m in run.noise}
    return {m: train.tensors(m, augmented[m], ids) for m, ids in run.noise.items()}


def headline(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """The figures with all inputs given; None where no test row has any of them. `rows` as `measure` gives them."""
    full = next(row for row in rows if row["subset"] == row["inputs"] and row["slice"] is None)
    return {name: value for name, value in full.items() if name not in ("inputs", "subset", "slice")}


def predict_subsets(
    model: "FusionModel", tokenizer: Any, rows: "SampleDataset", spec: JobSpec, run: RunSpec
) -> pa.Table:
    """Predictions (PREDICTIONS) for every subset of the inputs, on the rows that have at least one of its inputs."""
    from training.evaluate import subsets
    from training.train import predict

    ids = {m: rows.index[f"{m}_id"].is_valid() for m in MODALITIES}
    tables = []
    for subset in subsets(run.keep):
        present = ids[subset[0]]
        for modality in subset[1:]:
            present = pc.or_(present, ids[modality])
        chosen = rows.take(pc.indices_nonzero(present).to_pylist())
        answers = predict(model, tokenizer, chosen, spec.features, keep=frozenset(subset)) if len(chosen) else []
        columns = [
            chosen.index["sample_id"],
            pa.repeat(subset_name(subset), len(chosen)),
            chosen.index["label"],
            answers,
        ]
        tables.append(pa.table([pa.array(c) if isinstance(c, list) else c for c in columns], names=PREDICTIONS.names))
    return pa.concat_tables(table.cast(PREDICTIONS) for table in tables)


def _pictures(
    folder: Path, history: list[dict[str, float]], rows: list[dict[str, Any]], predictions: pa.Table, test: Any
) -> None:
    from training import reporting
    from training.evaluate import confusion

    full = next(row["inputs"] for row in rows)
    answered = predictions.filter(pc.equal(predictions["subset"], full)).to_pylist()
    (folder / "confusion.png").write_bytes(reporting.confusion_picture(*confusion(answered)))
    (folder / "learning.png").write_bytes(reporting.learning_picture(history))
    (folder / "subsets.png").write_bytes(reporting.subsets_picture(rows))
    answers = {row["sample_id"]: row["prediction"] for row in answered}
    shown = [test[number] for number in range(0, len(test), max(1, len(test) // _EXAMPLES))][:_EXAMPLES]
    shown = [row for row in shown if row["sample_id"] in answers]
    picture = reporting.examples_picture(shown, [answers[row["sample_id"]] for row in shown], test.modalities)
    (folder / "examples.png").write_bytes(picture)


def main() -> None:
    if parent := os.environ.get(PARENT):
        die_with_parent(int(parent))
    from dagster_pipes import open_dagster_pipes

    with open_dagster_pipes() as pipes:
        spec = JobSpec.from_json(pipes.get_extra("spec"))
        try:
            run_all(spec, pipes.report_custom_message, pipes.log.info)
        except ValueError as error:  # what a person can mend: said in words, without a traceback
            pipes.log.error(str(error))
            sys.exit(1)


if __name__ == "__main__":
    main()
