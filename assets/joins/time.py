"""Items that are near in time, overlap, or fall into one window belong together (`assets.joins.time_options`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import duckdb

from assets.joins.base import Join
from assets.joins.columns import Columns, cell
from assets.joins.several import MORE, most_of, view_name
from assets.joins.time_clocks import WITH_CLOCKS, by_clock, set_clocks
from assets.joins.time_options import TimeOptions, microseconds
from assets.joins.time_outcomes import note_streams, tell_left_over
from assets.joins.time_pairs import AS_OF, floor_divided, in_windows, matching
from assets.keys import sql_key
from assets.lake import sql_among, sql_string
from assets.settings import AlignSettings
from assets.source_settings import SourceSettings
from assets.view_settings import SOURCE, Places, Views
from training.schema import MODALITIES


class TimeJoin(Join):
    Options = TimeOptions

    def __init__(self, options: TimeOptions) -> None:
        self.options = options

    def check(self, settings: AlignSettings, sources: Sequence[SourceSettings]) -> None:
        options, names = self.options, [source.name for source in sources]
        if settings.table is not None:
            raise ValueError("align.on is time, and align.table says what belongs together: leave out one of them")
        if options.base is None and options.fixed is None:
            raise ValueError(
                f"align.on is time: say around what samples are made, `base` (one of {', '.join(names)}) or windows"
            )
        named = {"base": [options.base] if options.base else [], "streams": options.streams, "clocks": options.clocks}
        named["clocks.to"] = [clock.to for clock in options.clocks.values() if clock.to]
        for place, given in named.items():
            if unknown := [name for name in given if name not in names]:
                raise ValueError(
                    f"align.on.{place} names {unknown[0]!r}, which is no source; there are {', '.join(names)}"
                )
        for name, clock in options.clocks.items():
            reference = clock.to or options.base
            if clock.estimate and reference is None:
                raise ValueError(f"align.on.clocks.{name}: say under `to` whose clock counts: there is no base")
            if clock.estimate and (
                reference == name or getattr(options.clocks.get(reference or ""), "estimate", False)
            ):
                raise ValueError(f"align.on.clocks.{name}: {reference!r} has to be a source whose clock is known")
        if not options.relative and (timeless := [s.name for s in sources if not getattr(s.options, "time", None)]):
            raise ValueError(
                f"align.on is time, and source {timeless[0]!r} says of no item when it was recorded: name its column "
                "(`time`), or, where times count from the beginning of a recording, align.on.relative: true"
            )

    def join(
        self,
        connection: duckdb.DuckDBPyConnection,
        settings: AlignSettings,
        sources: Sequence[SourceSettings],
        root: Path,
        columns: Columns,
    ) -> Columns:
        options = self.options
        _load_timed(connection, options, sources, columns)
        set_clocks(connection, options, columns)
        _load_anchors(connection, options, sources)
        for source in sources:
            if source.name != options.base and options.fixed is None:
                views = settings.views.get(source.modality)
                # Of a source with several views each is a stream of its own: what is nearest is asked of each.
                for view in [None] if views is None or views.by == SOURCE else range(1, len(views.views) + 1):
                    _match(connection, options, source.name, view)
        if options.once:
            _keep_nearest(connection)
        several = _fill_slots(connection, options, sources, settings.several)
        telling = [m for m in MODALITIES if m not in settings.allow_shared]
        _join(connection, options, {m: places for m, places in settings.several.items() if m in several}, telling)
        tell_left_over(connection, options, sources, settings.several)
        note_streams(connection, options, sources)
        connection.execute("DROP TABLE pairs; DROP TABLE filled")
        return columns


def _load_timed(
    connection: duckdb.DuckDBPyConnection,
    options: TimeOptions,
    sources: Sequence[SourceSettings],
    columns: Columns,
) -> None:
    """Table `timed`: when each item began and ended by its own clock, in microseconds since 1970, and its key."""
    keys = []
    for source in sources:
        named = options.key_of(source.name)
        there = columns.sources.get(source.name, frozenset())
        if source.name not in columns.empty and (missing := [name for name in named if name not in there]):
            raise ValueError(
                f"align.on: source {source.name} has no column {missing[0]!r} (align.on.key); it has "
                f"{', '.join(sorted(there)) or 'none'}. Where it is called otherwise there, say so under "
                f"align.on.streams.{source.name}.key"
            )
        cells = ["key" if source.keys == (name,) else cell("attributes", name) for name in named]
        keys.append(f"WHEN {sql_string(source.name)} THEN {sql_key(cells) if cells else chr(39) * 2}")
    started = "epoch_us(time)" if not options.relative else "coalesce(epoch_us(time), 0)"
    connection.execute(
        f"""
        CREATE TABLE broken_links(uri VARCHAR, line BIGINT, problem VARCHAR);
        CREATE TABLE timed AS
        SELECT number, source, modality, position, status, item_id, id, view,
          CASE source {" ".join(keys)} END AS lane_key,
          {started} + coalesce(round(start * 1e6)::BIGINT, first, 0) AS begin,
          CASE WHEN seconds IS NOT NULL THEN begin + round(seconds * 1e6)::BIGINT
            WHEN first IS NOT NULL THEN begin + last - first ELSE coalesce(epoch_us(until), begin) END AS until
        FROM (  -- a part that was refused is where its cut says
          SELECT *, CASE WHEN is_span THEN split_part(cut, '-', 1)::BIGINT END AS first,
            CASE WHEN is_span THEN split_part(cut, '-', 2)::BIGINT END AS last
          FROM (SELECT *, coalesce(regexp_full_match(cut, '[0-9]+-[0-9]+'), false) AS is_span FROM items));
        CREATE TABLE lanes AS
        SELECT lane_key, (row_number() OVER (ORDER BY lane_key))::INTEGER AS lane
        FROM (SELECT DISTINCT lane_key FROM timed WHERE lane_key IS NOT NULL);
        """
    )


def _load_anchors(
    connection: duckdb.DuckDBPyConnection, options: TimeOptions, sources: Sequence[SourceSettings]
) -> None:
    """Table `placed`: the timed items that can be matched, by the common clock. Table `anchors`: what samples are made
    around. Tables `pairs` (what matches) and `wanted` (what would, if it could be used), both empty unless there are
    windows, which are found by what falls into them."""
    connection.execute(
        f"""
        CREATE TABLE placed AS
        SELECT number, t.source, view, status = 'present' AS usable, lane, {by_clock("t.begin")} AS begin,
          {by_clock("t.until")} AS until
        FROM timed t JOIN lanes USING (lane_key) {WITH_CLOCKS} ANTI JOIN unclocked u
          ON u.source = t.source AND u.lane_key = t.lane_key
        WHERE t.begin IS NOT NULL
        ORDER BY position, lane, 6, number;
        CREATE TABLE pairs(source VARCHAR, anchor BIGINT, number BIGINT, distance BIGINT);
        CREATE TABLE wanted(source VARCHAR, anchor BIGINT)
        """
    )
    if options.fixed is None:
        connection.execute(
            "CREATE TABLE anchors AS SELECT number AS anchor, lane, begin, until, usable FROM placed WHERE source = $1",
            [options.base],
        )
        return
    length = microseconds(options.fixed.length)
    found: list[str] = []
    for source in sources:
        connection.execute(
            f"CREATE OR REPLACE TEMP VIEW stream AS FROM placed WHERE source = {sql_string(source.name)}"
        )
        windows = in_windows(options.fixed, options.match_of(source.name) == "within")
        name = f"in_windows_{len(found)}"
        connection.execute(
            f"CREATE TEMP TABLE {name} AS SELECT {sql_string(source.name)} AS source, * FROM ({windows})"
        )
        found.append(name)
    everything = " UNION ALL ".join(f"SELECT * FROM {name}" for name in found)
    connection.execute(
        f"""
        CREATE TABLE anchors AS
        SELECT row_number() OVER (ORDER BY lane, window_begin) AS anchor, lane, window_begin AS begin,
          window_begin + {length} AS until, true AS usable
        FROM (SELECT DISTINCT lane, window_begin FROM ({everything}));
        CREATE TEMP TABLE fallen AS
        SELECT w.source, anchor, number, w.begin - a.begin AS distance
        FROM ({everything}) w JOIN anchors a ON a.lane = w.lane AND a.begin = w.window_begin;
        INSERT INTO pairs SELECT f.* FROM fallen f JOIN placed USING (number) WHERE usable;
        INSERT INTO wanted SELECT DISTINCT f.source, anchor FROM fallen f JOIN placed USING (number) WHERE NOT usable;
        DROP TABLE fallen; {"; ".join(f"DROP TABLE {name}" for name in found)}
        """
    )


def _match(connection: duckdb.DuckDBPyConnection, options: TimeOptions, source: str, view: int | None) -> None:
    """Adds the pairs of one stream, and which anchors would have one if an item could be used.

    Args:
        view: the stream is of the items of this view only.
    """
    (lanes,) = connection.sql("SELECT count(*) FROM lanes").fetchall()[0]
    name = sql_string(source)
    mine = f"source = {name}" + ("" if view is None else f" AND view = {view}")
    match = options.match_of(source)
    found = matching(match, options.tolerance_of(source), lanes > 1, options.around)
    # As-of, what cannot be used counts where it would have been taken; else all of it does.
    for which, into, taken in (
        ("usable", "pairs", "anchor, number, distance FROM ({0})"),
        ("true" if match in AS_OF else "NOT usable", "wanted", "anchor FROM ({0}) SEMI JOIN refused USING (number)"),
    ):
        connection.execute(
            f"CREATE OR REPLACE TEMP VIEW refused AS SELECT number FROM placed WHERE {mine} AND NOT usable;"
            "CREATE OR REPLACE TEMP VIEW stream AS "
            f"SELECT number, lane, begin, until FROM placed WHERE {mine} AND {which}"
        )
        needed = "stream" if into == "pairs" else "refused"
        (count,) = connection.sql(f"SELECT count(*) FROM {needed}").fetchall()[0]
        if count:
            connection.execute(f"INSERT INTO {into} SELECT {name}, {taken.format(found)}")


def _keep_nearest(connection: duckdb.DuckDBPyConnection) -> None:
    """Of the pairs of one item the nearest; of two that are as near that of the earlier anchor."""
    connection.execute(
        """
        CREATE OR REPLACE TABLE pairs AS
        SELECT p.* FROM pairs p JOIN anchors a USING (anchor)
        QUALIFY row_number() OVER (PARTITION BY number ORDER BY abs(distance), a.begin, anchor) = 1
        """
    )


def _fill_slots(
    connection: duckdb.DuckDBPyConnection,
    options: TimeOptions,
    sources: Sequence[SourceSettings],
    places: Mapping[str, Places],
) -> set[str]:
    """Table `filled(anchor, modality, number, rank)`: the items of each sample; of a modality first the base's own,
    then by the order of the sources and of time, as many as `places` says, or one; or the first of each view, in the
    order of the views. Returns the modalities of which a sample may have several."""
    connection.execute("CREATE TABLE filled(anchor BIGINT, modality VARCHAR, number BIGINT, rank BIGINT)")
    several = set[str]()
    for m in MODALITIES:
        streams = [s.name for s in sources if s.modality == m and s.name != options.base]
        has_base = any(s.name == options.base and s.modality == m for s in sources)
        of_base = "SELECT anchor, anchor AS number, true AS is_base FROM anchors WHERE usable"
        of_streams = f"SELECT anchor, number, false AS is_base FROM pairs WHERE {sql_among('source', streams)}"
        found = " UNION ALL ".join([*([of_base] if has_base else []), *([of_streams] if streams else [])])
        if not found:
            continue
        rank = "1 AS rank"
        is_one = all(options.match_of(name) in AS_OF for name in streams)
        has_views = isinstance(places.get(m), Views)
        if has_views or has_base + len(streams) > 1 or (streams and not is_one):
            several |= {m} & places.keys()
            found = f"FROM ({found}) JOIN timed USING (number)"
            order = "is_base DESC, position, begin, number"
            if has_views:
                first = f"row_number() OVER (PARTITION BY anchor, view ORDER BY {order}) = 1"
                found = f"FROM (SELECT * {found} WHERE view IS NOT NULL QUALIFY {first})"
            rank = f"row_number() OVER (PARTITION BY anchor ORDER BY view, {order}) AS rank"
            found = f"SELECT *, {rank} {found} QUALIFY rank <= {most_of(places.get(m, 1))}"
            rank = "rank"
        connection.execute(f"INSERT INTO filled SELECT anchor, '{m}', number, {rank} FROM ({found})")
    return several


def _join(
    connection: duckdb.DuckDBPyConnection, options: TimeOptions, several: Mapping[str, Places], telling: Sequence[str]
) -> None:
    """Table `joined`.

    Args:
        several: the modalities of which a sample may have more than one item, and how many.
        telling: those whose items may not be in samples of several splits.
    """
    block = options.split_block
    stretch = "NULL::BIGINT" if block is None else floor_divided("a.begin", block)
    lane = "nullif(lane_key, '')"
    keyed = block is not None and options.key
    split = "concat_ws(' ', a.lane_key, {0})" if keyed else "coalesce(({0})::VARCHAR, a.lane_key)"
    named = lane if options.fixed is not None else "i.key"
    when = "strftime(make_timestamp(a.begin), '%Y-%m-%dT%H:%M:%S.%fZ')"
    when = "printf('%.6f', a.begin / 1e6)" if options.relative else when
    slots, joins = [], []
    for m in MODALITIES:
        more = f"{m}_more.more" if m in several else f"NULL::{MORE}"
        there = f"CASE WHEN w.{m} THEN 'incomplete' ELSE 'present' END" if m in several else "'present'"
        views = f"{m}_more.views" if m in several else "NULL::VARCHAR[]"
        slots.append(
            f"{m}_slot.item_id AS {m}_item, {m}_slot.id AS {m}_id, {more} AS {m}_more, {views} AS {m}_views, CASE "
            f"WHEN {m}_slot.id IS NOT NULL THEN {there} WHEN w.{m} THEN 'quarantined' ELSE 'absent' END AS {m}_status"
        )
        of_modality = "SELECT anchor, item_id, id, view, rank FROM filled f JOIN timed t USING (number) "
        of_modality += f"WHERE f.modality = '{m}' AND t.modality = '{m}'"
        joins.append(f"LEFT JOIN ({of_modality} AND rank = 1) {m}_slot ON {m}_slot.anchor = a.anchor")
        if m in several:
            listed = "list({'item': item_id, 'id': id} ORDER BY rank) FILTER (rank > 1) AS more"
            name = view_name(several, sql_string(m))
            listed += f", list({name} ORDER BY rank) FILTER (view IS NOT NULL) AS views"
            joins.append(
                f"LEFT JOIN (SELECT anchor, {listed} FROM ({of_modality}) GROUP BY anchor) {m}_more "
                f"ON {m}_more.anchor = a.anchor"
            )
    lacking = ", ".join(f"bool_or(modality = '{m}') AS {m}" for m in MODALITIES)
    connection.execute(
        f"""
        CREATE TABLE stretches AS
        SELECT a.anchor, lane_key, {stretch} AS stretch, concat_ws('@', {named}, {when}) AS name, i.unit
        FROM anchors a JOIN lanes USING (lane) LEFT JOIN items i ON i.number = a.anchor;
        CREATE TABLE beside AS  -- the stretches that a sample's items are in, too, through other samples
        WITH shared AS (
          SELECT number, list(DISTINCT stretch ORDER BY stretch) AS stretches FROM filled JOIN stretches USING (anchor)
          WHERE {sql_among("modality", telling)} GROUP BY 1 HAVING min(stretch) <> max(stretch)
        )
        SELECT anchor, list_distinct(flatten(list(stretches))) AS stretches
        FROM filled JOIN shared USING (number) GROUP BY 1;
        CREATE TABLE joined AS
        WITH lacking AS (
          SELECT anchor, {lacking} FROM (
            SELECT w.anchor, modality FROM wanted w JOIN (SELECT DISTINCT source, modality FROM items) USING (source)
            UNION ALL SELECT anchor, modality FROM anchors JOIN timed ON number = anchor WHERE NOT usable
          ) GROUP BY 1
        ), alike AS (SELECT hash(name) AS hashed FROM stretches GROUP BY 1 HAVING count(*) > 1)
        SELECT NULL::BIGINT AS line, NULL::VARCHAR AS link_uri, NULL::VARCHAR AS values,
          {split.format("a.stretch")} AS split_key,
          list_transform(b.stretches, lambda x: {split.format("x")}) AS split_keys,
          a.name || CASE WHEN alike.hashed IS NULL THEN '' ELSE '#' || left(sha256(a.unit), 16) END AS sample_id,
          {", ".join(slots)}
        FROM stretches a LEFT JOIN alike ON alike.hashed = hash(a.name) LEFT JOIN beside b ON b.anchor = a.anchor
        LEFT JOIN lacking w ON w.anchor = a.anchor {" ".join(joins)};
        DROP TABLE stretches; DROP TABLE beside
        """
    )
