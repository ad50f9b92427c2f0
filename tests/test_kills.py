"""kill -9 at any instant of the whole job, then the same command again: the same tables and weights, nothing left over.

Each kill has a TRIPTYCH_HOME of its own; what it is compared with is a run of the same project that nothing disturbed.
"""

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from assets import pipeline
from orchestration.project import load
from orchestration.run import open_instance
from training.mlflow_store import client
from training.model_registry import fetch_model
from training.schema import TABLES

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
# Ten checkpoints of the model; a baseline ends before its tenth step.
TRAINING = (
    "training: {epochs: 12, baseline_epochs: 1.5, batch_size: 8, evaluations: 1, checkpoint_steps: 5, parallel: 1}"
)
KILLS = [(2, n) for n in range(2)] + [pytest.param(20, n, marks=pytest.mark.soak) for n in range(20)]


class Told(NamedTuple):
    """What a run said."""

    answer: dict[str, Any]
    stderr: str
    seconds: float


class Home:
    """A TRIPTYCH_HOME, and what is started and found in it."""

    def __init__(self, folder: Path, project: Path) -> None:
        self.folder, self.project = folder / "home", project
        self.log = folder / "stderr.txt"
        self.env = os.environ | {"TRIPTYCH_HOME": str(self.folder), "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
        self.env |= {"OMP_NUM_THREADS": "1"}  # their number decides the last bits of the weights
        self.env.pop("MLFLOW_TRACKING_URI", None)  # MLflow sets it in a process that asks it something

    def start(self, *command: str) -> subprocess.Popen:
        """A `triptych` command in a process of its own."""
        argv = [sys.executable, "-P", "-m", "orchestration.cli", *command, "--json"]
        with self.log.open("w") as log:
            return subprocess.Popen(argv, cwd=ROOT, env=self.env, text=True, stdout=subprocess.PIPE, stderr=log)

    def finish(self, process: subprocess.Popen) -> Told:
        started = time.monotonic()
        stdout, _ = process.communicate(timeout=300)
        assert process.returncode == 0, self.log.read_text()
        return Told(json.loads(stdout.splitlines()[-1]), self.log.read_text(), time.monotonic() - started)

    def run(self, *options: str) -> Told:
        return self.finish(self.start("run", str(self.project), *options))

    def kill(self, process: subprocess.Popen, when: Callable[[], bool]) -> str:
        """SIGKILL to the job as soon as `when` holds; returns what it said last."""
        while not when() and process.poll() is None:
            time.sleep(0.005)
        process.kill()
        process.wait()
        process.stdout.close()  # not read to its end, which an orphan might hold open
        return (self.log.read_text().splitlines() or [""])[-1]

    def processes(self) -> set[int]:
        """All that runs for this home: the job, the trainer and its workers, with whatever parent."""
        found = set()
        for process in psutil.process_iter():
            try:
                if process.environ().get("TRIPTYCH_HOME") == str(self.folder):
                    found.add(process.pid)
            except psutil.Error:  # it ended, or is another user's
                continue
        return found

    def assert_no_orphans(self, started: subprocess.Popen) -> None:
        """What the killed job had started is gone, while the next one is at work."""
        deadline = time.monotonic() + 10
        while orphans := self.processes() - {started.pid, *(c.pid for c in psutil.Process(started.pid).children(True))}:
            assert time.monotonic() < deadline, [psutil.Process(pid).cmdline() for pid in orphans]
            time.sleep(0.1)

    @property
    def mlflow_uri(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    def weights(self) -> str:
        """Hash of the one registered version's weights."""
        (version,) = client(self.mlflow_uri).search_model_versions("name = 'tiny'")
        (file,) = fetch_model(self.mlflow_uri, "tiny", version.version).rglob("model.safetensors")
        return hashlib.sha256(file.read_bytes()).hexdigest()

    def made(self, told: Told) -> dict[str, Any]:
        """All that the job leaves, but for ids and times."""
        lake = pipeline.open_lake(self.settings())
        store = client(self.mlflow_uri)
        runs = store.search_runs([store.get_experiment_by_name("tiny").experiment_id])
        return {
            **{name: sorted(map(repr, lake.read(name).to_pylist())) for name in TABLES if name != "snapshots"},
            **{f"{name} note": lake.note(name) for name in ("samples", "dataset")},
            **{name: told.answer[name] for name in ("model", "dataset", "metrics", "subsets")},
            "runs": {run.info.run_name: measured(run.data.metrics) for run in runs},
            "weights": self.weights(),
        }

    def settings(self) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRIPTYCH_HOME", str(self.folder))
            patch.delenv("MLFLOW_TRACKING_URI", raising=False)
            return load(self.project)

    def assert_at_rest(self) -> None:
        """No run is left open in Dagster or MLflow, no slot taken, no process running, no item without an outcome."""
        assert not self.processes()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DAGSTER_HOME", str(self.folder))  # `open_instance` sets it, too
            with open_instance(self.folder) as instance:
                runs = instance.get_runs()
                gpu = instance.event_log_storage.get_concurrency_info("gpu")
        assert runs[0].is_success
        assert [run.status for run in runs if not run.is_finished] == []
        assert (gpu.active_slot_count, gpu.pending_step_count, gpu.assigned_step_count) == (0, 0, 0)
        store = client(self.mlflow_uri)
        trained = store.search_runs([store.get_experiment_by_name("tiny").experiment_id])
        assert {run.info.status for run in trained} == {"FINISHED"}
        assert len(trained) == len({run.data.tags["triptych.training_fingerprint"] for run in trained})
        project = self.settings()
        balance = pipeline.balance(pipeline.open_lake(project), project)
        assert balance.holds, balance.metadata()


def measured(metrics: dict[str, float]) -> dict[str, float]:
    # Rounded: temperatures, and so what tiny probabilities add up to, differ by the last bits of an evaluation.
    return {name: round(value, 6) for name, value in metrics.items() if name.startswith("test_")}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, make_project: Callable[..., Path]) -> Path:
    path = make_project(tmp_path_factory.mktemp("kills") / "project")
    lines = [TRAINING if line.startswith("training:") else line for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, project: Path) -> Iterator[tuple[Home, Told, dict[str, Any]]]:
    home = Home(tmp_path_factory.mktemp("undisturbed"), project)
    told = home.run()
    home.assert_at_rest()
    yield home, told, home.made(told)


@pytest.mark.parametrize(("count", "number"), KILLS)
def test_killed_at_any_instant_and_run_again(undisturbed, project, tmp_path, count, number):
    _, told, expected = undisturbed
    share = (number + random.Random(f"{count}-{number}").random()) / count  # each part of the job gets its kill
    home = Home(tmp_path, project)
    command = "run", str(project), "--set", f"training.parallel={2 if number % 4 == 3 else 1}"
    killed, started = home.start(*command), time.monotonic()
    said = home.kill(killed, lambda: time.monotonic() - started > share * told.seconds)
    print(f"killed after {share * told.seconds:.1f} of {told.seconds:.1f} s (code {killed.returncode}): {said}")
    again = home.start(*command)
    home.assert_no_orphans(again)
    found = home.made(home.finish(again))
    assert [name for name in expected if found[name] != expected[name]] == []
    home.assert_at_rest()


def test_a_training_killed_between_checkpoints_ends_with_the_same_weights(undisturbed, project, tmp_path):
    home = Home(tmp_path, project)
    killed = home.start("run", str(project), "--select", "+model")
    checkpoints = home.folder / "projects" / "tiny" / "checkpoints"
    home.kill(killed, lambda: any(checkpoints.glob("*/checkpoint-10/trainer_state.json")))
    again = home.start("run", str(project), "--select", "+model")
    home.assert_no_orphans(again)
    assert "model: 48 steps, going on at step" in home.finish(again).stderr
    assert home.weights() == undisturbed[2]["weights"]
    home.assert_at_rest()


def test_a_kill_while_mlflow_makes_its_database(project, tmp_path):
    """Its migrations are many commits; the first half of them would be a database that never opens."""
    home = Home(tmp_path, project)
    killed = home.start("status", str(project))
    home.kill(killed, lambda: sum(path.stat().st_size for path in home.folder.rglob("*.db")) > 400_000)
    assert killed.returncode == -9
    assert home.finish(home.start("status", str(project))).answer["models"] == []
