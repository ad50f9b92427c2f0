"""Rows that wait are answered together: decoded and featurized by threads, then one forward pass for many requests.

    request -> read (threads, in parallel) -> queue -> answer (one thread, up to `batch` rows at once)

While one batch is answered the next one gathers. An idle model takes a row at once, unless others are being read: it
waits a moment for them, since rows cost less together. And reading waits a moment for the model: they would fight for
the interpreter, and both take several times as long. Neither waits longer than `_MOMENT`, so what takes long to read
or to answer holds up nobody.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any

from orchestration.serving.rows import Record, Refused

_MOMENT = 0.03  # seconds


class Batcher:
    """Answers the rows of many requests. All but `read` and `answer` happens in the event loop's thread.

    Args:
        read: a record and its number within its request to what `answer` takes; called by several threads.
        answer: such rows to as many answers, in their order; called by one thread.
        batch: rows that are answered together; 1: one by one.
        most: rows that may be under way; more are refused until some are answered.
        readers: threads that read; half of them at most for one request, so that a large one holds up no small one.
    """

    def __init__(
        self,
        read: Callable[[Record, int], Any],
        answer: Callable[[list[Any]], list[Any]],
        batch: int,
        most: int,
        readers: int,
    ) -> None:
        self._read_one, self._answer = read, answer
        self._batch, self._most, self._readers = batch, most, readers
        self._under_way = self._being_read = 0
        self._resting = threading.Event()  # the model
        self._resting.set()
        self._patient_until = 0.0  # monotonic; so long reading waits for the model
        self._waiting: asyncio.Queue[tuple[Any, asyncio.Future[Any]]] = asyncio.Queue()
        self._reading = ThreadPoolExecutor(readers, "read")
        self._model = ThreadPoolExecutor(1, "model")

    async def __call__(self, records: Sequence[Record]) -> list[Any]:
        """The answers of a request. Cancelled, its rows are dropped unless the model has them already.

        Raises:
            Refused: too many rows are under way.
            Exception: what `read` or `answer` raises.
        """
        if self._under_way and self._under_way + len(records) > self._most:
            raise Refused(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{self._under_way} rows are under way, and the limit is {self._most}: try again later",
            )
        self._under_way += len(records)
        try:
            answers = []
            for row in await self._read(records):
                answers.append(asyncio.get_running_loop().create_future())
                self._waiting.put_nowait((row, answers[-1]))
            return await asyncio.gather(*answers)
        finally:
            self._under_way -= len(records)

    async def _read(self, records: Sequence[Record]) -> list[Any]:
        """In parallel; of several rows that cannot be read the first is named."""
        gone = threading.Event()

        def read(start: int, part: Sequence[Record]) -> list[Any]:
            self._resting.wait(max(0.0, self._patient_until - time.monotonic()))
            return [self._read_one(record, n) for n, record in enumerate(part, start) if not gone.is_set()]

        length = -(-len(records) // max(1, self._readers // 2)) or 1
        loop = asyncio.get_running_loop()
        parts = [
            loop.run_in_executor(self._reading, read, start, records[start : start + length])
            for start in range(0, len(records), length)
        ]
        self._being_read += len(records)
        try:
            done = await asyncio.gather(*parts, return_exceptions=True)
        finally:
            self._being_read -= len(records)
            gone.set()
        rows: list[Any] = []
        for part in done:
            if isinstance(part, BaseException):
                raise part
            rows += part
        return rows

    async def run(self) -> None:
        """Answers what waits, until it is cancelled."""
        while True:
            batch = [await self._waiting.get()]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_MOMENT):
                    while len(batch) < self._batch and (self._being_read or not self._waiting.empty()):
                        batch.append(await self._waiting.get())
            wanted = [(row, future) for row, future in batch if not future.cancelled()]
            if wanted:
                await self._answer_batch(*zip(*wanted, strict=True))

    async def _answer_batch(self, rows: Sequence[Any], futures: Sequence[asyncio.Future[Any]]) -> None:
        """Sets the futures. Where a batch fails its rows are tried one by one: one request is no other's fault."""
        try:
            answers = await asyncio.get_running_loop().run_in_executor(self._model, self._work, list(rows))
            if len(answers) != len(rows):
                raise RuntimeError(f"the model gave {len(answers)} answers to {len(rows)} rows")
        except Exception as error:
            if len(rows) == 1:
                with contextlib.suppress(asyncio.InvalidStateError):
                    futures[0].set_exception(error)
                return
            for row, future in zip(rows, futures, strict=True):
                if not future.cancelled():
                    await self._answer_batch([row], [future])
            return
        for future, answer in zip(futures, answers, strict=True):
            if not future.cancelled():
                future.set_result(answer)

    def _work(self, rows: list[Any]) -> list[Any]:
        self._patient_until = time.monotonic() + _MOMENT
        self._resting.clear()
        try:
            return self._answer(rows)
        finally:
            self._resting.set()
