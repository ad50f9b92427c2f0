"""Ctrl-C and SIGTERM: one sentence, the exit code that shells expect, a run that is CANCELED, and no process left."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest
from filelock import FileLock

from orchestration.run import open_instance
from training.mlflow_store import client

ROOT = Path(__file__).parents[2]
SIGNALS = [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")]


def start(home: Path, *arguments: str, code: str = "") -> subprocess.Popen[str]:
    """A command as a terminal starts it: in a process group of its own, which signals go to.

    Args:
        code: run before the command, in its process.
    """
    env = os.environ | {"TRIPTYCH_HOME": str(home), "PYTHONPATH": str(ROOT)}
    script = f"{code}\nfrom orchestration.cli import entry\nentry()"
    command = [sys.executable, "-P", "-c", script, *arguments]
    return subprocess.Popen(command, env=env, text=True, stderr=subprocess.PIPE, process_group=0)


def stop(started: subprocess.Popen[str], number: int, when: Callable[[str], bool]) -> list[str]:
    """Sends the signal to all when a line says so; returns the lines that come then."""
    for line in started.stderr:
        if when(line):
            break
    os.killpg(started.pid, number)
    rest = started.stderr.read().splitlines()
    started.wait(30)
    return rest


# A step of the data side that takes long in Python.
SLOW = """
import time
from assets import pipeline
def write_manifest(*_):
    print("at work", file=__import__("sys").stderr, flush=True)
    time.sleep(60)
pipeline.write_manifest = write_manifest
"""


@pytest.mark.parametrize(("number", "name"), SIGNALS)
def test_a_run_in_a_data_step(tiny, home, processes_of, number, name):
    started = start(home, "run", str(tiny), "--select", "manifest", code=SLOW)
    said = stop(started, number, lambda line: line == "at work\n")
    with open_instance(home) as instance:
        (run,) = instance.get_runs()
    assert said == [
        f"Stopped by {name}: run {run.run_id[:8]} is CANCELED; what is done is kept, and the same command goes on from "
        "there"
    ]
    assert started.returncode == 128 + number
    assert run.status == dg.DagsterRunStatus.CANCELED
    assert processes_of(home) == []


@pytest.mark.slow
def test_a_run_that_waits_for_another(tiny, home):
    place = home / "projects" / "tiny" / "run.lock"
    place.parent.mkdir(parents=True)
    with FileLock(place):
        place.write_text("0123456789")
        started = start(home, "run", str(tiny), "--select", "manifest")
        said = stop(started, signal.SIGINT, lambda line: "this one waits" in line)
    assert started.returncode == 130 and len(said) == 1 and said[0].startswith("Stopped by Ctrl-C: run ")
    with open_instance(home) as instance:
        assert instance.get_runs()[0].status == dg.DagsterRunStatus.CANCELED


@pytest.mark.parametrize(
    ("command", "number", "name"), [("check", *SIGNALS[0]), ("gc", *SIGNALS[1]), ("status", *SIGNALS[0])]
)
def test_other_commands(tiny, home, command, number, name):
    code = "import sys, time, orchestration.project as p\n"
    code += "def load(*_):\n    print('at work', file=sys.stderr, flush=True)\n    time.sleep(60)\np.load = load"
    started = start(home, command, str(tiny), code=code)
    assert stop(started, number, lambda line: line == "at work\n") == [f"Stopped by {name}."]
    assert started.returncode == 128 + number


@pytest.mark.slow
@pytest.mark.parametrize(("number", "name", "parallel"), [(*SIGNALS[0], 1), (*SIGNALS[1], 2)])
def test_a_run_in_training(tiny, home, processes_of, number, name, parallel):
    many = ["--set", "training.epochs=2000", "--set", f"training.parallel={parallel}"]
    started = start(home, "run", str(tiny), "--select", "+model", *many)
    said = stop(started, number, lambda line: "step" in line and "model:" in line)
    assert [line for line in said if not line.startswith("    ")] == said[-1:], (
        "what the trainer logged, and one sentence"
    )
    assert said[-1].startswith(f"Stopped by {name}: run ") and started.returncode == 128 + number
    deadline = time.monotonic() + 5
    while processes_of(home):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    with open_instance(home) as instance:
        assert instance.get_runs()[0].status == dg.DagsterRunStatus.CANCELED
    store = client(f"sqlite:///{home}/mlflow.db")
    trained = store.search_runs([store.get_experiment_by_name("tiny").experiment_id])
    assert trained and {run.info.status for run in trained} == {"KILLED"}


def test_an_error_without_words_is_named_with_its_place(tiny, home):
    for code, words in (
        ("def load(*_):\n    raise RuntimeError", "RuntimeError: in <string> line 3 (load)"),
        ("def load(*_):\n    assert False", "AssertionError: in <string> line 3 (load)"),
    ):
        started = start(home, "status", str(tiny), code=f"import orchestration.project as p\n{code}\np.load = load")
        assert started.stderr.read().strip() == f"Error: {words} (triptych --debug shows more)"
        assert started.wait(30) == 1
    started = start(
        home, "run", str(tiny), "--select", "manifest", code=SLOW.replace("time.sleep(60)", "raise KeyError")
    )
    said = started.stderr.read()
    assert "Error: tiny__manifest: KeyError, without a word, in File " in said and started.wait(30) == 1
