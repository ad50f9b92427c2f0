"""Work in several processes at once; `work` and the like are what crosses to them, so they are plain functions."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from training.workers import side_by_side

CODE = Path(__file__).resolve().parents[2]
SLEEPERS = """
import time
from training.workers import side_by_side

def sleep(number, log):
    log(f"sleeping {number}")
    time.sleep(600)

if __name__ == "__main__":
    side_by_side(sleep, [(1,), (2,)], 2, print, lambda line: print(line, flush=True))
"""


def work(number: int, log) -> tuple[int, int]:
    if number == 2:
        raise ValueError("two is wrong")
    log(f"at {number}")
    return number, os.getpid()


def meet(folder: str, number: int, log) -> int:
    """Ends only if another call is there at the same time."""
    (Path(folder) / str(number)).touch()
    deadline = time.monotonic() + 60
    while len(list(Path(folder).iterdir())) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return number


def test_results_and_lines_arrive_and_a_failure_lets_the_others_finish():
    done, lines = [], []
    with pytest.raises(ValueError, match="two is wrong"):
        side_by_side(work, [(1,), (2,), (3,), (4,)], 2, done.append, lines.append)
    assert sorted(number for number, _ in done) == [1, 3, 4]
    assert os.getpid() not in {process for _, process in done}
    assert sorted(lines) == ["at 1", "at 3", "at 4"]


def fail_last_first(folder: str, number: int, log) -> None:
    """Of three tasks the last fails first."""
    deadline = time.monotonic() + 60
    while number < 3 and not (Path(folder) / str(number + 1)).exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (Path(folder) / str(number)).touch()
    raise ValueError(f"{number} is wrong")


def test_of_several_failures_that_of_the_first_task_is_told(tmp_path):
    """The model comes before its baselines, and has the least room for a prompt."""
    with pytest.raises(ValueError, match="1 is wrong"):
        side_by_side(fail_last_first, [(str(tmp_path), n) for n in (1, 2, 3)], 3, print, print)


class Odd(Exception):
    """Cannot cross from one process to another."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


def fail_oddly(_number: int, _log) -> None:
    raise Odd("salt", "pepper")


def die(number: int, _log) -> None:
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


def test_a_process_that_is_killed_is_named_with_its_signal():
    with pytest.raises(RuntimeError, match=r"^a process that trained was killed by signal 9 \(SIGKILL\): most li"):
        side_by_side(die, [(1,), (2,)], 2, print, print)


def test_an_error_that_cannot_cross_is_told_all_the_same():
    with pytest.raises(RuntimeError, match=r"^Odd: salt and pepper$"):
        side_by_side(fail_oddly, [(1,), (2,)], 2, print, print)


def test_tasks_run_at_the_same_time(tmp_path):
    done = []
    side_by_side(meet, [(str(tmp_path), 1), (str(tmp_path), 2)], 2, done.append, print)
    assert sorted(done) == [1, 2]


WITHIN_A_LINE = SLEEPERS.replace("    time", "    if number == 2:\n        workers._to_parent[1].acquire()\n    time")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("text", [SLEEPERS, WITHIN_A_LINE], ids=["asleep", "within a line"])
@pytest.mark.slow
def test_workers_end_with_the_process_that_started_them(tmp_path, text, number):
    program = tmp_path / "sleepers.py"
    program.write_text("from training import workers\n" + text)
    env = {**os.environ, "PYTHONPATH": str(CODE)}
    with subprocess.Popen([sys.executable, str(program)], env=env, stdout=subprocess.PIPE, text=True) as started:
        try:
            assert started.stdout is not None
            assert {started.stdout.readline().strip() for _ in range(2)} == {"sleeping 1", "sleeping 2"}
            workers = psutil.Process(started.pid).children(recursive=True)
            started.send_signal(number)
            started.wait(timeout=20)
            _, alive = psutil.wait_procs(workers, timeout=20)
            assert not alive
        finally:
            started.kill()
