"""The run of a training in MLflow as it goes on: opened, and what is logged. MLflow is imported where it is used.

A training has one run, known by its fingerprint. Killed and started again, it goes on in the run it had.
"""

import logging
import math
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from training import descriptions
from training.catalog import OUTPUTS
from training.mlflow_store import artifact_location, check_reachable, client, make_database
from training.records import CriticFigures, EvaluationRow, TrainingReport, TuningReport
from training.runs import REPORT, TAG, TUNING, end_dead_runs, search
from training.spec import JobSpec, RunSpec

_SAMPLING_SECONDS = 1  # of system metrics; a short training should have some, too
NOTE = "mlflow.note.content"  # where MLflow's pages look for the description of an experiment or a run
TABLE = "evaluation_table.json"  # the artifact with test predictions as a table


def _process() -> str:
    """Names this process on all machines and for all time: host, process id and when it started."""
    import psutil

    return f"{socket.gethostname()} {os.getpid()}@{psutil.Process().create_time():.2f}"


def open_experiment(spec: JobSpec) -> None:
    """Makes the project's experiment where it is not there yet, and ends the runs that a dead trainer left in it."""
    import mlflow
    from mlflow.environment_variables import MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it would tell of each of its threads
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.set(False)
    make_database(spec.tracking_uri)
    check_reachable(spec.tracking_uri)
    mlflow.set_tracking_uri(spec.tracking_uri)
    mlflow.set_registry_uri(spec.tracking_uri)
    if mlflow.get_experiment_by_name(spec.project) is None:
        mlflow.create_experiment(spec.project, artifact_location=artifact_location(spec.artifacts))
    mlflow.set_experiment(spec.project)
    mlflow.set_experiment_tag(NOTE, descriptions.experiment(spec))
    end_dead_runs(spec.tracking_uri, spec.project, Path(spec.checkpoints))


@contextmanager
def open_run(spec: JobSpec, run: RunSpec, again: bool = False) -> Iterator[Any]:
    """An MLflow run that is FINISHED only when the block ends well; KILLED on SIGTERM or Ctrl-C, else FAILED.

    A training that did not end goes on in the run it had, so that nothing stands there twice. Within another run it
    stands below that.

    Args:
        again: goes on in a run that is FINISHED, too.
    """
    import mlflow

    open_experiment(spec)
    uri = spec.tracking_uri
    mlflow.set_system_metrics_sampling_interval(_SAMPLING_SECONDS)
    mlflow.set_system_metrics_samples_before_logging(1)
    ended = ("KILLED", "FAILED", *(["FINISHED"] if again else []))
    stopped = [r for r in search(uri, spec.project, run.fingerprint) if r.info.status in ended]
    tags = {TAG + name: value for name, value in (provenance(spec, run) | {"process": _process()}).items()}
    with _terminable():
        active = mlflow.start_run(
            run_id=stopped[0].info.run_id if stopped else None,
            run_name=run.name,
            nested=mlflow.active_run() is not None,
            tags=tags,
            log_system_metrics=not run.is_baseline,
        )
        status = "FAILED"
        try:
            if not (active.inputs and active.inputs.dataset_inputs):
                _log_snapshot(spec)
            yield active
            status = "FINISHED"
        except (Terminated, KeyboardInterrupt):
            status = "KILLED"
            raise
        finally:
            mlflow.end_run(status)


@contextmanager
def open_part_run(
    spec: JobSpec, role: str, fingerprint: str, name: str | None = None, tags: Mapping[str, str] | None = None
) -> Iterator[Any]:
    """The MLflow run of something beside the trainings; open when the experiment is. What did not end is in nobody's
    way: it is made anew.

    Args:
        name: of the run, where that is not its role.
        tags: that it has beside those of all.
    """
    import mlflow

    for run in search(spec.tracking_uri, spec.project, fingerprint):
        client(spec.tracking_uri).set_terminated(run.info.run_id, "KILLED")
    own = {"training_fingerprint": fingerprint, "dataset_fingerprint": spec.dataset, "role": role}
    known = {TAG + n: value for n, value in {**(tags or {}), **spec.tags, **own}.items()}
    with mlflow.start_run(run_name=name or role, tags=known) as active:
        yield active


def _log_snapshot(spec: JobSpec) -> None:
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        mlflow.log_input(_snapshot(spec), context="training")
    except MlflowException:  # the training beside this one made the row of the same dataset in between: it is there now
        mlflow.log_input(_snapshot(spec), context="training")


def _snapshot(spec: JobSpec) -> Any:
    """The dataset as MLflow's input: named by its fingerprint, found as a version of a Delta table."""
    from mlflow.data.delta_dataset_source import DeltaDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    class Snapshot(MetaDataset):
        profile = None

    class Table(DeltaDatasetSource):
        def to_dict(self) -> dict[str, Any]:  # MLflow's own leaves out version 0, which would mean the newest
            return super().to_dict() | {"delta_table_version": self.delta_table_version}

    source = Table(path=f"{spec.lake.rstrip('/')}/dataset", delta_table_version=spec.version)
    return Snapshot(source, name=f"{spec.project}_dataset", digest=spec.dataset)


def provenance(spec: JobSpec, run: RunSpec) -> dict[str, str]:
    """What run and registered version say about where they come from."""
    fingerprints = {"training_fingerprint": run.fingerprint, "dataset_fingerprint": spec.dataset}
    metric = OUTPUTS.make(run.model.output, {}).metric().name
    known = {**spec.tags, **fingerprints, "role": run.name, "metric": metric, "dataset_version": str(spec.version)}
    return known if spec.preference is None else known | {"preference_of": spec.preference.reference}


class Terminated(SystemExit):
    """SIGTERM or SIGINT came."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Within, SIGTERM and SIGINT raise Terminated. Signals reach the main thread only; elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, _frame: object) -> None:
        raise Terminated(128 + number)

    numbers = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    previous = [signal.signal(number, terminate) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)


def log_parameters(run: RunSpec, settings: Mapping[str, Any]) -> None:
    """Settings, nested ones with dots. A run that goes on keeps the parameters that it began with."""
    import mlflow

    active = mlflow.active_run()
    assert active is not None
    known = client(mlflow.get_tracking_uri()).get_run(active.info.run_id).data.params
    parameters = {"keep": "+".join(run.keep), **dict(flat(settings))}
    mlflow.log_params({name: value for name, value in parameters.items() if name not in known})


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as key paths and values."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def progress_callback(run: RunSpec, log: Callable[[str], None]) -> Any:
    """A transformers TrainerCallback: what the Trainer logs (loss, learning rate, validation) as metrics by step.

    `log` gets a line when training begins and ends, after each validation, and about every tenth of the steps.
    """
    import mlflow
    from transformers import TrainerCallback

    class LogProgress(TrainerCallback):
        reached = 0  # tenths

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            going_on = f", going on at step {state.global_step}" if state.global_step else ""
            log(f"{run.name}: {state.max_steps:,} steps{going_on}")

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if not state.is_world_process_zero:
                return
            values = {name: float(v) for name, v in (logs or {}).items() if isinstance(v, int | float)}
            numbers = {name.replace("eval_", "validation_", 1): value for name, value in values.items()}
            mlflow.log_metrics(numbers, step=state.global_step)
            tenths = 10 * state.global_step // max(1, state.max_steps)
            if "validation_loss" in numbers or tenths > self.reached:
                self.reached = tenths
                shown = [name for name in numbers if name.startswith(("loss", "validation_"))]
                words = [f"{name.replace('_', ' ')} {numbers[name]:.3f}" for name in shown]
                if words:
                    log(f"{run.name}: step {state.global_step:,} of {state.max_steps:,}, {', '.join(words)}")

    return LogProgress()


def log_results(folder: Path, metrics: Mapping[str, float | None], subsets: Sequence[EvaluationRow]) -> None:
    """The files of `folder`; metrics as ``test_X``; and of each subset of the inputs the first metric, how many rows it
    is of, and the one of all rows: ``test_accuracy/text-image``, ``test_n/text-image``, ``test_filled_accuracy/...``.

    MLflow's names know no ``+``, and its metrics no None: what could not be measured is left out.
    """
    import mlflow

    values = {f"test_{name}": value for name, value in metrics.items()}
    for row in subsets:
        subset, main = row.subset.replace("+", "-"), next(iter(row.metrics))
        values |= {f"test_{main}/{subset}": row.main.value, f"test_n/{subset}": row.n}
        values[f"test_filled_{main}/{subset}"] = row.filled.value
    mlflow.log_metrics({name: value for name, value in values.items() if value is not None})
    mlflow.log_artifacts(str(folder))


def describe_run(text: str) -> None:
    """Describes the active run, in Markdown."""
    import mlflow

    mlflow.set_tag(NOTE, text)


def log_predictions(table: Mapping[str, Sequence[Any]]) -> None:
    """Columns of equal length, as a table that MLflow's pages show. Once: MLflow would add to what a run has."""
    import mlflow

    active = mlflow.active_run()
    assert active is not None
    store = client(mlflow.get_tracking_uri())
    if TABLE not in {file.path for file in store.list_artifacts(active.info.run_id)}:
        mlflow.log_table({name: list(column) for name, column in table.items()}, TABLE)


def log_critic(critic: CriticFigures | None) -> None:
    import mlflow

    if critic is not None:
        values = {"before": critic.before, "after": critic.after, "majority": critic.majority, "n": critic.rows}
        mlflow.log_metrics({f"critic_{name}": value for name, value in values.items()})


def log_report(report: TrainingReport) -> None:
    """What `find_report` finds once the run has FINISHED."""
    import mlflow

    mlflow.log_dict(report.to_json(), REPORT)


def log_round(number: int, values: Mapping[str, float]) -> None:
    """Of a model that silos train, after a round; what silos say of themselves lies below their names."""
    import mlflow

    mlflow.log_metrics({name: value for name, value in values.items() if math.isfinite(value)}, step=number)


def log_adapters(adapted: Sequence[Any]) -> None:
    """What came of each group's adapter (`training.personalization.Adapted`): adapters.json."""
    import mlflow

    kept = [one for one in adapted if one.kept]
    mlflow.log_metrics({"adapters": len(kept), "groups": len(adapted)})
    mlflow.log_dict({"groups": [one.to_json() for one in adapted]}, "adapters.json")


def log_trial(state: str, values: Mapping[str, float | None], said: str) -> None:
    """Of a trial of a search for settings: complete, pruned or failed, and why."""
    import mlflow

    mlflow.set_tags({f"{TAG}state": state} | ({f"{TAG}reason": said} if said else {}))
    mlflow.log_metrics({name: value for name, value in values.items() if value is not None})


def log_tuning(report: TuningReport, files: Mapping[str, bytes]) -> None:
    """What `find_tuning` finds once the run of the whole search has FINISHED, and files by name."""
    import mlflow

    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        mlflow.log_artifacts(folder)
    mlflow.set_tag(f"{TAG}best_trial", report.best)
    mlflow.log_dict(report.to_json(), TUNING)
