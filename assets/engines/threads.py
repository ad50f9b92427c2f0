"""Threads of this process: for steps that leave Python while they work, as decoding does."""

import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

from assets.engines.base import Batch, Engine, Result, WorkerOptions, cores, map_in_order


class ThreadsEngine(Engine):
    Options = WorkerOptions

    def map(self, fn: Callable[[Batch], Result], batches: Iterable[Batch]) -> Iterator[Result]:
        workers = self.options.workers or cores()
        # The workers are the parallelism: more threads below them (of BLAS, OpenMP) would wait for a core, and spin.
        with threadpool_limits(1), _one_thread_of_torch():
            yield from map_in_order(ThreadPoolExecutor(workers, thread_name_prefix="engine"), workers, fn, batches)


@contextmanager
def _one_thread_of_torch() -> Iterator[None]:
    """New threads take the number from torch itself, whatever OpenMP was told; where it was not loaded, no step runs
    a network."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
