"""A search for better settings: trials, each of them a training that is judged on the validation rows.

Which trials there are, `training.study` says. Each has a run in MLflow, below that of the whole search. A trial that is
under way while nobody holds the lock of the search was left by a process that was killed: it is gone on with, from the
last checkpoint of its training, under its own number and with its own settings.
"""

import gc
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import optuna
from filelock import FileLock, Timeout
from mlflow.exceptions import MlflowException
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState
from transformers import TrainerCallback

from training import descriptions, reporting, tracking
from training.children import last_words
from training.distributed import processes
from training.job import check_labels, open_splits, task_of
from training.records import TuningReport
from training.results import answers
from training.schema import subset_name
from training.spec import JobSpec, RunSpec, TuningSpec, trial_run
from training.study import (
    ENDED,
    KILLED,
    SAID,
    SECONDS,
    drawn,
    next_trial,
    open_study,
    report,
    report_of,
    reported,
    twin,
)
from training.train import fit
from training.tuning_settings import as_yaml, in_words
from training.validation import check, to_dict
from training.workers import Log

_KILLS = 3  # after so many of its process a trial has failed: it may be what kills it, by all the memory that it takes


class TrialFailed(Exception):
    """Ends the run of a trial in MLflow as FAILED."""


def tune(spec: JobSpec, tuning: TuningSpec, log: Log) -> TuningReport:
    """Makes trials until there are as many, or as much time is spent, as the settings say.

    Raises:
        ValueError: another search of the same is at work, there are no validation rows, or no trial came to an end.
    """
    check(processes() == 1, "launcher", f"of {processes()} processes", "one process beside tuning")
    (model,) = spec.runs
    lock = Path(spec.checkpoints) / f"{tuning.fingerprint}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    tracking.open_experiment(spec)  # while the lock is free, so that what a killed search left is known to be dead
    try:
        with FileLock(lock, timeout=1):
            return _search(spec, tuning, model, log)
    except Timeout:
        raise ValueError(f"another search is at work, which holds {lock}: wait for it, or end it") from None


def _search(spec: JobSpec, tuning: TuningSpec, model: RunSpec, log: Log) -> TuningReport:
    whole = replace(model, name="tuning", fingerprint=tuning.fingerprint)
    splits, _ = open_splits(spec)
    if not len(splits["validation"]):
        raise ValueError("tuning judges its trials on validation rows, and there are none: look at align.split")
    with tracking.open_run(spec, whole, again=True) as active:
        study = open_study(tuning, model)
        try:
            while (trial := next_trial(study, tuning.settings)) is not None:
                _make(spec, tuning, model, study, trial, log)
                _log_best(study, tuning)
            found = report_of(study, tuning, model, active.info.run_id)
            _log_report(spec, found)
        finally:
            gc.unfreeze()
            study._storage.remove_session()
    return found


class Outcome(NamedTuple):
    """What became of a trial."""

    state: TrialState
    value: float | None = None  # the metric on the validation rows; of a pruned trial at its last validation
    said: str = ""  # why it failed, or which other trial it is the same as


def _make(
    spec: JobSpec, tuning: TuningSpec, model: RunSpec, study: optuna.Study, trial: optuna.Trial, log: Log
) -> None:
    """Makes one trial and tells the study what became of it; of a process that is stopped or killed it is left."""
    settings, number = tuning.settings, trial.number + 1
    values, kills = drawn(trial, settings), trial.user_attrs.get(KILLED, 0)
    before, started = trial.user_attrs.get(SECONDS, 0.0), time.monotonic()
    named = replace(model, name=f"trial {number}", fingerprint=tuning.trial(number))
    of = f" of {settings.trials}" if settings.trials else ""
    log(f"{named.name}{of}: {in_words(values)}" + (", going on" if before else ""))
    folder = Path(spec.checkpoints) / named.fingerprint
    lock = folder.with_suffix(".lock")  # by which others know that its run in MLflow is alive

    def note_time() -> None:
        trial.set_user_attr(SECONDS, round(before + time.monotonic() - started, 2))

    trial.set_user_attr(KILLED, kills + 1)  # unless this process comes to say that it was not
    try:
        with FileLock(lock, timeout=1), suppress(TrialFailed), tracking.open_run(spec, named, again=True):
            tracking.log_parameters(named, values)
            if kills >= _KILLS:
                outcome = Outcome(TrialState.FAIL, said=f"its process was killed {kills} times: out of memory, perhaps")
            elif (other := twin(study, trial)) is not None:
                outcome = _as_before(trial, other)
            else:
                outcome = _trained(spec, tuning, named, trial, values, folder, note_time)
            done = outcome.state == TrialState.COMPLETE
            tracking.log_trial(
                ENDED[outcome.state], {f"trial_{tuning.metric}": outcome.value} if done else {}, outcome.said
            )
            if outcome.state == TrialState.FAIL:
                raise TrialFailed
    finally:
        trial.set_user_attr(KILLED, kills)
        gc.collect()  # the Trainer refers to itself, and its model would stay beside the next one
        gc.freeze()  # the next one looks at what the next trial makes alone: all takes longer than a small training
    note_time()
    trial.set_user_attr(SAID, outcome.said)
    study.tell(trial, outcome.value if done else None, outcome.state)
    shutil.rmtree(folder, ignore_errors=True)
    lock.unlink(missing_ok=True)
    worth = "" if outcome.value is None else f", validation {tuning.metric.replace('_', ' ')} {outcome.value:.4g}"
    log(f"{named.name}: {ENDED[outcome.state]}{worth}" + (f": {outcome.said}" if outcome.said else ""))


def _as_before(trial: optuna.Trial, other: FrozenTrial) -> Outcome:
    """Of a trial with the same settings as another one, of which the same would come."""
    report(trial, other.intermediate_values)
    why = f", which failed: {other.user_attrs.get(SAID)}" if other.state == TrialState.FAIL else ""
    return Outcome(other.state, other.value, f"the same settings as trial {other.number + 1}{why}")


def _trained(
    spec: JobSpec,
    tuning: TuningSpec,
    named: RunSpec,
    trial: optuna.Trial,
    values: Mapping[str, Any],
    folder: Path,
    note_time: Callable[[], None],
) -> Outcome:
    """Trains. What fails because of the machine, which the next trial needs, too, is raised and ends the search."""
    try:
        run = trial_run(tuning, named, spec.features.forms, values)
        value = _value(spec, tuning, run, folder, _reporting(trial, tuning.metric, note_time))
        return Outcome(TrialState.COMPLETE, value)
    except optuna.TrialPruned:
        return Outcome(TrialState.PRUNED, max(reported(trial).items())[1])
    except (MlflowException, StorageInternalError, ConnectionError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # no space left, say; transformers' have none
            raise
        return Outcome(TrialState.FAIL, said=last_words(error))


def _value(spec: JobSpec, tuning: TuningSpec, run: RunSpec, folder: Path, callback: TrainerCallback) -> float:
    """Trains as any model is, and returns its metric on the validation rows. No test row is looked at."""
    splits, _ = open_splits(replace(spec, runs=(run,)))
    splits = splits | {"test": splits["test"].take([])}
    check_labels(run.model.output, {split: rows.labels for split, rows in splits.items()})
    task = replace(task_of(spec, run, splits), watched=frozenset([tuning.metric]))
    run = replace(run, training=task.training)
    tracking.log_parameters(run, {"model": to_dict(run.model), "training": to_dict(run.training)})
    tracking.describe_run(descriptions.trained_trial(spec, run, len(splits["train"])))
    progress = tracking.progress_callback(run, lambda _: None)
    trained = fit(task, folder, [progress, callback], f"{spec.project} {run.name}", refits=False)
    output, whole = trained.model.output, subset_name(run.keep)
    answered = answers(trained.model, task, task.validation, output.asked(run.keep))
    judged = [row for row in answered if row.subset == whole]
    metric = output.metric(tuning.metric)
    value = metric.value([row.label for row in judged], [row.answer for row in judged])
    if value is None:
        raise ValueError(f"no validation row tells {tuning.metric}: look at align.split")
    return value


def _reporting(trial: optuna.Trial, metric: str, note_time: Callable[[], None]) -> TrainerCallback:
    """Tells the study each validation, and ends a training that it prunes."""

    class Reporting(TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
            note_time()
            step = sum("eval_loss" in entry for entry in state.log_history)  # trainings may differ in length
            report(trial, {step: metrics[f"eval_{metric}"]})
            if state.global_step < state.max_steps and trial.should_prune():
                raise optuna.TrialPruned

    return Reporting()


def _log_best(study: optuna.Study, tuning: TuningSpec) -> None:
    """In the run of the whole: the best value so far, by the number of trials."""
    ended = study.get_trials(deepcopy=False, states=tuple(ENDED))
    if any(trial.state == TrialState.COMPLETE for trial in ended):
        mlflow.log_metric(f"best_{tuning.metric}", study.best_value, step=len(ended))


def _log_report(spec: JobSpec, found: TuningReport) -> None:
    tracking.describe_run(descriptions.tuning(spec, found))
    picture = reporting.tuning_picture(found)
    tracking.log_tuning(found, {"tuning.yaml": as_yaml(found.settings).encode(), "tuning.png": picture})
