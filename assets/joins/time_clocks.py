"""The clocks of a join in time: what is added to the times of each source, or of each key of it."""

import json
from collections.abc import Mapping
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from assets.clocks import Clock, ClockError, Events, estimate
from assets.findings import SHOWN, Finding, listed, note, quoted
from assets.joins.columns import Columns, cell
from assets.joins.time_options import ClockSettings, KeyClock, TimeOptions, instant, microseconds
from assets.lake import sql_string

# Of rows of `timed` as `t`, by the tables that `set_clocks` makes.
WITH_CLOCKS = "LEFT JOIN clocks ON clocks.source = t.source AND clocks.lane_key = t.lane_key"
_LISTED = 100  # keys whose clocks the report holds
_CLOCKS = pa.schema(
    [
        ("source", pa.string()),
        ("lane_key", pa.string()),
        ("ahead", pa.int64()),
        ("drift", pa.float64()),
        ("origin", pa.int64()),
    ]
)


def by_clock(time: str) -> str:
    """SQL: a time with what is added to it, in microseconds."""
    return f"{time} + coalesce(ahead + round(drift * ({time} - origin))::BIGINT, 0)"


def set_clocks(connection: duckdb.DuckDBPyConnection, options: TimeOptions, columns: Columns) -> None:
    """Tables `clocks(source, lane_key, ahead, drift, origin)`: each time t of a source and key becomes
    t + ahead + drift * (t - origin), in microseconds; and `unclocked(source, lane_key, why)`: keys of which that
    could not be estimated.
    What was estimated goes into the table `report`.

    Raises:
        ValueError: a clock shall be estimated, and the events do not say it; or those of no key do.
    """
    connection.register("no_clocks", _CLOCKS.empty_table())
    connection.execute("CREATE TABLE clocks AS FROM no_clocks")
    connection.execute("CREATE TABLE unclocked(source VARCHAR, lane_key VARCHAR, why VARCHAR)")
    keys = [key for (key,) in connection.sql("SELECT lane_key FROM lanes ORDER BY lane").fetchall()]
    # Those that are given first: another one may be estimated by their source.
    for name, settings in sorted(options.clocks.items(), key=lambda item: item[1].estimate):
        if not settings.estimate:
            whole = _given(KeyClock(offset=settings.offset or 0.0, drift=settings.drift or 0.0, origin=settings.origin))
            _add(connection, name, dict.fromkeys(keys, whole) | {k: _given(c) for k, c in settings.keys.items()})
            if unknown := sorted(settings.keys.keys() - set(keys)):
                words = f"align.on.clocks.{name}.keys has {listed(unknown)}, which no item has as its key"
                note(connection, Finding("unknown_clock", words))
            continue
        events = _events(connection, name, settings, options, columns)
        said: dict[str, Any] = {"source": name, "to": settings.to or options.base}
        if settings.each:
            said |= _estimate_each(connection, name, settings, events, keys)
        else:
            clock = _estimated(name, settings, said["to"], *_parted(events))
            _add(connection, name, dict.fromkeys(keys, clock))
            said |= clock.figures()
        connection.execute("INSERT INTO report VALUES ('clock', $1)", [json.dumps(said)])
        note(connection, Finding("clock", clock_words(said)))


def clock_words(said: Mapping[str, Any]) -> str:
    """What was estimated, in a line. Args: `said`: as the report has it."""
    if "each" in said:
        return _each_words(said)
    drift = f" and {said['drift_ppm']:.2f} ppm"
    if said["drift_error_ppm"] is not None:
        drift += f" (± {1.96 * said['drift_error_ppm']:.2f})"
    return (
        f"to the times of source {said['source']} {said['offset']:+.4f} s (± {1960 * said['offset_error']:.2g} ms)"
        f"{drift if said['drift_ppm'] else ''} are added, as {said['events']:,} of its {said['of']:,} events say that "
        f"{said['to']} saw, too (at {said['origin'][:19]}Z)"
    )


def _each_words(said: Mapping[str, Any]) -> str:
    shown = "; ".join(
        f"{quoted(key)} {clock['offset']:+.4f} s (± {1960 * clock['offset_error']:.2g} ms, {clock['events']:,} events)"
        for key, clock in list(said["each"].items())[:SHOWN]
    )
    words = (
        f"to the times of source {said['source']} each of {said['known']:,} keys has its own offset added, from "
        f"{said['least']:+.4f} to {said['most']:+.4f} s, at worst ± {1960 * said['worst_error']:.2g} ms, as events say "
        f"that {said['to']} saw, too: {shown}"
    )
    refused = [f"{quoted(key)} ({why})" for key, why in list(said["refused"].items())[:SHOWN]]
    more = f"; of {said['unknown']:,} keys the clock is not known, and nothing is matched: {'; '.join(refused)}"
    return words + (more if refused else "")


def _given(settings: KeyClock) -> Clock:
    origin = 0 if settings.origin is None else instant(settings.origin)
    return Clock(microseconds(settings.offset), settings.drift, origin)


def _add(connection: duckdb.DuckDBPyConnection, source: str, clocks: Mapping[str, Clock]) -> None:
    rows = [
        {"source": source, "lane_key": key, "ahead": clock.offset, "drift": clock.drift, "origin": clock.origin}
        for key, clock in clocks.items()
    ]
    connection.register("more_clocks", pa.Table.from_pylist(rows, _CLOCKS))
    connection.execute("INSERT INTO clocks FROM more_clocks")


def _events(
    connection: duckdb.DuckDBPyConnection, name: str, settings: ClockSettings, options: TimeOptions, columns: Columns
) -> dict[str, np.ndarray]:
    """Of the events of a source and of the one whose clock counts: is_reference, time (by that clock), kind, and the
    number of the key, by which they are sorted."""
    reference = settings.to or options.base
    assert reference is not None
    for source in (name, reference):
        if settings.events is not None and settings.events not in columns.sources.get(source, ()):
            raise ValueError(f"align.on.clocks.{name}: source {source} has no column {settings.events!r} (events)")
    marks = []
    for source in (reference, name):
        mark = "''" if settings.events is None else _cell(columns, source, settings.events)
        marks.append(f"WHEN {sql_string(source)} THEN {mark}")
    return connection.execute(
        f"""
        WITH events AS (
          SELECT t.source, t.lane_key, {by_clock("t.begin")} AS begin, CASE t.source {" ".join(marks)} END AS mark
          FROM timed t JOIN items i USING (number) {WITH_CLOCKS}
          WHERE t.source IN ($1, $2) AND t.begin IS NOT NULL AND t.lane_key IS NOT NULL
        )
        SELECT source = $1 AS is_reference, begin, dense_rank() OVER (ORDER BY lane_key, mark) AS kind, lane
        FROM events JOIN lanes USING (lane_key) WHERE mark IS NOT NULL ORDER BY lane
        """,
        [reference, name],
    ).fetchnumpy()


def _parted(events: Mapping[str, np.ndarray], some: slice = slice(None)) -> tuple[Events, Events]:
    """The events of the reference, and those of the other source."""
    is_reference = events["is_reference"][some].astype(bool)
    times, kinds = (events[name][some].astype("int64") for name in ("begin", "kind"))
    return (times[is_reference], kinds[is_reference]), (times[~is_reference], kinds[~is_reference])


def _estimated(name: str, settings: ClockSettings, to: Any, reference: Events, other: Events, among: int = 1) -> Clock:
    try:
        return estimate(
            reference,
            other,
            within=settings.within,
            max_drift=settings.max_drift if settings.drift is None else 0.0,
            drift=settings.drift,
            accuracy=settings.accuracy,
            among=among,
        )
    except ClockError as error:
        raise ValueError(f"align.on.clocks.{name}: the clock of {name} cannot be told from {to}: {error}") from error


def _estimate_each(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    settings: ClockSettings,
    events: Mapping[str, np.ndarray],
    keys: list[str],
) -> dict[str, Any]:
    """Adds the clock of each key whose events say it; of the others they are `unclocked`. Returns what is told of them.

    Raises:
        ValueError: there is none.
    """
    lanes, starts = np.unique(events["lane"], return_index=True)
    bounds = zip(lanes.tolist(), starts.tolist(), [*starts[1:].tolist(), len(events["lane"])], strict=True)
    parts = [(keys[lane - 1], *_parted(events, slice(start, end))) for lane, start, end in bounds]
    mine = [(key, reference, other) for key, reference, other in parts if len(other[0])]
    clocks, refused = dict[str, Clock](), dict[str, str]()
    for key, reference, other in mine:
        try:
            clocks[key] = _estimated(name, settings, "", reference, other, among=len(mine))
        except ValueError as error:
            refused[key] = str(error.__cause__)
    if not clocks:
        why = f"{next(iter(refused))}: {next(iter(refused.values()))}" if refused else "it has no events with a key"
        raise ValueError(f"align.on.clocks.{name}: the clock of no key can be told; {why}")
    there = "SELECT DISTINCT lane_key FROM timed WHERE source = $1 AND lane_key IS NOT NULL ORDER BY 1"
    for (key,) in connection.execute(there, [name]).fetchall():
        if key not in clocks:
            refused.setdefault(key, "it has no events")
    _add(connection, name, clocks)
    rows = [(name, key, f"has a clock that cannot be told: {why}") for key, why in refused.items()]
    if rows:
        connection.executemany("INSERT INTO unclocked VALUES ($1, $2, $3)", rows)
    offsets = [clock.offset / 1e6 for clock in clocks.values()]
    return {
        "known": len(clocks),
        "unknown": len(refused),
        "least": min(offsets),
        "most": max(offsets),
        "worst_error": max(clock.offset_error or 0.0 for clock in clocks.values()) / 1e6,
        "each": {key: clock.figures() for key, clock in list(clocks.items())[:_LISTED]},
        "refused": dict(list(refused.items())[:_LISTED]),
    }


def _cell(columns: Columns, source: str, column: str) -> str:
    return "i.key" if columns.settings[source].keys == (column,) else cell("i.attributes", column)
