"""Trainings side by side in processes of their own.

A small model gains little from a second thread, so on a CPU two trainings at once are done sooner than one after the
other.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

from training.children import die_with_parent

Log = Callable[[str], None]
_to_parent: list[Any] = []  # in a worker: the end of a pipe that takes its log lines, and the lock of who writes


def side_by_side(
    work: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], workers: int, done: Callable[[Any], None], log: Log
) -> None:
    """Calls ``work(*task, log)`` for every task, `workers` at once, the first ones first; `done` gets the results.

    All that can be pickled may cross. What a task logs arrives line by line. After a failure the other tasks go on,
    since what they make is kept; then the first error is raised.
    """
    context = multiprocessing.get_context("spawn")
    lines, writer = context.Pipe(duplex=False)
    listener = threading.Thread(target=_listen, args=(lines, log), daemon=True)
    listener.start()
    errors: list[BaseException] = []
    try:
        begin = os.getpid(), writer, context.Lock()
        with ProcessPoolExecutor(workers, context, _begin, begin) as pool, _stopping_workers():
            for future in as_completed([pool.submit(_call, work, task) for task in tasks]):
                if error := future.exception():
                    errors.append(error)
                else:
                    done(future.result())
    finally:
        writer.close()  # the last of its ends; a message would need the lock, which a worker may have died with
        listener.join()
    if errors:
        raise errors[0]


def _listen(lines: Any, log: Log) -> None:
    while True:
        try:
            line = lines.recv()
        except (EOFError, OSError):  # all who write are gone, one perhaps within a line
            return
        log(line)


def _begin(parent: int, writer: Any, lock: Any) -> None:
    die_with_parent(parent)
    _to_parent.extend((writer, lock))


def _call(work: Callable[..., Any], task: tuple[Any, ...]) -> Any:
    return work(*task, _say)


def _say(line: str) -> None:
    writer, lock = _to_parent
    with lock:
        writer.send(line)


@contextlib.contextmanager
def _stopping_workers() -> Iterator[None]:
    """Within, SIGTERM ends the workers as it ends a training that runs alone: its run in MLflow is KILLED."""

    def terminate(number: int, _frame: object) -> None:
        for worker in multiprocessing.active_children():
            worker.terminate()
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
