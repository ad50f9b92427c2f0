"""Trainings side by side in processes of their own.

A small model gains little from a second thread, so on a CPU two trainings at once are done sooner than one after the
other.
"""

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from training.children import die_with_parent, how_ended

Log = Callable[[str], None]
_to_parent: list[Any] = []  # in a worker: the end of a pipe that takes its log lines, and the lock of who writes


def side_by_side(
    work: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], workers: int, done: Callable[[Any], None], log: Log
) -> None:
    """Calls ``work(*task, log)`` for every task, `workers` at once, the first ones first; `done` gets the results.

    All that can be pickled may cross. What a task logs arrives line by line. After a failure the other tasks go on,
    since what they make is kept; then the error of the first task that has one is raised, whichever came first. Where a
    process is killed, all end.

    Raises:
        RuntimeError: a process was killed; the message says how.
    """
    context = multiprocessing.get_context("spawn")
    lines, writer = context.Pipe(duplex=False)
    listener = threading.Thread(target=_listen, args=(lines, log), daemon=True)
    listener.start()
    errors: dict[int, BaseException] = {}  # by task
    processes: set[Any] = set()  # noted here, since the pool forgets those that are gone
    try:
        begin = os.getpid(), writer, context.Lock()
        with ProcessPoolExecutor(workers, context, _begin, begin) as pool, _stopping_workers():
            futures = {}
            for number, task in enumerate(tasks):
                futures[pool.submit(_call, work, task)] = number
                processes |= set(multiprocessing.active_children())
            pool.submit(int)  # a pool watches its newest process only once it has been called again
            for future in as_completed(futures):
                if error := future.exception():
                    errors[futures[future]] = error
                else:
                    done(future.result())
    except BrokenProcessPool as error:  # so early that no other task was taken
        errors[-1] = error
    finally:
        writer.close()  # the last of its ends; a message would need the lock, which a worker may have died with
        listener.join()
    if not errors:
        return
    first = errors[min(errors)]
    if isinstance(first, BrokenProcessPool):
        raise RuntimeError(f"a process that trained {_killed(processes)}") from first
    raise first


def _killed(processes: Collection[Any]) -> str:
    """How the one ended that broke the pool, which then ended the others by SIGTERM."""
    asked = -signal.SIGTERM, 128 + signal.SIGTERM
    return how_ended(next((p.exitcode for p in processes if p.exitcode and p.exitcode not in asked), asked[0]))


def _listen(lines: Any, log: Log) -> None:
    while True:
        try:
            line = lines.recv()
        except (EOFError, OSError):  # all who write are gone, one perhaps within a line
            return
        log(line)


def _begin(parent: int, writer: Any, lock: Any) -> None:
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent has it, too, and ends its workers
    _to_parent.extend((writer, lock))


def _call(work: Callable[..., Any], task: tuple[Any, ...]) -> Any:
    try:
        return work(*task, _say)
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # it could not cross, and would be taken for a process that was killed
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
        raise


def _say(line: str) -> None:
    writer, lock = _to_parent
    with lock:
        writer.send(line)


@contextlib.contextmanager
def _stopping_workers() -> Iterator[None]:
    """Within, SIGTERM and Ctrl-C end the workers as they end a training that runs alone: as KILLED in MLflow."""

    def terminate(number: int, _frame: object) -> None:
        for worker in multiprocessing.active_children():
            worker.terminate()
        raise SystemExit(128 + number)

    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = [signal.signal(number, terminate) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)
