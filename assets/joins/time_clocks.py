"""The clocks of a join in time: what is added to the times of each source."""

import json
from collections.abc import Mapping
from typing import Any

import duckdb

from assets.clocks import Clock, ClockError, estimate
from assets.findings import Finding, note
from assets.joins.columns import Columns, cell
from assets.joins.time_options import ClockSettings, TimeOptions, instant, microseconds
from assets.lake import sql_string


def set_clocks(connection: duckdb.DuckDBPyConnection, options: TimeOptions, columns: Columns) -> None:
    """Macro `shift(t, source)`: microseconds that are added to a time of that source; what was estimated goes into the
    table `report`.

    Raises:
        ValueError: a clock shall be estimated, and the events do not say it.
    """
    clocks = {name: _given(clock) for name, clock in options.clocks.items() if not clock.estimate}
    _define(connection, clocks)
    for name, settings in options.clocks.items():
        if settings.estimate:
            clocks[name] = _estimated(connection, name, settings, options, columns)
            said = {"source": name, "to": settings.to or options.base, **clocks[name].figures()}
            connection.execute("INSERT INTO report VALUES ('clock', $1)", [json.dumps(said)])
            note(connection, Finding("clock", clock_words(said)))
    _define(connection, clocks)


def clock_words(said: Mapping[str, Any]) -> str:
    """What was estimated, in a line. Args: `said`: as the report has it."""
    drift = f" and {said['drift_ppm']:.2f} ppm"
    if said["drift_error_ppm"] is not None:
        drift += f" (± {1.96 * said['drift_error_ppm']:.2f})"
    return (
        f"to the times of source {said['source']} {said['offset']:+.4f} s (± {1960 * said['offset_error']:.2g} ms)"
        f"{drift if said['drift_ppm'] else ''} are added, as {said['events']:,} of its {said['of']:,} events say that "
        f"{said['to']} saw, too (at {said['origin'][:19]}Z)"
    )


def _given(settings: ClockSettings) -> Clock:
    origin = 0 if settings.origin is None else instant(settings.origin)
    return Clock(microseconds(settings.offset or 0.0), settings.drift or 0.0, origin)


def _define(connection: duckdb.DuckDBPyConnection, clocks: dict[str, Clock]) -> None:
    cases = " ".join(f"WHEN {sql_string(name)} THEN {clock.sql('t')}" for name, clock in clocks.items())
    shift = f"CASE source {cases} ELSE 0 END" if clocks else "0"
    connection.execute(f"CREATE OR REPLACE TEMP MACRO shift(t, source) AS {shift}")


def _estimated(
    connection: duckdb.DuckDBPyConnection, name: str, settings: ClockSettings, options: TimeOptions, columns: Columns
) -> Clock:
    reference = settings.to or options.base
    assert reference is not None
    for source in (name, reference):
        if settings.events is not None and settings.events not in columns.sources.get(source, ()):
            raise ValueError(f"align.on.clocks.{name}: source {source} has no column {settings.events!r} (events)")
    marks = []
    for source in (reference, name):
        mark = "''" if settings.events is None else _cell(columns, source, settings.events)
        marks.append(f"WHEN {sql_string(source)} THEN {mark}")
    events = connection.execute(
        f"""
        WITH events AS (
          SELECT source, lane_key, begin + shift(begin, source) AS begin, CASE source {" ".join(marks)} END AS mark
          FROM timed t JOIN items i USING (number, source)
          WHERE source IN ($1, $2) AND t.begin IS NOT NULL AND lane_key IS NOT NULL
        )
        SELECT source = $1 AS is_reference, begin, dense_rank() OVER (ORDER BY lane_key, mark) AS kind
        FROM events WHERE mark IS NOT NULL
        """,
        [reference, name],
    ).fetchnumpy()
    is_reference = events["is_reference"].astype(bool)
    times, kinds = events["begin"].astype("int64"), events["kind"].astype("int64")
    try:
        return estimate(
            (times[is_reference], kinds[is_reference]),
            (times[~is_reference], kinds[~is_reference]),
            within=settings.within,
            max_drift=settings.max_drift if settings.drift is None else 0.0,
            drift=settings.drift,
            accuracy=settings.accuracy,
        )
    except ClockError as error:
        raise ValueError(
            f"align.on.clocks.{name}: the clock of {name} cannot be told from {reference}: {error}"
        ) from None


def _cell(columns: Columns, source: str, column: str) -> str:
    return "i.key" if columns.settings[source].keys == (column,) else cell("i.attributes", column)
