"""The engine keeps the order, bounds what is in flight, and stops at the first error."""

import os
import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest
from assets.engine import make_engine
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.settings import EngineSettings


def slow_first(number: int) -> int:
    time.sleep(0.02 if number % 3 == 0 else 0)
    return number * number


def process_id(_: int) -> tuple[int, str | None]:
    return os.getpid(), os.environ.get("OMP_NUM_THREADS")


@settings(max_examples=25, deadline=None)
@given(count=st.integers(0, 20), workers=st.integers(1, 5))
def test_results_come_in_order(count: int, workers: int) -> None:
    engine = make_engine(EngineSettings(workers=workers))
    assert list(engine.map(slow_first, range(count))) == [n * n for n in range(count)]


def test_a_slow_consumer_bounds_what_is_read() -> None:
    read = []

    def batches() -> Iterator[int]:
        for i in range(100):
            read.append(i)
            yield i

    results = make_engine(EngineSettings(workers=2)).map(lambda i: i, batches())
    assert next(results) == 0
    time.sleep(0.05)
    assert len(read) <= 4
    assert list(results) == list(range(1, 100))


def test_workers_run_side_by_side() -> None:
    meet = threading.Barrier(3, timeout=10)
    assert len(list(make_engine(EngineSettings(workers=3)).map(lambda _: meet.wait(), range(3)))) == 3


def test_the_first_error_is_raised_and_the_rest_left() -> None:
    done = []

    def fail_at_five(number: int) -> int:
        if number == 5:
            raise KeyError("five")
        done.append(number)
        return number

    results = make_engine(EngineSettings(workers=2)).map(fail_at_five, range(1000))
    with pytest.raises(KeyError, match="five"):
        list(results)
    assert len(done) < 12
    assert threading.active_count() < 20


def test_an_error_of_the_reader_is_raised() -> None:
    def batches() -> Iterator[int]:
        yield 1
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        list(make_engine(EngineSettings(workers=2)).map(lambda i: i, batches()))


def test_stopping_early_ends_the_workers() -> None:
    before = threading.active_count()
    results = make_engine(EngineSettings(workers=2)).map(lambda i: i, iter(range(10**9)))
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_processes_are_others_with_one_thread_each() -> None:
    engine = make_engine(EngineSettings(kind="processes", workers=2))
    for process, threads in engine.map(process_id, range(4)):
        assert process != os.getpid()
        assert threads == "1"
    with pytest.raises(ValueError, match="invalid literal"):
        list(engine.map(partial(int, base=10), ["1", "x", "3"]))
