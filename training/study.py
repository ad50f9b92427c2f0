"""The study of a search for settings: which trials there are, kept by Optuna in a SQLite file; and what they came to.

What is drawn for a trial depends on the seed, its number and the trials before it, and on no process: so a search that
was killed and started again makes the trials that it would have made.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalChoiceType,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState

from training.catalog import OUTPUTS
from training.metrics import Metric
from training.records import Trial, TuningReport
from training.spec import RunSpec, TuningSpec
from training.tuning_settings import Range, TuningSettings, as_sections, in_words, value_at, word

ENDED = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
# What the study has of a trial beside values: seconds of training (of a killed one up to its last validation), how
# often its process was killed, and why it failed.
SECONDS, KILLED, SAID = "seconds", "killed", "said"


def open_study(tuning: TuningSpec, model: RunSpec) -> optuna.Study:
    """The study as it was left, or a new one, whose first trial takes what the settings say now, where it may."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    Path(tuning.storage).parent.mkdir(parents=True, exist_ok=True)
    pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    if tuning.settings.pruner == "median":
        pruner = optuna.pruners.MedianPruner()
    file = tuning.storage.replace("{", "{{").replace("}", "}}")  # Optuna fills in what stands in braces
    study = optuna.create_study(
        storage=f"sqlite:///{file}",
        study_name=tuning.fingerprint,
        direction="maximize" if _metric(model, tuning).higher_is_better else "minimize",
        pruner=pruner,
        load_if_exists=True,
    )
    if not study.get_trials(deepcopy=False):
        present = {path: word(value_at(model.model, model.training, path)) for path in tuning.settings.space}
        may_be = distributions(tuning.settings)
        study.enqueue_trial({path: value for path, value in present.items() if _takes(may_be[path], value)})
    return study


def _metric(model: RunSpec, tuning: TuningSpec) -> Metric:
    return OUTPUTS.make(model.model.output, {}).metric(tuning.metric)


def distributions(settings: TuningSettings) -> dict[str, BaseDistribution]:
    """Dotted key -> what it is drawn from."""

    def of(values: Range | tuple[Any, ...]) -> BaseDistribution:
        if not isinstance(values, Range):
            choices: list[CategoricalChoiceType] = [word(value) for value in values]
            return CategoricalDistribution(choices)
        low, high, log = values.low, values.last, values.log
        if values.is_whole:
            return IntDistribution(int(low), int(high), log, int(values.step or 1))
        return FloatDistribution(low, high, log, values.step)

    return {path: of(values) for path, values in settings.space.items()}


def _takes(of: BaseDistribution, value: Any) -> bool:
    try:
        return bool(of._contains(of.to_internal_repr(value)))
    except (TypeError, ValueError):
        return False


def drawn(trial: optuna.Trial, settings: TuningSettings) -> dict[str, Any]:
    """Dotted key -> what it is in this trial, as settings take it; drawn, unless it was before."""
    for path, of in distributions(settings).items():
        trial._suggest(path, of)
    return chosen(trial.params, settings)


def chosen(params: Mapping[str, Any], settings: TuningSettings) -> dict[str, Any]:
    """What Optuna has of a trial, as settings take it."""
    values = {}
    for path, listed in settings.space.items():
        known = {} if isinstance(listed, Range) else {word(value): value for value in listed}
        if path in params:
            values[path] = known.get(params[path], params[path])
    return values


def next_trial(study: optuna.Study, settings: TuningSettings) -> optuna.Trial | None:
    """The one that a killed process has left, else another; None: there are enough.

    What is drawn depends on the seed, the number of the trial and the trials before it, and on no process.
    """
    trials = study.get_trials(deepcopy=False)
    begun = [trial for trial in trials if trial.state != TrialState.WAITING]
    left = [trial for trial in begun if trial.state == TrialState.RUNNING]
    if not left and settings.is_spent(len(begun), sum(trial.user_attrs.get(SECONDS, 0.0) for trial in begun)):
        return None
    number = left[0].number if left else len(begun)
    seed = int(np.random.SeedSequence([settings.seed, number]).generate_state(1)[0])
    tpe = settings.sampler == "tpe"
    study.sampler = optuna.samplers.TPESampler(seed=seed) if tpe else optuna.samplers.RandomSampler(seed)
    return optuna.Trial(study, left[0]._trial_id) if left else study.ask()


def report(trial: optuna.Trial, values: Mapping[int, float]) -> None:
    """Tells what validations came to, each by its number; those that are known, from before a process was killed, stay
    as they are."""
    known = reported(trial)
    for step, value in values.items():
        if step not in known:
            trial.report(value, step)


def reported(trial: optuna.Trial) -> Mapping[int, float]:
    return trial.storage.get_trial(trial._trial_id).intermediate_values


def twin(study: optuna.Study, trial: optuna.Trial) -> FrozenTrial | None:
    """A trial of before with the same settings, of which the same would come."""
    ended = study.get_trials(deepcopy=False, states=tuple(ENDED))
    return next((other for other in ended if other.params == trial.params), None)


def report_of(study: optuna.Study, tuning: TuningSpec, model: RunSpec, run_id: str) -> TuningReport:
    """What the trials came to.

    Raises:
        ValueError: none came to its end.
    """
    ended = study.get_trials(deepcopy=False, states=tuple(ENDED))
    trials = [
        Trial(
            number=trial.number + 1,
            state=ENDED[trial.state],
            values=chosen(trial.params, tuning.settings),
            value=trial.value,
            seconds=trial.user_attrs.get(SECONDS, 0.0),
            said=trial.user_attrs.get(SAID, ""),
        )
        for trial in ended
    ]
    if all(trial.state != "complete" for trial in trials):
        first = trials[0]
        raise ValueError(
            f"none of {len(trials)} trials came to its end: the first, with {in_words(first.values)}, {first.state}"
            f"{first.said and ': '}{first.said}; change tuning.space"
        )
    best = study.best_trial
    return TuningReport(
        fingerprint=tuning.fingerprint,
        mlflow_run_id=run_id,
        metric=tuning.metric,
        higher_is_better=study.direction == optuna.study.StudyDirection.MAXIMIZE,
        trials=trials,
        best=best.number + 1,
        settings=as_sections(model.model, model.training, chosen(best.params, tuning.settings)),
        importance=importance(study),
    )


def importance(study: optuna.Study) -> dict[str, float]:
    """Of each setting its share in what the metric comes to (PED-ANOVA, Watanabe et al. 2023); the greatest first, and
    nothing where trials are too few or all alike."""
    values = {trial.value for trial in study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])}
    if len(values) < 2:
        return {}
    return {path: round(share, 4) for path, share in optuna.importance.get_param_importances(study).items()}
