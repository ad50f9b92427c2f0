"""Threads of this process: for steps that leave Python while they work, as decoding does."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from threadpoolctl import threadpool_limits

from assets.engines.base import Batch, Engine, Result, WorkerOptions, cores, map_in_order


class ThreadsEngine(Engine):
    Options = WorkerOptions

    def map(self, fn: Callable[[Batch], Result], batches: Iterable[Batch]) -> Iterator[Result]:
        workers = self.options.workers or cores()
        # The workers are the parallelism: more threads below them (of BLAS, OpenMP) would wait for a core, and spin.
        with threadpool_limits(1):
            yield from map_in_order(ThreadPoolExecutor(workers, thread_name_prefix="engine"), workers, fn, batches)
