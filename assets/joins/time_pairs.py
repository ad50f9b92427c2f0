"""Which items of a stream match which anchors, as SQL over integer microseconds.

`anchors(anchor, lane, begin, until)` are what samples are made around, `stream(number, lane, begin, until)` the items
of one stream; a lane is a key, and nothing matches across lanes. An item without an end lasts a microsecond. Each
function gives SQL for (anchor, number, distance): the item begins so many microseconds after the anchor. References:
`tests/assets/test_time_join.py` compares each with a nested loop.
"""

from assets.joins.time_options import WindowSettings, instant, microseconds

_LANES = {True: "a.lane = {0}.lane AND ", False: ""}


def matching(match: str, tolerance: int | None, lanes: bool) -> str:
    """SQL for the pairs of a way to match (`assets.joins.time_options`).

    Args:
        tolerance: microseconds; null: any distance.
        lanes: whether there are several.
    """
    if match in ("overlap", "within"):
        return _overlapping(tolerance or 0, match == "within", lanes)
    return _as_of(match, tolerance, lanes)


def firsts(stream: str) -> str:
    """SQL for the items that an as-of match looks at: of those that begin at once, the first in the source."""
    return f"SELECT lane, begin, min(number) AS number FROM {stream} GROUP BY lane, begin"


def _as_of(match: str, tolerance: int | None, lanes: bool) -> str:
    before, after = (
        _LANES[lanes].format(side) + f"a.begin {sign} {side}.begin" for side, sign in (("p", ">="), ("q", "<="))
    )
    one = f"WITH one AS MATERIALIZED ({firsts('stream')})"
    limit = "" if tolerance is None else f" WHERE abs(distance) <= {tolerance}"
    if match == "nearest":
        earlier = "q.begin IS NULL OR a.begin - p.begin <= q.begin - a.begin"
        return f"""
            {one}, both_sides AS (
              SELECT anchor, a.begin, {earlier} AS earlier, p.number AS p_number, p.begin AS p_begin,
                q.number AS q_number, q.begin AS q_begin
              FROM anchors a ASOF LEFT JOIN one p ON {before} ASOF LEFT JOIN one q ON {after}
            )
            SELECT anchor, number, distance FROM (
              SELECT anchor, CASE WHEN earlier THEN p_number ELSE q_number END AS number,
                CASE WHEN earlier THEN p_begin ELSE q_begin END - begin AS distance FROM both_sides)
            {limit or "WHERE number IS NOT NULL"}
        """
    side, condition = ("p", before) if match == "backward" else ("q", after)
    return f"""
        {one} SELECT anchor, number, distance FROM (
          SELECT anchor, {side}.number AS number, {side}.begin - a.begin AS distance
          FROM anchors a ASOF JOIN one {side} ON {condition})
        {limit}
    """


def _overlapping(tolerance: int, begins: bool, lanes: bool) -> str:
    """The anchor is widened by the tolerance on both sides. Lanes lie one after the other on one line, further apart
    than the tolerance, so that two comparisons of times are all there is: DuckDB sorts for these, and of equal lanes it
    would compare all with all."""
    end = "begin + 1" if begins else "greatest(until, begin + 1)"
    laid_out = ""
    if lanes:
        laid_out = f"""
            spans AS (
              SELECT lane, min(begin) AS low, max(greatest(until, begin + 1)) - low + {2 * tolerance + 2} AS width
              FROM (SELECT lane, begin, until FROM anchors UNION ALL SELECT lane, begin, until FROM stream)
              GROUP BY lane
            ), places AS (SELECT lane, sum(width) OVER (ORDER BY lane) - width - low AS place FROM spans),
        """
    placed = "JOIN places USING (lane)" if lanes else ""
    place = "place::BIGINT" if lanes else "0"
    return f"""
        WITH {laid_out}
        a AS MATERIALIZED (
          SELECT anchor, begin, begin + {place} - {tolerance} AS low,
            greatest(until, begin + 1) + {place} + {tolerance} AS high
          FROM anchors {placed}
        ), s AS MATERIALIZED (
          SELECT number, begin, begin + {place} AS low, {end} + {place} AS high FROM stream {placed}
        )
        SELECT anchor, number, s.begin - a.begin AS distance FROM a JOIN s ON s.low < a.high AND a.low < s.high
    """


def in_windows(windows: WindowSettings, begins: bool) -> str:
    """SQL for (number, lane, begin, window): the windows in which an item begins, or that it overlaps."""
    length, stride = microseconds(windows.length), microseconds(windows.every)
    origin = 0 if windows.origin is None else instant(windows.origin)
    last = "begin" if begins else "greatest(until, begin + 1) - 1"
    first_window = _floor_divided(f"(begin - {origin} - {length})", stride)
    last_window = _floor_divided(f"({last} - {origin})", stride)
    return f"""
        SELECT number, lane, begin, {origin} + stride * {stride} AS window_begin FROM (
          SELECT number, lane, begin, unnest(range({first_window} + 1, {last_window} + 1)) AS stride FROM stream)
    """


def _floor_divided(value: str, by: int) -> str:
    return f"(({value} - (({value} % {by}) + {by}) % {by}) // {by})"
