"""The contract of an engine: what runs a step on batches."""

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any, TypeVar

from training.validation import check

Batch = TypeVar("Batch")
Result = TypeVar("Result")


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Engine(ABC):
    """Runs a function on batches, somewhere.

    - Results come in the order of the batches, however long each takes.
    - The batches are drawn as they are needed: however slow the consumer, few are under way or wait to be taken.
    - The first error is raised, and nothing further is started; so too where the consumer stops early.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """A kind adds its own."""

        batch_size: int = 64  # items a batch

        def __post_init__(self) -> None:
            check(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")

    def __init__(self, options: Any) -> None:
        """
        Args:
            options: an `Options` of this kind.
        """
        self.options = options

    def suited(self, in_python: bool, items: int, most: int | None = None, runs_model: bool = False) -> "Engine":
        """The engine that runs a step; a kind that is one for all is so itself.

        Args:
            in_python: the step works in Python itself most of the time (`Modality.in_python`).
            items: how many it is for.
            most: so many workers of one machine are of use, if that is known.
            runs_model: the step runs a network, for which there may be GPUs.
        """
        return self

    def reads(self, uri: str) -> bool:
        """Whether what lies there can be read where the function runs; else its bytes have to come with the batch."""
        return True

    @abstractmethod
    def map(self, fn: Callable[[Batch], Result], batches: Iterable[Batch]) -> Iterator[Result]:
        """`fn` of every batch."""


@dataclass(frozen=True, kw_only=True)
class WorkerOptions(Engine.Options):
    """Of engines that run on this machine."""

    workers: int | None = None  # default: the machine's cores

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.workers is None or self.workers >= 1, "workers", self.workers, "null or at least 1")


def map_in_order(
    executor: Executor, workers: int, fn: Callable[[Batch], Result], batches: Iterable[Batch]
) -> Iterator[Result]:
    """What the contract asks, by an executor, which it ends: two batches a worker are under way or wait."""
    pending: deque[Future[Result]] = deque()
    try:
        for batch in batches:
            pending.append(executor.submit(fn, batch))
            if len(pending) >= 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:  # also where the consumer stops early
        executor.shutdown(wait=True, cancel_futures=True)
