"""The trainer: one process that trains, evaluates, logs and registers what its specification asks for.

    python -P -m training.job

Dagster starts it (`assets.launchers`) and passes the specification over Pipes; progress and results go back the same
way, everything else through the lake and MLflow. It dies with the process that started it.
"""

import functools
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from training.children import PARENT, die_with_parent
from training.records import EvaluationRow, TrainingReport
from training.schema import MODALITIES, SPLITS, predictions_schema, subset_name
from training.settings import TrainingSettings
from training.spec import JobSpec, RunSpec
from training.validation import to_dict
from training.workers import Log, side_by_side

if TYPE_CHECKING:
    import numpy as np

    from training.data import SampleDataset
    from training.outputs.base import Output
    from training.train import Trained, TrainingTask

_EXAMPLES = 12  # test samples in the picture


def run_all(spec: JobSpec, report: Callable[[TrainingReport], None], log: Log) -> None:
    """Trains the models; `report` gets each one's results as soon as they are safe in MLflow.

    Raises:
        ValueError: features of the snapshot are missing, or another trainer is at work on the same model.
    """
    import torch

    from training import tracking

    # The product takes longest: first, with the others beside it.
    runs = sorted(spec.runs, key=lambda run: run.is_baseline)
    at_once = how_many_at_once(runs[0].training)
    threads = max(1, torch.get_num_threads() // at_once)  # the same however many are left: it decides the last bits
    open_splits(spec)  # fills the cache that all read
    tracking.open_experiment(spec)
    if min(at_once, len(runs)) == 1:
        for run in runs:
            report(train_one(spec, run, threads, log))
    else:
        side_by_side(train_one, [(spec, run, threads) for run in runs], min(at_once, len(runs)), report, log)


def how_many_at_once(training: TrainingSettings) -> int:
    """Models that train side by side: as `training.parallel` says, else two on a CPU and one on a GPU."""
    import torch

    return training.parallel or (1 if torch.cuda.is_available() else 2)


def open_splits(spec: JobSpec) -> tuple[dict[str, "SampleDataset"], pa.Table]:
    """The rows of each split, and the test rows as they stand in `dataset`."""
    from training.cache import open_table
    from training.data import open_samples

    index = open_table(spec.lake, "dataset", spec.version, spec.storage_options).to_table().sort_by("sample_id")
    parts = {split: index.filter(pc.equal(index["split"], split)) for split in SPLITS}
    features = (spec.lake, spec.feature_fingerprints, spec.features, Path(spec.cache), spec.storage_options)
    noise: dict[str, list[str]] = {}
    for run in spec.runs:
        for modality, ids in run.noise.items():
            noise[modality] = sorted({*noise.get(modality, ()), *ids})
    return {split: open_samples(rows, *features, noise) for split, rows in parts.items()}, parts["test"]


def train_one(spec: JobSpec, run: RunSpec, threads: int, log: Log) -> TrainingReport:
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


def _train(spec: JobSpec, run: RunSpec, folder: Path, log: Log) -> TrainingReport:
    from transformers.utils import logging

    from training import tracking
    from training.train import fit

    logging.disable_progress_bar()
    clock = _Clock()
    splits, test = open_splits(spec)
    _check_labels(run, splits)
    # Where TensorBoard reads, if `training.report_to` names it; the checkpoints' folder is removed in the end.
    logs = Path(spec.checkpoints).parent / "tensorboard" / f"{run.name}-{run.fingerprint}"
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(logs)
    with tracking.open_run(spec, run) as active, tempfile.TemporaryDirectory() as temporary:
        tracking.log_parameters(run, {"model": to_dict(run.model), "training": to_dict(run.training)})
        task = _task(spec, run, splits)
        trained = fit(task, folder, [tracking.progress_callback(run, log)], f"{spec.project} {run.name}")
        clock.stop("train")
        log(f"{run.name}: trained in {clock.seconds['train']:.0f} s; answering {len(splits['test']):,} test samples")
        metrics, subsets = _evaluate(run, task, trained, splits["test"], test, Path(temporary) / "results")
        clock.stop("evaluate")
        version = None if run.is_baseline else _register(spec, run, task, trained, Path(temporary) / "bundle")
        clock.stop("log")
        report = TrainingReport(
            name=run.name,
            mlflow_run_id=active.info.run_id,
            version=version,
            dataset_fingerprint=spec.dataset,
            training_fingerprint=run.fingerprint,
            metrics=metrics,
            subsets=subsets,
            seconds=clock.seconds,
        )
        tracking.log_report(report)
    shutil.rmtree(folder, ignore_errors=True)  # the checkpoints have served
    return report


def _check_labels(run: RunSpec, splits: "dict[str, SampleDataset]") -> None:
    """Raises ValueError, before any training, where the output cannot read a label, or MLflow has no such answers."""
    from training import model_registry
    from training.catalog import OUTPUTS

    output = OUTPUTS.make(run.model.output, {})
    model_registry.column_type(output.arrow_type)
    for split, rows in splits.items():
        for label in dict.fromkeys(label for label in rows.labels if label is not None):
            try:
                output.read(label)
            except ValueError as error:
                raise ValueError(
                    f"the label {label!r} in split {split} is none of output {run.model.output}: {error}"
                ) from error


class _Clock:
    """How long each part took, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._started = time.monotonic()

    def stop(self, part: str) -> None:
        """`part` is what was done since the last stop."""
        now = time.monotonic()
        self.seconds[part], self._started = round(now - self._started, 2), now


def _task(spec: JobSpec, run: RunSpec, splits: dict[str, "SampleDataset"]) -> "TrainingTask":
    from training.train import TrainingTask, make_tokenizer

    return TrainingTask(
        model=run.model,
        training=run.training,
        features=spec.features,
        train=splits["train"],
        validation=splits["validation"],
        tokenizer=make_tokenizer(splits["train"], run.model, run.training),
        keep=frozenset(run.keep),
        noise=_clips(splits["train"], spec, run),
    )


def _clips(train: "SampleDataset", spec: JobSpec, run: RunSpec) -> "dict[str, list[np.ndarray]]":
    """Modality -> what augmentation may add to it, as the tensors that it changes."""
    augmented = {m: spec.features.featurizer(m).augmented or "" for m in run.noise}
    return {m: train.tensors(m, augmented[m], ids) for m, ids in run.noise.items()}


def _evaluate(
    run: RunSpec, task: "TrainingTask", trained: "Trained", rows: "SampleDataset", test: pa.Table, folder: Path
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Answers the test rows and logs what they are worth, with the pictures; returns metrics, and the first metric by
    the inputs given.

    Args:
        rows, test: the test rows, and as they stand in `dataset`.
    """
    from training import tracking
    from training.evaluate import measure, slices

    output = trained.model.output
    predictions = predict_subsets(task, trained, rows, run.keep)
    measured = measure(predictions, run.keep, output, slices(test))
    metrics = headline(measured)
    if not run.is_baseline:
        metrics |= _beside(task, trained, rows)
    subsets = {row.subset: row.main.value for row in measured if row.slice is None}
    folder.mkdir()
    pq.write_table(predictions, folder / "predictions.parquet")
    evaluation = {"rows": [row.to_json() for row in measured], "history": trained.history}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    _pictures(folder, trained.history, measured, predictions, rows, output)
    tracking.log_results(folder, metrics, subsets, output.metrics[0].name)
    return metrics, subsets


def _beside(task: "TrainingTask", trained: "Trained", rows: "SampleDataset") -> dict[str, float | None]:
    """What the model's first metric must be seen beside: with the soft tokens of another row (no better than chance, if
    the answers come from the fusion), and the one answer that is best whatever the inputs."""
    from training.evaluate import mean_score
    from training.train import predict

    output = trained.model.output
    metric = output.metrics[0]
    labels, known = ([output.read(x) for x in part.labels if x is not None] for part in (rows, task.train))
    labelled = rows.take([number for number, label in enumerate(rows.labels) if label is not None])
    shuffled = predict(trained.model, task.tokenizer, labelled, task.features, shuffle_seed=0)
    return {
        f"shuffled_{metric.name}": mean_score(metric, labels, shuffled),
        f"majority_{metric.name}": mean_score(metric, labels, [output.constant(known)] * len(labels)),
    }


def _register(spec: JobSpec, run: RunSpec, task: "TrainingTask", trained: "Trained", bundle: Path) -> str:
    """Saves all that answers, in the folder `bundle`, and registers it as a version; returns the version."""
    from training import model_registry
    from training.processor import Processor

    trained.model.save_pretrained(bundle)
    task.tokenizer.save_pretrained(bundle)
    Processor(spec.features, spec.limits).save_pretrained(bundle)
    return model_registry.log_model(spec, run, bundle)


def headline(rows: list[EvaluationRow]) -> dict[str, float | None]:
    """The figures with all inputs given; None where no test row has any of them."""
    return next(row for row in rows if row.is_full).figures()


def predict_subsets(task: "TrainingTask", trained: "Trained", rows: "SampleDataset", inputs: Sequence[str]) -> pa.Table:
    """Predictions for every subset of the inputs, on the rows that have at least one of its inputs."""
    from training.evaluate import subsets
    from training.train import predict

    model, output = trained.model, trained.model.output
    schema = predictions_schema(output.arrow_type)
    present = {m: rows.index[f"{m}_id"].is_valid() for m in MODALITIES}
    tables = []
    for subset in subsets(inputs):
        any_of_them = functools.reduce(pc.or_, (present[modality] for modality in subset))
        chosen = rows.take(pc.indices_nonzero(any_of_them).to_pylist())
        answers = predict(model, task.tokenizer, chosen, task.features, frozenset(subset)) if len(chosen) else []
        columns = {
            "sample_id": chosen.index["sample_id"].to_pylist(),
            "subset": [subset_name(subset)] * len(chosen),
            "label": [None if label is None else output.read(label) for label in chosen.labels],
            "prediction": answers,
        }
        tables.append(pa.table(columns, schema))
    return pa.concat_tables(tables)


def _pictures(
    folder: Path,
    history: list[dict[str, float]],
    rows: list[EvaluationRow],
    predictions: pa.Table,
    test: "SampleDataset",
    output: "Output",
) -> None:
    from training import reporting
    from training.metrics import confusion

    answered = predictions.filter(pc.equal(predictions["subset"], rows[0].inputs)).to_pylist()
    labels = [str(row["label"]) for row in answered]
    answers = [None if row["prediction"] is None else str(row["prediction"]) for row in answered]
    (folder / "confusion.png").write_bytes(reporting.confusion_picture(*confusion(labels, answers)))
    (folder / "learning.png").write_bytes(reporting.learning_picture(history, output.metrics[0].name))
    (folder / "subsets.png").write_bytes(reporting.subsets_picture(rows))
    words = {row["sample_id"]: pair for row, *pair in zip(answered, labels, answers, strict=True)}
    chosen = [test[number] for number in range(0, len(test), max(1, len(test) // _EXAMPLES))][:_EXAMPLES]
    shown = [row | {"label": words[row["sample_id"]][0]} for row in chosen if row["sample_id"] in words]
    picture = reporting.examples_picture(shown, [words[row["sample_id"]][1] for row in shown], test.modalities)
    (folder / "examples.png").write_bytes(picture)


def main() -> None:
    if parent := os.environ.get(PARENT):
        die_with_parent(int(parent))
    from dagster_pipes import open_dagster_pipes

    with open_dagster_pipes() as pipes:
        values = pipes.get_extra("spec")
        if values["own_code"]:
            sys.path.append(values["own_code"])  # last, and handed on to the processes of `side_by_side`
        try:
            spec = JobSpec.from_json(values)
            run_all(spec, lambda report: pipes.report_custom_message(report.to_json()), pipes.log.info)
        except ValueError as error:  # what a person can mend: said in words, without a traceback
            pipes.log.error(str(error))
            sys.exit(1)


if __name__ == "__main__":
    main()
