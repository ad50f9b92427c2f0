"""Processes of this machine: for steps that work in Python itself."""

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from threadpoolctl import threadpool_limits

from assets.engines.base import Batch, Engine, Result, WorkerOptions, cores, map_in_order
from training.children import die_with_parent

# What numeric libraries read when they are loaded.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class ProcessesEngine(Engine):
    """The function and the batches are pickled, and a main module is imported again in each process."""

    Options = WorkerOptions

    def map(self, fn: Callable[[Batch], Result], batches: Iterable[Batch]) -> Iterator[Result]:
        workers = self.options.workers or cores()
        # A forked copy of a process that has threads (Dagster's, DuckDB's) can hang: start afresh.
        executor = ProcessPoolExecutor(workers, get_context("spawn"), _begin, (os.getpid(),))
        return map_in_order(executor, workers, fn, batches)


def _begin(parent: int) -> None:
    """The workers are the parallelism: numeric libraries in one use one thread. It ends with its parent."""
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, too, which ends its workers
    for name in _THREAD_VARIABLES:
        os.environ[name] = "1"
    threadpool_limits(1)  # of what is loaded already: the parent's main module is
