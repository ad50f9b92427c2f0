"""What a join in time has found: of each stream what matched and how far apart, and why the rest did not."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import duckdb

from assets.findings import Finding, note
from assets.joins.time_options import TimeOptions
from assets.lake import sql_among, sql_string
from assets.source_settings import SourceSettings
from assets.view_settings import Places, Views

_BINS = 41  # of the differences in time
_MANY = 0.5  # of a stream's items: when so many match nothing, that is told
_FEW = 10  # keys or stretches of time: a hash parts fewer unevenly
_UNITS = ((86_400_000_000, "d"), (3_600_000_000, "h"), (60_000_000, "min"), (1_000_000, "s"), (1000, "ms"), (1, "µs"))


def span_words(microseconds: float) -> str:
    """350 ms, 1.5 h: the largest unit of which it is two or more, or one exactly."""
    value = abs(microseconds)
    size, unit = next(((s, u) for s, u in _UNITS if value >= 2 * s or value == s), _UNITS[-1])
    return f"{value / size:.4g} {unit}"


def _span(value: str) -> str:
    """`span_words` as SQL."""
    cases = " ".join(
        f"WHEN abs({value}) >= {2 * size} OR abs({value}) = {size} THEN printf('%.4g {unit}', abs({value}) / {size})"
        for size, unit in _UNITS
    )
    return f"CASE {cases} ELSE abs({value}) || ' µs' END"


def _by_source(sources: Sequence[SourceSettings], value: Callable[[str], str]) -> str:
    return f"CASE x.source {' '.join(f'WHEN {sql_string(s.name)} THEN {value(s.name)}' for s in sources)} END"


def tell_left_over(
    connection: duckdb.DuckDBPyConnection,
    options: TimeOptions,
    sources: Sequence[SourceSettings],
    several: Mapping[str, Places],
) -> None:
    """Table `gaps(number, source, match, tolerance, gap)`: how far after an item that matches nothing the nearest
    anchor begins that it may match; and `left_over`, of the items that are in no sample."""
    viewed = sql_among("modality", [m for m, places in several.items() if isinstance(places, Views)])
    match = _by_source(sources, lambda name: sql_string(options.match_of(name)))
    tolerance = _by_source(sources, lambda name: str("NULL" if (t := options.tolerance_of(name)) is None else t))
    connection.execute(
        f"""
        CREATE TABLE gaps AS
        WITH x AS (
          SELECT number, source, p.lane, p.begin FROM placed p ANTI JOIN pairs USING (number)
          WHERE usable AND source IS DISTINCT FROM {sql_string(options.base) if options.base else "NULL"}
        ), points AS (SELECT DISTINCT lane, begin FROM anchors)
        SELECT number, source, {match} AS match, {tolerance} AS tolerance,
          CASE WHEN match = 'backward' THEN q.begin - x.begin WHEN match = 'forward' THEN p.begin - x.begin
            WHEN q.begin IS NULL OR x.begin - p.begin <= q.begin - x.begin THEN p.begin - x.begin
            ELSE q.begin - x.begin END AS gap
        FROM x ASOF LEFT JOIN points p ON p.lane = x.lane AND x.begin >= p.begin
          ASOF LEFT JOIN points q ON q.lane = x.lane AND x.begin <= q.begin;
        CREATE TABLE left_over AS
        WITH unused AS (
          SELECT t.* FROM timed t ANTI JOIN filled f ON f.number = t.number WHERE status = 'present'
        ), doubles AS (
          SELECT number FROM (
            SELECT number, min(number) FILTER (usable) OVER (PARTITION BY source, view, lane, begin) AS first
            FROM placed)
          WHERE first < number
        ), judged AS (
          SELECT item_id, u.number, gap, tolerance, match, c.why AS clock, CASE WHEN u.begin IS NULL THEN 'no_time'
            WHEN u.lane_key IS NULL THEN 'no_key' WHEN c.why IS NOT NULL THEN 'no_clock'
            WHEN {viewed} AND u.view IS NULL THEN 'no_view'
            WHEN g.number IS NULL THEN CASE WHEN {viewed} THEN 'same_view' ELSE 'over_several' END
            WHEN {options.fixed is not None} THEN 'outside'
            WHEN gap IS NULL OR match IN ('overlap', 'within') OR abs(gap) > tolerance THEN 'no_partner'
            WHEN d.number IS NOT NULL THEN 'same_time' ELSE 'passed_over' END AS reason
          FROM unused u LEFT JOIN gaps g USING (number) LEFT JOIN doubles d USING (number)
          LEFT JOIN unclocked c ON c.source = u.source AND c.lane_key = u.lane_key
        )
        SELECT item_id, told.reason, told.why FROM (
          SELECT item_id, arg_min({{'reason': reason, 'why': {_why(options)}}}, number) AS told FROM judged GROUP BY 1)
        """
    )


def _why(options: TimeOptions) -> str:
    """SQL for the sentence of a reason that knows more than its code does."""
    base = sql_string(options.base or "the windows")
    return f"""
        CASE reason WHEN 'no_clock' THEN clock WHEN 'no_partner' THEN {base} || CASE WHEN gap IS NOT NULL THEN
            ' is too far: the nearest item begins ' || {_span("gap")} ||
            CASE WHEN gap < 0 THEN ' earlier' ELSE ' later' END
            || coalesce(' (allowed: ' || {_span("tolerance")} || ')', '')
          WHEN match = 'backward' THEN ' has nothing after it' WHEN match = 'forward' THEN ' has nothing before it'
          ELSE ' has nothing of its key' END
        END
    """


def note_streams(
    connection: duckdb.DuckDBPyConnection, options: TimeOptions, sources: Sequence[SourceSettings]
) -> None:
    """Puts what is known of each stream into the table `report`, and what is odd into the findings.

    Raises:
        ValueError: the base has no item that can be placed, or of no stream anything matches.
    """
    (anchors,) = _row(connection, "SELECT count(*) FROM anchors")
    if not anchors:
        what = "no item" if options.base is None else f"source {options.base} is the base, and no item of it"
        more = (" and a key (align.on.key)" if options.key else "") + (" within a window" if options.fixed else "")
        raise ValueError(f"align: {what} has a time{more}")
    streams = [_stream(connection, options, s.name) for s in sources if s.name != options.base]
    far = [s for s in streams if s["unmatched"] > _MANY * s["items"] and s["anchors"] <= _MANY * anchors]
    if far and not any(stream["matched"] for stream in streams):
        raise ValueError(f"align: nothing matches: {'; '.join(_far_words(s, options) for s in far)}")
    for stream in far:
        note(connection, Finding("unmatched_times", _far_words(stream, options)))
    (groups,) = _row(connection, "SELECT count(DISTINCT split_key) FROM joined")
    if groups < _FEW < anchors:
        what = "keys (align.on.key)" if options.split_block is None else "stretches of time"
        advice = "align.on.block says how many seconds of time stay on one side"
        note(
            connection,
            Finding("few_groups", f"{anchors:,} samples are of {groups} {what} that are not parted: {advice}"),
        )
    said = {"base": options.base, "anchors": anchors, "streams": streams}
    connection.execute("INSERT INTO report VALUES ('time', $1)", [json.dumps(said)])


def _stream(connection: duckdb.DuckDBPyConnection, options: TimeOptions, source: str) -> dict[str, Any]:
    """Of one stream, in seconds: how much later than its anchor an item begins, as least, quantiles and greatest and as
    a histogram of [from, width, pairs]; and how far, in the middle, the nearest anchor of the others is."""
    (items,) = _row(connection, "SELECT count(*) FROM timed WHERE status = 'present' AND source = $1", source)
    pairs, matched, anchors, low, high, quantiles = _row(
        connection,
        "SELECT count(*), count(DISTINCT number), count(DISTINCT anchor), min(distance), max(distance), "
        "quantile_disc(distance, [0.05, 0.25, 0.5, 0.75, 0.95]) FROM pairs WHERE source = $1",
        source,
    )
    (gap,) = _row(connection, "SELECT quantile_disc(gap, 0.5) FROM gaps WHERE source = $1", source)
    width = max(1, -(-(high - low + 1) // _BINS)) if pairs else 1
    bins = connection.execute(
        "SELECT (distance - $2) // $3, count(*) FROM pairs WHERE source = $1 GROUP BY 1 ORDER BY 1",
        [source, low or 0, width],
    ).fetchall()
    tolerance = options.tolerance_of(source)
    return {
        "source": source,
        "match": options.match_of(source),
        "tolerance": None if tolerance is None else tolerance / 1e6,
        "items": items,
        "matched": matched,
        "unmatched": items - matched,
        "anchors": anchors,
        "pairs": pairs,
        "quantiles": [q / 1e6 for q in (low, *quantiles, high)] if pairs else [],
        "histogram": [[(low + number * width) / 1e6, width / 1e6, count] for number, count in bins],
        "gap": None if gap is None else gap / 1e6,
    }


def _far_words(stream: dict[str, Any], options: TimeOptions) -> str:
    tolerance = "" if stream["tolerance"] is None else f" within {span_words(stream['tolerance'] * 1e6)}"
    said = f"source {stream['source']}: {stream['unmatched']:,} of {stream['items']:,} items match nothing of "
    said += f"{options.base or 'the windows'}{tolerance}"
    if (gap := stream["gap"]) is None:
        return said
    near = f"the nearest begins {span_words(gap * 1e6)} {'earlier' if gap < 0 else 'later'} in the middle"
    return f"{said}; {near}: are zones and clocks right (`zone` of the sources, align.on.clocks)?"


def _row(connection: duckdb.DuckDBPyConnection, query: str, *parameters: Any) -> tuple[Any, ...]:
    return connection.execute(query, list(parameters)).fetchall()[0]
