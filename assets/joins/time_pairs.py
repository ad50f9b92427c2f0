"""Which items of a stream match which anchors, as SQL over integer microseconds.

`anchors(anchor, lane, begin, until)` are what samples are made around, `stream(number, lane, begin, until)` the items
of one stream, in the order of lane, begin and number; a lane is a key, and nothing matches across lanes. An item
without an end lasts a microsecond. Each function gives SQL for (anchor, number, distance): the item begins so many
microseconds after the anchor. `tests/assets/test_time_join.py` compares each with a nested loop.
"""

from assets.joins.time_options import WindowSettings, instant, microseconds

AS_OF = ("nearest", "backward", "forward")
_MOST_WINDOWS = 1_000_000  # that one item is in
_LANES = {True: "a.lane = {0}.lane AND ", False: ""}


def matching(match: str, tolerance: int | None, lanes: bool, around: tuple[int, int] | None = None) -> str:
    """SQL for the pairs of a way to match (`assets.joins.time_options`).

    Args:
        tolerance: microseconds; null: any distance.
        lanes: whether there are several.
        around: from where to where, microseconds from its beginning, an anchor reaches; null: as long as it lasts. Not
            for what is nearest.
    """
    if match in ("overlap", "within"):
        return _overlapping(tolerance or 0, match == "within", lanes, around)
    return _as_of(match, tolerance, lanes)


def _as_of(match: str, tolerance: int | None, lanes: bool) -> str:
    before, after = (
        _LANES[lanes].format(side) + f"a.begin {sign} {side}.begin" for side, sign in (("p", ">="), ("q", "<="))
    )
    # Of those that begin at once, which are neighbours, the first in the source.
    other = "begin IS DISTINCT FROM lag(begin) OVER ()" + (" OR lane <> lag(lane) OVER ()" if lanes else "")
    if match == "nearest":
        earlier = "q.begin IS NULL OR a.begin - p.begin <= q.begin - a.begin"
        joined = f"anchors a ASOF LEFT JOIN one p ON {before} ASOF LEFT JOIN one q ON {after}"
        number, begin = (f"CASE WHEN {earlier} THEN p.{x} ELSE q.{x} END" for x in ("number", "begin"))
    else:
        side, condition = ("p", before) if match == "backward" else ("q", after)
        joined = f"anchors a ASOF JOIN one {side} ON {condition}"
        number, begin = f"{side}.number", f"{side}.begin"
    return f"""
        WITH one AS (SELECT lane, begin, number FROM stream QUALIFY {other})
        SELECT * FROM (SELECT anchor, {number} AS number, {begin} - a.begin AS distance FROM {joined})
        WHERE {"number IS NOT NULL" if tolerance is None else f"abs(distance) <= {tolerance}"}
    """


def _overlapping(tolerance: int, begins: bool, lanes: bool, around: tuple[int, int] | None) -> str:
    """The anchor is widened by the tolerance on both sides. Time is cut into stretches as long as the items last on
    average, so that these lie in two of them on average: only what shares a stretch is compared, and a pair counts in
    the first one that it shares."""
    start, stop = ("begin", "greatest(until, begin + 1)") if around is None else (f"begin + {a}" for a in around)
    end = "begin + 1" if begins else "greatest(until, begin + 1)"
    first, last = floor_divided("low", "width"), floor_divided("(high - 1)", "width")
    shared = floor_divided("greatest(a.low, s.low)", "a.width")
    return f"""
        WITH all_a AS (
          SELECT anchor, lane, begin, {start} - {tolerance} AS low, {stop} + {tolerance} AS high
          FROM anchors
        ), all_s AS (SELECT number, lane, begin, begin AS low, {end} AS high FROM stream),
        a AS ({_within("all_a", "all_s")}), s AS ({_within("all_s", "all_a")}),
        mean AS (
          SELECT greatest(1, (sum(high - low) // count(*))::BIGINT) AS width
          FROM (SELECT low, high FROM a UNION ALL SELECT low, high FROM s)
        ),
        parted_a AS (SELECT a.*, width, unnest(range({first}, {last} + 1)) AS stretch FROM a, mean),
        parted_s AS (SELECT s.*, unnest(range({first}, {last} + 1)) AS stretch FROM s, mean)
        SELECT anchor, number, s.begin - a.begin AS distance FROM parted_a a JOIN parted_s s
          ON a.stretch = s.stretch {"AND a.lane = s.lane" if lanes else ""}
        WHERE s.low < a.high AND a.low < s.high AND a.stretch = {shared}
    """


def _within(these: str, others: str) -> str:
    """SQL: these, as far as there is something of the others, so that what never ends is no longer than that."""
    return f"""
        SELECT these.* REPLACE (greatest(low, least_low) AS low, least(high, greatest_high) AS high)
        FROM {these} these, (SELECT min(low) AS least_low, max(high) AS greatest_high FROM {others})
        WHERE low < greatest_high AND least_low < high
    """


def in_windows(windows: WindowSettings, begins: bool) -> str:
    """SQL for (number, lane, begin, window): the windows in which an item begins, or that it overlaps."""
    length, stride = microseconds(windows.length), microseconds(windows.every)
    origin = 0 if windows.origin is None else instant(windows.origin)
    last = "begin" if begins else "greatest(until, begin + 1) - 1"
    first_window = floor_divided(f"(begin - {origin} - {length})", stride)
    last_window = floor_divided(f"({last} - {origin})", stride)
    endless = (
        f"error('align.on.windows: an item is in over {_MOST_WINDOWS:,} of them: correct its end, or make them longer')"
    )
    end = f"CASE WHEN {last_window} - {first_window} > {_MOST_WINDOWS} THEN {endless} ELSE {last_window} + 1 END"
    return f"""
        SELECT number, lane, begin, {origin} + stride * {stride} AS window_begin FROM (
          SELECT number, lane, begin, unnest(range({first_window} + 1, {end})) AS stride FROM stream)
    """


def floor_divided(value: str, by: int | str) -> str:
    return f"(({value} - (({value} % {by}) + {by}) % {by}) // {by})"
