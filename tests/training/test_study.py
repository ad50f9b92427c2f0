"""The study of a search: the same trials whatever is killed, budgets over all starts, and what is told of them. Trials
are told figures here; those that train: `tests/test_tuning_end_to_end.py`."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from transformers import TrainerControl, TrainerState

from training.records import TuningReport
from training.reporting import tuning_picture
from training.spec import JobSpec, RunSpec, TuningSpec, plan_tuning, trial_run
from training.study import SECONDS, drawn, importance, next_trial, open_study, report, report_of, reported, twin
from training.tuning import _as_before, _reporting
from training.tuning_settings import TuningSettings

SPACE = {
    "training.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "training.batch_size": {"low": 8, "high": 64, "step": 8},
    "model.fusion": ["attention", {"kind": "bottleneck", "tokens": 2}],
}


MakeSearch = Callable[..., tuple[TuningSpec, RunSpec]]
TRIALS = 11  # one more than the sampler draws before it learns from what came of them


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, make_spec: Callable[..., tuple[JobSpec, RunSpec]]) -> MakeSearch:
    """Specifications of searches, each with a file of its own."""
    _, model = make_spec("tuned")

    def make(**settings: Any) -> tuple[TuningSpec, RunSpec]:
        file = tmp_path_factory.mktemp("{study}") / "tuning.db"
        tuning = plan_tuning(TuningSettings(space=SPACE, **settings), "auroc", str(file), {}, model)
        return tuning, replace(model, model=replace(model.model, output="class"))

    return make


@pytest.fixture(scope="module")
def whole(tuned: MakeSearch) -> tuple[TuningSpec, RunSpec, optuna.Study]:
    """A search that nothing disturbed."""
    tuning, model = tuned(trials=TRIALS)
    return tuning, model, search(tuning, model)


def worth(values: dict[str, Any]) -> float:
    """What a trial comes to, as a search may find it."""
    return -abs(values["training.learning_rate"] - 2e-3) - (0.1 if values["model.fusion"] == "attention" else 0)


def search(tuning: TuningSpec, model: RunSpec, dies: int | None = None) -> optuna.Study:
    """Makes the trials; `dies` says in which one the process ends, after its settings and a validation are stored."""
    study = open_study(tuning, model)
    while (trial := next_trial(study, tuning.settings)) is not None:
        values = drawn(trial, tuning.settings)
        report(trial, {1: worth(values)})
        if trial.number == dies:
            break
        trial.set_user_attr(SECONDS, 30.0)
        study.tell(trial, worth(values))
    return study


def told(study: optuna.Study) -> list[Any]:
    return [(t.number, t.state, t.params, t.values, t.intermediate_values) for t in study.trials]


def test_a_search_that_was_killed_makes_the_trials_that_it_would_have_made(tuned: MakeSearch, whole: Any) -> None:
    expected = told(whole[2])
    assert len(expected) == TRIALS == len({t[2]["training.learning_rate"] for t in expected})
    assert expected[0][2] == {"training.learning_rate": 3e-4, "training.batch_size": 64, "model.fusion": "attention"}
    tuning, model = tuned(trials=TRIALS)
    for number in (0, TRIALS - 1):
        left = search(tuning, model, dies=number)
        assert [t.state for t in left.trials].count(TrialState.RUNNING) == 1
    assert told(search(tuning, model)) == expected
    assert told(search(tuning, model)) == expected, "there are enough"
    more = search(replace(tuning, settings=replace(tuning.settings, trials=TRIALS + 1)), model)
    assert told(more)[:TRIALS] == expected and len(more.trials) == TRIALS + 1


def test_minutes_are_of_all_starts_together(tuned: MakeSearch) -> None:
    tuning, model = tuned(trials=None, minutes=2.0)
    search(tuning, model, dies=2)
    assert len(search(tuning, model).trials) == 4  # of 30 s each


def test_another_seed_draws_others(tuned: MakeSearch) -> None:
    def rates(**settings: Any) -> list[float]:
        tuning, model = tuned(trials=2, sampler="random", **settings)
        return [t.params["training.learning_rate"] for t in search(tuning, model).trials]

    first, second = rates(seed=0), rates(seed=1)
    assert first[0] == second[0] == 3e-4  # the file's own
    assert not set(first[1:]) & set(second[1:])


def test_what_was_found_is_the_best_and_the_settings_that_make_it(whole: Any) -> None:
    tuning, model, study = whole
    found = report_of(study, tuning, model, "run")
    best = max(found.trials, key=lambda trial: trial.value or 0)
    assert found.best_trial == best == found.ranked[0] and best.value == worth(dict(best.values))
    run = trial_run(tuning, model, {}, best.values)
    assert found.settings["training"] == {
        "learning_rate": run.training.learning_rate,
        "batch_size": run.training.batch_size,
    }
    assert found.settings["model"] == {"fusion": run.model.fusion.plain()}
    assert set(found.importance) == set(SPACE) and sum(found.importance.values()) == pytest.approx(1, abs=1e-3)
    assert max(found.importance, key=lambda path: found.importance[path]) != "training.batch_size", (
        "which tells nothing"
    )
    assert TuningReport.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert tuning_picture(found).startswith(b"\x89PNG")
    assert found.words == f"{TRIALS} trials: best validation auroc {best.value:.4g} by trial {best.number}"


def test_a_trial_is_pruned_that_is_worse_than_the_median_of_those_before(tuned: MakeSearch) -> None:
    tuning, model = tuned(trials=7)
    study, pruned = open_study(tuning, model), []
    while (trial := next_trial(study, tuning.settings)) is not None:
        drawn(trial, tuning.settings)
        value = -float(trial.number)
        said = _reporting(trial, "auroc", lambda: None)
        state = TrainerState(global_step=5, max_steps=10, log_history=[{"loss": 1.0}, {"eval_loss": 1.0}])
        try:
            said.on_evaluate(None, state, TrainerControl(), metrics={"eval_auroc": value})  # type: ignore[arg-type]
            study.tell(trial, value)
        except optuna.TrialPruned:
            assert reported(trial) == {1: value}
            pruned.append(trial.number)
            study.tell(trial, state=TrialState.PRUNED)
    assert pruned == [5, 6], "five are waited for"
    found = report_of(study, tuning, model, "run")
    assert [trial.state for trial in found.ranked] == ["complete"] * 5 + ["pruned"] * 2
    assert found.words == "7 trials (2 pruned): best validation auroc 0 by trial 1"
    without, model = tuned(pruner="none")
    assert isinstance(open_study(without, model).pruner, optuna.pruners.NopPruner)


def test_the_same_settings_come_to_the_same_and_are_not_trained_twice(tuned: MakeSearch) -> None:
    tuning, model = tuned(trials=9)
    study = open_study(tuning, model)
    for state, value in ((TrialState.COMPLETE, 0.5), (TrialState.FAIL, None)):
        first = next_trial(study, tuning.settings)
        assert first is not None and twin(study, first) is None
        values = drawn(first, tuning.settings)
        report(first, {1: 0.25})
        first.set_user_attr("said", "why")
        study.tell(first, value, state)
        study.enqueue_trial({path: first.params[path] for path in values})
        again = next_trial(study, tuning.settings)
        assert again is not None and drawn(again, tuning.settings) == values
        other = twin(study, again)
        assert other is not None and other.number == first.number
        outcome = _as_before(again, other)
        assert (outcome.state, outcome.value, reported(again)) == (state, value, {1: 0.25})
        assert outcome.said.startswith(f"the same settings as trial {first.number + 1}")
        assert outcome.said.endswith("which failed: why") == (state == TrialState.FAIL)
        study.tell(again, value, state)


def test_where_no_trial_ends_well_the_first_says_why(tuned: MakeSearch) -> None:
    tuning, model = tuned(trials=1)
    study = open_study(tuning, model)
    trial = next_trial(study, tuning.settings)
    assert trial is not None
    drawn(trial, tuning.settings)
    trial.set_user_attr("said", "the loss became no number")
    study.tell(trial, state=TrialState.FAIL)
    with pytest.raises(
        ValueError, match=r"none of 1 trials came to its end: the first, with training.learning_rate 0.0003"
    ):
        report_of(study, tuning, model, "run")
    assert importance(study) == {}
