"""What runs the steps on batches: threads or processes of this machine, in order and with bounded memory."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Literal, Protocol, TypeVar

from assets.settings import EngineSettings

Batch = TypeVar("Batch")
Result = TypeVar("Result")

# What numeric libraries read when they are loaded.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Engine(Protocol):
    def map(self, fn: Callable[[Batch], Result], batches: Iterable[Batch]) -> Iterator[Result]:
        """`fn` of every batch, in their order. The first error is raised, and nothing further is started."""
        ...


def make_engine(settings: EngineSettings) -> Engine:
    return LocalEngine(settings.kind, settings.workers or _cores())


@dataclass(frozen=True)
class LocalEngine:
    kind: Literal["threads", "processes"]
    workers: int

    def map(self, fn: Callable[[Batch], Result], batches: Iterable[Batch]) -> Iterator[Result]:
        """At most two batches a worker are under way or wait to be taken, however slow the consumer is.

        With processes `fn` and the batches are pickled, and a main module is imported again in each.
        """
        executor = self._executor()
        pending: deque[Future[Result]] = deque()
        try:
            for batch in batches:
                pending.append(executor.submit(fn, batch))
                if len(pending) >= 2 * self.workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:  # also where the consumer stops early
            executor.shutdown(wait=True, cancel_futures=True)

    def _executor(self) -> Executor:
        if self.kind == "threads":
            return ThreadPoolExecutor(self.workers, thread_name_prefix="engine")
        # A forked copy of a process that has threads (Dagster's, DuckDB's) can hang: start afresh.
        return ProcessPoolExecutor(self.workers, get_context("spawn"), initializer=_one_thread_each)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _one_thread_each() -> None:
    """The workers are the parallelism: what is loaded later in this process uses one thread."""
    for name in _THREAD_VARIABLES:
        os.environ[name] = "1"
