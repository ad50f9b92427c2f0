"""Threads or processes, whichever suits the step: what a project that names no engine gets."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from assets.engines.base import Batch, Engine, Result, WorkerOptions, cores
from assets.engines.processes import ProcessesEngine
from assets.engines.threads import ThreadsEngine

_WORTH_PROCESSES = 5_000  # items; of fewer, threads have done half before processes have started


class LocalEngine(Engine):
    """Processes for many items of a step that works in Python itself, where threads wait for each other; else
    threads, which start at once and hand over what they made without copying it."""

    Options = WorkerOptions

    def suited(self, in_python: bool, items: int, most: int | None = None, runs_model: bool = False) -> Engine:
        options = self.options
        if most is not None and options.workers is None:
            options = replace(options, workers=min(cores(), most))
        is_worth = in_python and items >= _WORTH_PROCESSES and (options.workers or cores()) > 1
        return (ProcessesEngine if is_worth else ThreadsEngine)(options)

    def map(self, fn: Callable[[Batch], Result], batches: Iterable[Batch]) -> Iterator[Result]:
        return ThreadsEngine(self.options).map(fn, batches)
