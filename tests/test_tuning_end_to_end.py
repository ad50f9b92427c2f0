"""A search for settings on a small project: killed within a trial and started again, with trials that end early and
trials that fail; and what Dagster and the command line say of it."""

import json
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import dagster as dg
import pytest
import yaml
from click.testing import CliRunner

from assets import featurizing, pipeline
from assets.model_assets import job_spec
from orchestration.cli import main
from orchestration.project import load
from training.mlflow_store import client
from training.records import TuningReport
from training.runs import find_tuning
from training.spec import JobSpec

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
# Rates at the upper end spoil a model. A width of 20 does not go with 4 heads, and each goes by itself.
TUNING = """
tuning:
  space:
    training.learning_rate: {low: 0.001, high: 30.0, log: true}
    model.width: [16, 20]
    model.heads: [2, 4]
  trials: 7
  sampler: random
  seed: 457
"""
TRIALS = 7
KILLED = 2  # the trial within which the process is killed, from 1
SEARCH = """
import json, sys
from training.spec import JobSpec
from training.tuning import tune
spec = JobSpec.from_json(json.load(open(sys.argv[1])))
tune(spec, spec.tuning, lambda line: print(line, flush=True))
"""


class Searched(NamedTuple):
    """A search that was killed and ended."""

    path: Path  # of the project file
    spec: JobSpec
    before: list[Any]  # trials that had ended when it was killed
    said: list[str]  # from then on
    found: TuningReport


def ended(spec: JobSpec) -> list[Any]:
    """What the study has of the trials that have ended."""
    assert spec.tuning is not None
    query = (
        "SELECT number, state, datetime_complete, value FROM trials LEFT JOIN trial_values USING (trial_id) "
        "WHERE state IN ('COMPLETE', 'PRUNED', 'FAIL') ORDER BY number"
    )
    with closing(sqlite3.connect(spec.tuning.storage)) as connection:
        return connection.execute(query).fetchall()


def is_within(spec: JobSpec, number: int) -> bool:
    """Whether that trial is under way, and has been validated."""
    assert spec.tuning is not None
    query = "SELECT count(*) FROM trial_intermediate_values JOIN trials USING (trial_id) WHERE number = ? AND state = ?"
    try:
        with closing(sqlite3.connect(spec.tuning.storage)) as connection:
            return connection.execute(query, (number - 1, "RUNNING")).fetchone()[0] > 0
    except sqlite3.OperationalError:  # it is not there yet
        return False


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, make_project: Any, mlflow_database: Path) -> Iterator[Searched]:
    folder = tmp_path_factory.mktemp("tuning")
    path = make_project(folder / "project")
    (folder / "home").mkdir()
    shutil.copy(mlflow_database, folder / "home")
    for old, new in (("yes", "1.0"), ("no", "0.0")):
        table = path.parent / "questions.csv"
        table.write_text(re.sub(f",{old}$", f",{new}", table.read_text(), flags=re.MULTILINE))
    training = "training: {epochs: 3, batch_size: 8, learning_rate: 0.01, evaluations: 3, checkpoint_steps: 2}"
    lines = [training if line.startswith("training:") else line for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines).replace("max_new_tokens: 4}", "output: number}") + TUNING)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIPTYCH_HOME", str(folder / "home"))
        patch.setenv("DAGSTER_HOME", str(folder / "home"))
        patch.setenv("OMP_NUM_THREADS", "1")
        spec = prepared(path)
        (folder / "spec.json").write_text(json.dumps(spec.to_json()))
        command = [sys.executable, "-c", SEARCH, str(folder / "spec.json")]
        started = partial(subprocess.Popen, command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        patch.setenv("PYTHONPATH", str(ROOT))
        process, until = started(), time.monotonic() + 240
        while not is_within(spec, KILLED):
            assert process.poll() is None and time.monotonic() < until, process.communicate()
            time.sleep(0.02)
        process.kill()
        process.communicate()
        before, process = ended(spec), started()
        said, errors = process.communicate(timeout=280)
        assert process.returncode == 0, errors
        assert spec.tuning is not None
        found = find_tuning(spec.tracking_uri, spec.project, spec.tuning.fingerprint)
        assert found is not None
        yield Searched(path, spec, before, said.splitlines(), found)


def prepared(path: Path) -> JobSpec:
    """The data side of the project, and what the trainer would be asked for."""
    project = load(path)
    lake = pipeline.open_lake(project)
    pipeline.write_manifest(lake, project)
    for modality in project.modalities:
        featurizing.process_modality(lake, project, modality)
    pipeline.write_samples(lake, project)
    pipeline.write_dataset(lake, project)

    @dg.asset
    def asked(context: dg.AssetExecutionContext) -> dict[str, Any]:
        model, tuning = pipeline.tuning(project)
        return job_spec(context, project, (model,), tuning=tuning).to_json()

    return JobSpec.from_json(dg.materialize([asked]).output_for_node("asked"))


def test_trials_that_had_ended_stay_and_the_one_that_was_killed_goes_on(searched: Searched) -> None:
    now = ended(searched.spec)
    assert len(searched.before) == KILLED - 1 and now[: KILLED - 1] == searched.before
    assert [number for number, *_ in now] == list(range(TRIALS)), "seven in all, none twice"
    assert searched.said[0].startswith(f"trial {KILLED} of {TRIALS}: training.learning_rate ")
    assert searched.said[0].endswith(", going on")
    assert not list(Path(searched.spec.checkpoints).glob("*/")), "checkpoints have served"


def test_trials_end_well_early_or_in_words(searched: Searched) -> None:
    found, trials = searched.found, searched.found.trials
    states = {state: [t for t in trials if t.state == state] for state in ("complete", "pruned", "failed")}
    assert sum(map(len, states.values())) == TRIALS and all(states.values()), found.words
    first = {"training.learning_rate": 0.01, "model.width": 16, "model.heads": 2}
    assert trials[0].values == first, "what the file says"
    for trial in states["failed"]:
        assert (trial.values["model.width"], trial.values["model.heads"]) == (20, 4)
        assert "width is 20, expected a multiple of 2 * heads (8)" in trial.said and trial.value is None
    for trial in states["pruned"]:
        assert f"trial {trial.number}: pruned, validation mae {trial.value:.4g}" in searched.said
        assert trial.number > 5, "the first five are waited for"
    assert found.best_trial.value == min(t.value for t in states["complete"] if t.value is not None), "an error"
    assert set(found.importance) == {"training.learning_rate", "model.width", "model.heads"}


def test_mlflow_has_a_run_for_each_trial_below_that_of_the_search(searched: Searched) -> None:
    spec, found = searched.spec, searched.found
    store = client(spec.tracking_uri)
    runs = store.search_runs([store.get_experiment_by_name("tiny").experiment_id])
    (whole,) = (run for run in runs if run.info.run_name == "tuning")
    assert whole.info.run_id == found.mlflow_run_id and whole.info.status == "FINISHED"
    files = {file.path for file in store.list_artifacts(whole.info.run_id)}
    assert files == {"tuning.json", "tuning.png", "tuning.yaml"}
    assert whole.data.metrics["best_mae"] == found.best_trial.value
    assert "For the project file" in whole.data.tags["mlflow.note.content"]
    trials = {run.info.run_name: run for run in runs if run is not whole}
    assert len(runs) == TRIALS + 1 and trials.keys() == {f"trial {trial.number}" for trial in found.trials}
    for trial in found.trials:
        run = trials[f"trial {trial.number}"]
        assert run.data.tags["mlflow.parentRunId"] == whole.info.run_id
        assert run.data.tags["triptych.state"] == trial.state
        assert run.info.status == ("FAILED" if trial.state == "failed" else "FINISHED")
        assert run.data.params["training.learning_rate"] == str(trial.values["training.learning_rate"])
        assert run.data.metrics.get("trial_mae") == (trial.value if trial.state == "complete" else None)
        assert run.data.tags.get("triptych.reason", "") == trial.said
        assert not any(name.startswith("test_") for name in run.data.metrics)
    assert store.search_registered_models() == []


def test_more_trials_go_on_with_the_same_search(searched: Searched) -> None:
    from training.tuning import tune

    spec, said = searched.spec, list[str]()
    assert spec.tuning is not None
    more = replace(spec.tuning, settings=replace(spec.tuning.settings, trials=TRIALS + 1))
    found = tune(replace(spec, tuning=more), more, said.append)
    assert [line.split(":")[0] for line in said] == [f"trial {TRIALS + 1} of {TRIALS + 1}", f"trial {TRIALS + 1}"]
    assert found.trials[:TRIALS] == searched.found.trials and found.mlflow_run_id == searched.found.mlflow_run_id


def test_what_was_searched_is_told_and_its_settings_can_be_run(
    searched: Searched, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = searched.path.parent.parent / "home"
    monkeypatch.setenv("TRIPTYCH_HOME", str(home))
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    result = CliRunner().invoke(main, ["tune", str(searched.path)])
    assert result.exit_code == 0, result.output
    assert f"trial {searched.found.best}, already searched" in result.stderr
    assert "what matters: " in result.stdout and "for the project file:" in result.stdout
    command = result.stdout.splitlines()[-1].partition("triptych run ")[2]
    project = load(searched.path, re.findall(r"--set (\S+)", command))
    values = searched.found.best_trial.values
    assert project.training.learning_rate == values["training.learning_rate"]
    assert (project.model.width, project.model.heads) == (values["model.width"], values["model.heads"])
    (sections,) = yaml.safe_load_all(re.search(r"file:\n\n(.*)\n\nor", result.stdout, re.DOTALL)[1])  # type: ignore[index]
    assert sections == searched.found.settings
