"""Several commands that start at the same instant in an empty TRIPTYCH_HOME."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from orchestration.run import open_instance
from training.files import first_use

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
# Waits for the others, so that what takes a second to import comes at the same instant.
START = """
import sys, time
from pathlib import Path
import orchestration.run, orchestration.servers, mlflow
from orchestration.cli import main
Path(sys.argv[1]).touch()
while not Path(sys.argv[2]).exists():
    time.sleep(0.001)
main(sys.argv[3:])
"""


def start_together(folder: Path, home: Path, commands: list[list[str]]) -> list[subprocess.Popen[str]]:
    env = os.environ | {"TRIPTYCH_HOME": str(home), "PYTHONPATH": str(ROOT)}
    env.pop("MLFLOW_TRACKING_URI", None)
    ready = [folder / f"ready{n}" for n in range(len(commands))]
    go = folder / "go"
    started = [
        subprocess.Popen(
            [sys.executable, "-P", "-c", START, str(mark), str(go), *command],
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for mark, command in zip(ready, commands, strict=True)
    ]
    while not all(mark.exists() for mark in ready):
        assert all(process.poll() is None for process in started)
        time.sleep(0.01)
    go.touch()
    return started


def test_four_first_runs_at_once(tmp_path, home, make_project):
    projects = [make_project(tmp_path / name, name) for name in ("one", "two", "three")]
    commands = [["run", str(path), "--select", "+manifest"] for path in (*projects, projects[0])]
    for process in start_together(tmp_path, home, commands):
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said
    with open_instance(home) as instance:
        assert [run.is_success for run in instance.get_runs()] == [True] * 4


def test_first_commands_of_all_kinds_at_once(tmp_path, home, free_ports):
    port, mlflow_port = free_ports(2)
    commands = [
        ["run", "digits", "--select", "+manifest"],
        ["status", "digits"],
        ["check", "digits"],
        ["ui", "--port", str(port), "--mlflow-port", str(mlflow_port)],
    ]
    *others, ui = start_together(tmp_path, home, commands)
    try:
        for process in others:
            said, _ = process.communicate(timeout=240)
            assert process.returncode == 0, said
        assert ui.poll() is None, ui.stdout.read()
    finally:
        ui.send_signal(signal.SIGINT)
        ui.communicate(timeout=60)


def test_a_killed_holder_keeps_nobody_waiting(tmp_path):
    code = "import sys, time; from pathlib import Path; from training.files import first_use\n"
    code += "with first_use(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-c", code, str(tmp_path)]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        lock = FileLock(tmp_path / "first_use.lock", timeout=0)
        with pytest.raises(TimeoutError):
            lock.acquire()
        holder.kill()
        holder.wait()
    with first_use(tmp_path):
        pass
