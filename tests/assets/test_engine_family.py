"""Every kind of engine keeps the order, bounds what is in flight, and stops at the first error; a user's own too."""

import multiprocessing
import os
import textwrap
import threading
import time
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

from assets.catalog import ENGINES
from assets.engines.base import Engine, cores
from orchestration.project import ProjectError, load

OWN = textwrap.dedent(
    '''
    """An engine that a user brings: one batch after the other, where it is called."""

    from dataclasses import dataclass

    from assets.engines.base import Engine


    class SerialEngine(Engine):
        @dataclass(frozen=True, kw_only=True)
        class Options(Engine.Options):
            pause: float = 0.0  # seconds between batches

        def map(self, fn, batches):
            yield from map(fn, batches)
    '''
)
KINDS = [*ENGINES.names(), "family_test_engine:SerialEngine"]
SLOW = {"ray": pytest.mark.slow}  # a cluster takes seconds to start


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    from tests.assets.ray_cluster import clustered  # its nodes import this file, and have no others of the tests

    with clustered() as cluster:
        yield cluster.address


@pytest.fixture(params=[pytest.param(kind, marks=SLOW.get(kind, ())) for kind in KINDS])
def engine(request, tmp_path, monkeypatch) -> Engine:
    (tmp_path / "family_test_engine.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    options = {} if ":" in request.param else {"workers": 2}
    if request.param == "ray":
        options["address"] = request.getfixturevalue("cluster")
    return ENGINES.make(ENGINES.choose({"kind": request.param, "batch_size": 3, **options}))


def threads(workers: int) -> Engine:
    return ENGINES.make(ENGINES.choose({"kind": "threads", "workers": workers}))


def slow_first(number: int) -> int:
    time.sleep(0.02 if number % 3 == 0 else 0)
    return number * number


def fail_at_five(number: int) -> int:
    if number == 5:
        raise KeyError("five")
    return number


def process_id(_: int) -> tuple[int, str | None]:
    return os.getpid(), os.environ.get("OMP_NUM_THREADS")


class Counted:
    """Numbers, and how many of them were drawn."""

    def __init__(self, count: int) -> None:
        self.count, self.drawn = count, 0

    def __iter__(self) -> Iterator[int]:
        for number in range(self.count):
            self.drawn += 1
            yield number


def test_results_come_in_order(engine):
    assert list(engine.map(slow_first, range(20))) == [n * n for n in range(20)]
    assert list(engine.map(slow_first, [])) == []
    assert engine.options.batch_size == 3


def test_a_slow_consumer_bounds_what_is_drawn(engine):
    batches = Counted(100)
    results = engine.map(abs, batches)
    assert next(results) == 0
    time.sleep(0.05)
    assert batches.drawn <= 4
    assert list(results) == list(range(1, 100))


def test_the_first_error_is_raised_and_the_rest_left(engine):
    batches, drawn_on = Counted(1000), []
    with pytest.raises(KeyError, match="five"):
        drawn_on.extend(engine.map(fail_at_five, batches))
    assert batches.drawn < 12


def test_an_error_of_the_reader_is_raised(engine):
    def batches() -> Iterator[int]:
        yield 1
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        list(engine.map(abs, batches()))


def test_stopping_early_ends_the_workers(engine):
    before = threading.active_count(), len(multiprocessing.active_children())
    results = engine.map(abs, iter(range(10**9)))
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert (threading.active_count(), len(multiprocessing.active_children())) == before


@settings(max_examples=25)
@given(count=st.integers(0, 20), workers=st.integers(1, 5))
def test_threads_keep_the_order_whatever_their_number(count: int, workers: int):
    assert list(threads(workers).map(slow_first, range(count))) == [n * n for n in range(count)]


def test_threads_run_side_by_side():
    meet = threading.Barrier(3, timeout=10)
    assert len(list(threads(3).map(lambda _: meet.wait(), range(3)))) == 3


def test_processes_are_others_with_one_thread_each():
    engine = ENGINES.make(ENGINES.choose({"kind": "processes", "workers": 2}))
    for process, count in engine.map(process_id, range(4)):
        assert process != os.getpid()
        assert count == "1"
    with pytest.raises(ValueError, match="invalid literal"):
        list(engine.map(partial(int, base=10), ["1", "x", "3"]))


@pytest.mark.parametrize(
    ("options", "in_python", "items", "kind"),
    [
        ({"workers": 2}, True, 100_000, "processes"),
        ({"workers": 2}, True, 1_000, "threads"),
        ({"workers": 2}, False, 100_000, "threads"),
        ({"workers": 1}, True, 100_000, "threads"),
    ],
)
def test_what_nobody_names_is_chosen_for_the_step(options, in_python, items, kind):
    suited = ENGINES.make(ENGINES.choose({"kind": "local", **options})).suited(in_python, items)
    assert type(suited) is ENGINES.load(kind)
    assert suited.options.workers == options["workers"]
    assert suited.suited(in_python, items, 1).options.workers == options["workers"], "what is said is used"
    unsaid = ENGINES.make(ENGINES.choose("local"))
    assert [unsaid.suited(in_python, items, most).options.workers for most in (None, 1)] == [None, 1]
    named = threads(2)
    assert named.suited(in_python, items, 1) is named, "what is named is used"


def test_threads_share_the_cores_with_no_threads_of_blas():
    matrix = np.ones((400, 400))

    def threads_of_blas(_: int) -> set[int]:
        matrix @ matrix
        return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

    before = threads_of_blas(0)
    assert list(threads(2).map(threads_of_blas, range(3))) == [{1}] * 3
    assert threads_of_blas(0) == before, "and afterwards it has its threads again"


def test_without_workers_there_is_one_for_each_core():
    meet = threading.Barrier(cores(), timeout=10)
    engine = ENGINES.make(ENGINES.choose("threads"))
    assert len(list(engine.map(lambda _: meet.wait(), range(cores())))) == cores()


@pytest.mark.parametrize(
    ("words", "kind", "options"),
    [
        ("processes", "processes", {"workers": None, "batch_size": 64}),
        ("{kind: threads, workers: 2, batch_size: 8}", "threads", {"workers": 2, "batch_size": 8}),
        ("{workers: 3}", "local", {"workers": 3, "batch_size": 64}),
        ('"family_test_engine:SerialEngine"', "family_test_engine:SerialEngine", {"pause": 0.0, "batch_size": 64}),
    ],
)
def test_the_project_file_names_it(tiny, tmp_path, monkeypatch, words, kind, options):
    (tmp_path / "family_test_engine.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    project = load(tiny, [f"engine={words}"])
    assert project.engine.kind == kind
    assert vars(ENGINES.make(project.engine).options) == options


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("thread", "engine is 'thread', expected one of local, threads, processes, ray.* did you mean threads"),
        ("{workers: 0}", "engine local: workers is 0, expected null or at least 1"),
        ("{kind: processes, worker: 1}", "engine processes has no option 'worker'; .* did you mean workers"),
        ("{batch_size: many}", "engine local: batch_size is 'many'"),
        ("{kind: [1]}", "engine is "),
        ('"nowhere:Engine"', "cannot be imported"),
    ],
)
def test_a_wrong_one_is_named(tiny, words, says):
    with pytest.raises(ProjectError, match=says):
        load(tiny, [f"engine={words}"])
