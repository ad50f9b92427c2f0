"""The trainer: one process that trains, evaluates, logs and registers what its specification asks for.

    python -P -m training.job

Dagster starts it (`assets.launchers`) and passes the specification over Pipes; progress and results go back the same
way, everything else through the lake and MLflow. It dies with the process that started it.
"""

import gc
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from training import descriptions
from training.children import PARENT, die_with_parent, last_words
from training.device import chosen_device
from training.distributed import is_first, join, leave, processes
from training.family import Choice
from training.records import TrainingReport
from training.schema import DATASET, SPLITS, UNLABELLED, conform
from training.settings import TrainingSettings
from training.spec import JobSpec, RunSpec
from training.validation import to_dict
from training.workers import Log, side_by_side

if TYPE_CHECKING:
    import numpy as np
    from dagster_pipes import PipesContext, PipesMessageWriter, PipesMessageWriterChannel

    from training.data import SampleDataset
    from training.train import Trained, TrainingTask


def run_all(spec: JobSpec, report: Callable[[Any], None], log: Log) -> None:
    """Trains the models, or searches for settings; where there are no models it makes variants, or the codecs, or else
    the encoders that models start from. `report` gets each one's results as soon as they are safe in MLflow.

    Raises:
        ValueError: features of the snapshot are missing, or another trainer is at work on the same model.
    """
    import torch

    from training import tracking

    join()
    if not spec.runs:
        if is_first():
            make = _variants if spec.variants else _codecs if spec.codecs else _pretraining
            make(spec, report, log)
        leave()
        return
    if spec.runs[0].federation is not None and spec.runs[0].federation.coordinator is not None:
        from training.federation.silo import take_part

        report(take_part(spec, spec.runs[0], log))
        return
    if spec.tuning is not None:
        from training.tuning import tune

        report(tune(spec, spec.tuning, log))
        return
    # The product takes longest: first, with the others beside it.
    runs = sorted(spec.runs, key=lambda run: run.is_baseline)
    at_once = how_many_at_once(runs[0].training)
    threads = max(1, torch.get_num_threads() // at_once)  # the same however many are left: it decides the last bits
    open_splits(spec)  # fills the cache that all read
    if is_first():
        tracking.open_experiment(spec)
    if min(at_once, len(runs)) == 1:
        for run in runs:
            if (done := train_one(spec, run, threads, log)) is not None:
                report(done)
            gc.collect()  # the Trainer refers to itself, and its model would stay beside the next one
        leave()
    else:
        side_by_side(train_one, [(spec, run, threads) for run in runs], min(at_once, len(runs)), report, log)


def _codecs(spec: JobSpec, report: Callable[[Any], None], log: Log) -> None:
    """Trains codecs."""
    from training import tracking
    from training.codec_training import train_codec

    splits, _ = open_splits(spec)
    tracking.open_experiment(spec)
    for codec in spec.codecs:
        report(train_codec(spec, codec, splits, log))


def _pretraining(spec: JobSpec, report: Callable[[Any], None], log: Log) -> None:
    """Trains encoders without labels."""
    from training import tracking
    from training.pretraining_run import train_encoders
    from training.train import TrainingTask, make_tokenizer

    wanted = spec.pretraining
    assert wanted is not None
    splits, _ = open_splits(spec, (*SPLITS, UNLABELLED))
    tracking.open_experiment(spec)
    samples = splits[UNLABELLED].index["sample_id"]
    is_left = pc.is_in(samples, value_set=pa.array(wanted.left_out, pa.string())).to_numpy()
    task = TrainingTask(
        model=wanted.model,
        training=wanted.training,
        features=spec.features,
        train=splits["train"],
        validation=splits["validation"],
        tokenizer=make_tokenizer(splits["train"], wanted.model, wanted.training),
        keep=frozenset(wanted.keep),
        several=wanted.several,
    )
    report(train_encoders(spec, wanted, task, splits[UNLABELLED].take((~is_left).nonzero()[0]), log))


def _variants(spec: JobSpec, report: Callable[[Any], None], log: Log) -> None:
    """Makes and measures variants."""
    from training import tracking
    from training.variant_making import make_variants

    tracking.open_experiment(spec)
    for made in make_variants(spec, log):
        report(made)


def how_many_at_once(training: TrainingSettings) -> int:
    """Models that train side by side: as `training.parallel` says, else two on a CPU and one on a GPU; one where all
    processes train it together."""
    if processes() > 1:
        return 1
    return training.parallel or (1 if chosen_device().type == "cuda" else 2)


def open_splits(
    spec: JobSpec, splits: Sequence[str] = SPLITS, columns: Sequence[str] = ()
) -> tuple[dict[str, "SampleDataset"], pa.Table]:
    """The rows of each split, and the test rows as they stand in `dataset`.

    Args:
        columns: that rows have beside those that the runs' prompts name.
    """
    from training.cache import open_table
    from training.data import open_samples

    index = open_table(spec.lake, "dataset", spec.version, spec.storage_options).to_table().sort_by("sample_id")
    index = conform(index, DATASET)  # an older version may have written fewer columns
    parts = {split: index.filter(pc.equal(index["split"], split)) for split in splits}
    features = (spec.lake, spec.feature_fingerprints, spec.features, Path(spec.cache), spec.storage_options)
    noise: dict[str, list[str]] = {}
    columns = list(dict.fromkeys([*columns, *(column for run in spec.runs for column in run.model.columns)]))
    for run in spec.runs:
        for modality, ids in run.noise.items():
            noise[modality] = sorted({*noise.get(modality, ()), *ids})
    more = (noise, columns, spec.augmented_fingerprints)
    return {split: open_samples(rows, *features, *more) for split, rows in parts.items()}, parts["test"]


def train_one(spec: JobSpec, run: RunSpec, threads: int, log: Log) -> TrainingReport | None:
    """One model from data to registry; a training that was killed goes on from its last checkpoint. Of processes that
    train it together, the first one reports.

    Raises:
        ValueError: another trainer is at work on it, or see `fit`.
    """
    import torch

    torch.set_num_threads(threads)
    folder = Path(spec.checkpoints) / run.fingerprint
    folder.mkdir(parents=True, exist_ok=True)
    if not is_first():
        if spec.preference is None:  # which one process learns from
            _help(spec, run, folder)
        return None
    try:
        with FileLock(folder.with_suffix(".lock"), timeout=1):  # who looks whether it is free holds it for an instant
            return _train(spec, run, folder, log)
    except Timeout:
        raise ValueError(f"another trainer is at work in {folder}: wait for it, or end it") from None


def _help(spec: JobSpec, run: RunSpec, folder: Path) -> None:
    """What processes beside the first one do of a training."""
    from training.train import fit

    splits, _ = open_splits(spec)
    check_labels(run.model.output, {split: rows.labels for split, rows in splits.items()})
    fit(task_of(spec, run, splits), folder)


def _train(spec: JobSpec, run: RunSpec, folder: Path, log: Log) -> TrainingReport:
    from transformers.utils import logging

    from training import model_registry, tracking
    from training.catalog import OUTPUTS
    from training.fresh_critic import judge_critic
    from training.prediction_table import prediction_table
    from training.preference_run import train_on_preferences
    from training.representations import log_x_m
    from training.results import evaluate
    from training.train import fit

    logging.disable_progress_bar()
    clock = _Clock()
    splits, test = open_splits(spec)
    model_registry.column_type(OUTPUTS.make(run.model.output, {}).arrow_type)  # MLflow has no other answers
    check_labels(run.model.output, {split: rows.labels for split, rows in splits.items()})
    # Where TensorBoard reads, if `training.report_to` names it; the checkpoints' folder is removed in the end.
    logs = Path(spec.checkpoints).parent / "tensorboard" / f"{run.name}-{run.fingerprint}"
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(logs)
    with tracking.open_run(spec, run) as active, tempfile.TemporaryDirectory() as temporary:
        task = task_of(spec, run, splits)
        run = replace(run, training=task.training)
        tracking.log_parameters(run, {"model": to_dict(run.model), "training": to_dict(run.training)})
        tracking.describe_run(descriptions.trained_run(spec, run, len(splits["train"])))
        if spec.preference is not None:
            task, trained = train_on_preferences(spec, spec.preference, run, task, log)
        elif run.federation is not None:
            from training.federation.coordinator import federate

            trained = federate(spec, run, task, folder, log)
        else:
            trained = fit(task, folder, [tracking.progress_callback(run, log)], f"{spec.project} {run.name}")
            task = _personalized(spec, run, task, trained, log)
        clock.stop("train")
        log(f"{run.name}: trained in {clock.seconds['train']:.0f} s; answering {len(splits['test']):,} test samples")
        results = Path(temporary) / "results"
        asked = splits["test"] if run.personalization is None else open_splits(spec, ("test",), run.columns)[0]["test"]
        metrics, measured = evaluate(run, task, trained, asked, test, results)
        clock.stop("evaluate")
        version = critic = None
        if not run.is_baseline:
            critic = judge_critic(task, trained.model)
            tracking.log_critic(critic)
            log_x_m(task, trained, Path(temporary))
            tracking.log_predictions(prediction_table(spec, pq.read_table(results / "predictions.parquet"), run))
            version = _register(spec, run, task, trained, metrics, Path(temporary) / "bundle")
        clock.stop("log")
        report = TrainingReport(
            name=run.name,
            mlflow_run_id=active.info.run_id,
            version=version,
            dataset_fingerprint=spec.dataset,
            training_fingerprint=run.fingerprint,
            metrics=metrics,
            subsets={row.subset: row.main.value for row in measured},
            rows={row.subset: row.n for row in measured},
            filled={row.subset: row.filled.value for row in measured},
            test_rows=test.num_rows,
            seconds=clock.seconds,
            critic=critic,
        )
        tracking.log_report(report)
    shutil.rmtree(folder, ignore_errors=True)  # the checkpoints have served
    return report


def _personalized(spec: JobSpec, run: RunSpec, task: "TrainingTask", trained: "Trained", log: Log) -> "TrainingTask":
    """Gives groups their adapters, where the run asks for it; returns the task with rows that say their group."""
    if run.personalization is None:
        return task
    from training import tracking
    from training.personalization import personalize

    splits, _ = open_splits(spec, columns=run.columns)
    rows, validation = splits["train"], splits["validation"]
    wanted = run.personalization
    said = personalize(
        trained.model, task.tokenizer, task.features, rows, validation, wanted, lambda words: log(f"adapters: {words}")
    )
    kept = sum(one.kept for one in said)
    log(f"{run.name}: {kept:,} of {len(said):,} groups of {wanted.group} have an adapter that gains")
    tracking.log_adapters(said)
    return replace(task, train=rows, validation=validation)


def check_labels(choice: Choice, splits: Mapping[str, Sequence[str | None]]) -> None:
    """Raises ValueError where the output cannot read a label of a split."""
    from training.catalog import OUTPUTS

    output = OUTPUTS.make(choice, {})
    for split, labels in splits.items():
        for label in dict.fromkeys(label for label in labels if label is not None):
            try:
                output.read(label)
            except ValueError as error:
                raise ValueError(f"the label {label!r} in split {split} is none of output {choice}: {error}") from error


class _Clock:
    """How long each part took, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._started = time.monotonic()

    def stop(self, part: str) -> None:
        """`part` is what was done since the last stop."""
        now = time.monotonic()
        self.seconds[part], self._started = round(now - self._started, 2), now


def task_of(spec: JobSpec, run: RunSpec, splits: dict[str, "SampleDataset"]) -> "TrainingTask":
    from training.catalog import OUTPUTS
    from training.codec_training import coded, fetch_codecs
    from training.pretraining_run import fetch_encoders
    from training.train import TrainingTask, make_tokenizer

    codecs = fetch_codecs(spec)
    codes = coded(codecs, [splits["train"], splits["validation"]])
    output = OUTPUTS.make(run.model.output, {})
    splits = splits | {split: splits[split].asking(output) for split in ("train", "validation")}
    return TrainingTask(
        model=run.model,
        training=run.training,
        features=spec.features,
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        tokenizer=make_tokenizer(splits["train"], run.model, run.training),
        keep=frozenset(run.keep),
        noise=_clips(splits["train"], spec, run),
        several=run.several,
        teacher=_teacher(spec, run),
        said=_said(spec, run),
        codecs=codecs,
        codes=codes,
        start=fetch_encoders(spec),
    )


def _teacher(spec: JobSpec, run: RunSpec) -> "dict[str, np.ndarray]":
    """Sample id -> where the teacher placed it, where an objective has one."""
    from training.catalog import OBJECTIVES
    from training.model_registry import version_run
    from training.representations import places_by_sample

    for objective in run.training.objectives:
        options = OBJECTIVES.options(objective)
        if teacher := getattr(options, "teacher", ""):
            project, _, version = teacher.rpartition("/")
            of_version = version.isdigit() and len(version) < 32
            run_id = version_run(spec.tracking_uri, project or spec.project, version) if of_version else teacher
            return places_by_sample(spec.tracking_uri, run_id, "train")
    return {}


def _said(spec: JobSpec, run: RunSpec) -> dict[str, str]:
    """Sample id -> what the column says that an objective names, of the rows that training and validation read; those
    are left out of which it says nothing."""
    from training.cache import open_table
    from training.data import named_columns
    from training.objectives.options import column_of

    if not (column := column_of(run.training.objectives)):
        return {}
    table = open_table(spec.lake, "dataset", spec.version, spec.storage_options)
    read = pc.field("split").isin(["train", "validation"])
    rows = table.to_table(["sample_id", "attributes"], filter=read).to_pylist()
    said = {row["sample_id"]: named_columns(row["attributes"], [column])[column] for row in rows}
    return {sample: value for sample, value in said.items() if value}


def _clips(train: "SampleDataset", spec: JobSpec, run: RunSpec) -> "dict[str, list[np.ndarray]]":
    """Modality -> what augmentation may add to it, as the tensors that it changes."""
    augmented = {m: spec.features.featurizer(m).augmented or "" for m in run.noise}
    return {m: train.tensors(m, augmented[m], ids) for m, ids in run.noise.items()}


def _register(
    spec: JobSpec,
    run: RunSpec,
    task: "TrainingTask",
    trained: "Trained",
    metrics: Mapping[str, float | None],
    bundle: Path,
) -> str:
    """Saves all that answers, in the folder `bundle`, and registers it as a version; returns the version."""
    import mlflow

    from training import model_registry
    from training.processor import Processor

    active, rows = mlflow.active_run(), len(task.train)
    assert active is not None
    trained.model.save_pretrained(bundle)
    task.tokenizer.save_pretrained(bundle)
    compressed = {m: cache.compressed for m, cache in task.train.caches.items()}
    fits = {m: of.compression.fit for m, of in compressed.items() if of and of.compression.fit}
    Processor(spec.features, spec.limits, fits).save_pretrained(bundle)
    (bundle / "README.md").write_text(descriptions.card(spec, run, rows, metrics, active.info.run_id))
    version = model_registry.log_model(spec, run, bundle)
    about = descriptions.registered_model(spec, run), descriptions.version(spec, run, rows, metrics)
    model_registry.describe(spec.tracking_uri, spec.project, version, *about)
    return version


def main() -> None:
    if parent := os.environ.get(PARENT):
        die_with_parent(int(parent))
        if os.getsid(0) != os.getpid():  # torchrun has done so
            os.setsid()  # Ctrl-C reaches the parent, which passes it on: once
    signal.signal(signal.SIGINT, lambda number, _frame: sys.exit(128 + number))
    from dagster_pipes import open_dagster_pipes

    try:
        with open_dagster_pipes(message_writer=None if is_first() else _silent()) as pipes:
            try:
                _work(pipes)
            except Exception as error:
                pipes.report_custom_message({"error": last_words(error)})
                raise  # so that Dagster has the traceback
    except Exception as error:
        if not is_first():  # which alone is heard: it is ended with this process, and mostly has failed of the same
            print(last_words(error), file=sys.stderr, flush=True)
            time.sleep(30)
        sys.exit(1)


def _silent() -> "PipesMessageWriter[PipesMessageWriterChannel]":
    """Of processes beside the first one: Dagster listens to one."""
    from dagster_pipes import PipesMessageWriter, PipesMessageWriterChannel

    class Channel(PipesMessageWriterChannel):
        def write_message(self, message: object) -> None:
            pass

    class Silent(PipesMessageWriter):
        @contextmanager
        def open(self, params: object) -> Iterator[Channel]:
            yield Channel()

    return Silent()


def _work(pipes: "PipesContext") -> None:
    values = pipes.get_extra("spec")
    if values["own_code"]:
        sys.path.append(values["own_code"])  # last, and handed on to the processes of `side_by_side`
    run_all(JobSpec.from_json(values), lambda report: pipes.report_custom_message(report.to_json()), pipes.log.info)


if __name__ == "__main__":
    main()
