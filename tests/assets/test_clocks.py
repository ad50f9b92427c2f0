"""Clocks: what is planted is found, and what the events do not say is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.clocks import Clock, ClockError, estimate
from assets.joins.time_clocks import by_clock
from assets.lake import open_duckdb

START = 1_714_564_800_000_000


def stamped(seconds: np.ndarray, marks: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    kinds = np.zeros(len(seconds), np.int64) if marks is None else marks
    return np.round(seconds * 1e6).astype(np.int64) + START, kinds


def shuffled(times: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """With the same pauses in another order."""
    pauses = np.diff(np.sort(times))
    random.shuffle(pauses)
    return times.min() + np.concatenate([[0], np.cumsum(pauses)])


def farthest(clock: Clock, times: np.ndarray, offset: float, drift: float) -> float:
    """Seconds between what is added and what should be, wherever there are events."""
    since = np.array([times.min(), times.max()])
    added = clock.offset + clock.drift * (since - clock.origin)
    return float(np.abs(added - (offset * 1e6 + drift * (since - START))).max()) / 1e6


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    events=st.sampled_from([30, 100, 400]),
    span=st.sampled_from([600.0, 3600.0, 86_400.0]),
    offset=st.floats(-50, 50),
    drift=st.floats(-100e-6, 100e-6),
    jitter=st.sampled_from([0.0, 0.001, 0.004]),
    share=st.sampled_from([0.7, 1.0]),
)
def test_what_is_planted_is_found(
    seed: int, events: int, span: float, offset: float, drift: float, jitter: float, share: float
) -> None:
    """Either source misses some events, and sees others of its own."""
    random = np.random.default_rng(seed)
    moments = random.uniform(0, span, events)
    seen, heard = (
        np.concatenate([moments[random.random(events) < share], random.uniform(0, span, events // 5)])
        + random.normal(0, jitter, 1)
        for _ in range(2)
    )
    seen, heard = (times + random.normal(0, jitter, len(times)) for times in (seen, heard))
    other = stamped((heard - offset) / (1 + drift))
    clock = estimate(stamped(seen), other)
    # The two clocks read off the same moments are apart by their common jitter at most.
    assert farthest(clock, other[0], offset, drift) < 0.01 + 3 * jitter
    assert clock.events >= 0.3 * events and clock.chance < 1e-6


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    events=st.sampled_from([10, 60, 500]),
    what=st.sampled_from(["pauses", "times", "bursts", "heavy pauses", "marks"]),
)
def test_shuffled_streams_are_refused(seed: int, events: int, what: str) -> None:
    random = np.random.default_rng(seed)
    times = random.uniform(0, 6 * events, events)
    if what == "bursts":
        times = (random.uniform(0, 300 * events, (events, 1)) + random.exponential(1, (events, 8))).ravel()
    if what == "heavy pauses":
        times = np.cumsum(random.lognormal(0, 2, events))
    others = random.uniform(0, 6 * events, events) if what == "times" else shuffled(times, random)
    marks, order = np.arange(events), random.permutation(events)
    told = stamped(times[order], marks), stamped(times[np.roll(order, 1)] + 0.25, marks)  # none its own
    pair = told if what == "marks" else (stamped(times), stamped(others))
    with pytest.raises(ClockError):
        estimate(*pair)


@pytest.mark.parametrize(
    ("reference", "other", "says"),
    [
        (np.arange(3.0), np.arange(3.0), "there are 3 and 3 events, and 4 of each are the least"),
        (np.arange(0, 100, 0.1), np.arange(0, 100, 0.1) + 0.03, "no offset makes more events agree than chance"),
        (np.arange(9) ** 2.0, np.arange(9) ** 2.0 + 4000, "fewer than 4 events have one of the other source within"),
    ],
)
def test_why_it_is_refused(reference: np.ndarray, other: np.ndarray, says: str) -> None:
    with pytest.raises(ClockError, match=says):
        estimate(stamped(reference), stamped(other))


def test_events_that_repeat_with_gaps_are_refused_unless_they_are_marked() -> None:
    random = np.random.default_rng(1)
    beats = np.sort(random.choice(150, 80, replace=False)) * 7.0
    marks = np.arange(80)
    assert estimate(stamped(beats, marks), stamped(beats - 0.25, marks)).offset == 250_000
    again = np.sort(random.choice(150, 80, replace=False)) * 7.0
    with pytest.raises(ClockError):
        estimate(stamped(beats), stamped(again - 0.25))


def test_clocks_that_were_set_meanwhile_or_jitter_too_much_are_refused() -> None:
    random = np.random.default_rng(0)
    moments = np.sort(random.uniform(0, 3600, 300))
    jumped = moments + np.where(moments > 2700, 5.0, 0.0)
    with pytest.raises(ClockError, match="keep no one offset and drift"):
        estimate(stamped(moments), stamped(jumped))
    coarse = moments[:40] + random.normal(0, 0.02, 40)
    with pytest.raises(ClockError, match=r"tell it to .* ms only, and 1 ms is asked for"):
        estimate(stamped(moments), stamped(coarse), accuracy=0.001)


def test_a_known_drift_leaves_the_offset_alone() -> None:
    moments = np.sort(np.random.default_rng(0).uniform(0, 1800, 50))
    clock = estimate(stamped(moments), stamped((moments - 2.5) / (1 + 50e-6)), drift=50e-6)
    assert clock.drift == 50e-6 and clock.drift_error is None
    assert farthest(clock, stamped(moments)[0], 2.5, 50e-6) < 1e-4


@settings(max_examples=10, deadline=None)
@given(
    st.integers(-(10**12), 10**12), st.floats(-1e-3, 1e-3), st.integers(START - 10**12, START + 10**12),
    st.lists(st.integers(START - 10**13, START + 10**13), min_size=1, max_size=5),
)  # fmt: skip
def test_sql_adds_what_the_clock_says(offset: int, drift: float, origin: int, times: list[int]) -> None:
    with open_duckdb() as connection:
        clock = "SELECT unnest($1::BIGINT[]) AS t, $2::BIGINT AS ahead, $3::DOUBLE AS drift, $4::BIGINT AS origin"
        query = f"SELECT {by_clock('t')} FROM ({clock})"
        found = [t for (t,) in connection.execute(query, [times, offset, drift, origin]).fetchall()]
    assert all(abs(got - (t + offset + drift * (t - origin))) <= 1 for got, t in zip(found, times, strict=True))
