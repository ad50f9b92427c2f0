"""What a guarded command starts ends with the process that asked for it, even by kill -9, wherever it went."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from training.guard import end_family, guarded

ROOT = Path(__file__).parents[2]
# A server with a child in a session of its own, and a grandchild whose parent is gone.
SERVER = """
import os, subprocess, sys, time
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
own = subprocess.Popen(sleep, start_new_session=True)
away = dict.fromkeys(["stdin", "stdout", "stderr"], subprocess.DEVNULL)
orphan = f"import subprocess; print(subprocess.Popen({sleep!r}, start_new_session=True, **{away!r}).pid)"
left = subprocess.run([sys.executable, "-c", orphan], capture_output=True, text=True, check=True).stdout.strip()
print(os.getpid(), own.pid, left, flush=True)
time.sleep(600)
"""
ASKER = f"import subprocess, time; from training.guard import guarded; import sys\n\
subprocess.Popen(guarded([sys.executable, '-c', {SERVER!r}]), start_new_session=True); time.sleep(600)"


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 5
    while left := [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_all_end_when_the_one_that_asked_is_killed():
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", ASKER], env=env, stdout=subprocess.PIPE, text=True) as asker:
        family = [int(pid) for pid in asker.stdout.readline().split()]
        assert len(family) == 3 and all(map(psutil.pid_exists, family))
        asker.kill()
    wait_until_gone(family)


def test_all_end_when_the_guard_is_killed_or_the_family_is_ended():
    for end in (lambda guard: end_family(guard.pid), lambda guard: os.killpg(guard.pid, signal.SIGTERM)):
        command = guarded([sys.executable, "-c", SERVER])
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as guard:
            family = [int(pid) for pid in guard.stdout.readline().split()]
            end(guard)
            assert guard.wait(10) in (128 + signal.SIGKILL, 128 + signal.SIGTERM)
        wait_until_gone(family)


@pytest.mark.parametrize(("code", "expected"), [("print('said')", 0), ("import sys; print('said'); sys.exit(7)", 7)])
def test_output_and_exit_code_are_those_of_the_command(code, expected):
    done = subprocess.run(guarded([sys.executable, "-c", code]), capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("said\n", "", expected)


def test_a_command_whose_asker_is_gone_already_ends_at_once():
    command = guarded([sys.executable, "-c", "import time; time.sleep(600)"])
    command[3] = "1" if os.getppid() != 1 else "2"  # not the parent
    assert subprocess.run(command, timeout=10, check=False).returncode == 1
