"""As-of alignment of two streams beside DuckDB's bare ASOF query, and what the whole step costs.

    python -m benchmarks.alignment [--quick] [--events 10000000] [--whole 200000]

Two streams of as many events as said, at random microseconds, some at once, in the order of time. `pairs`: from where
both lie in DuckDB to the pairs, each with its exact difference in time, within a tolerance and the first of those at
once; beside them the same ASOF JOIN with nothing around it. `whole step`: `assets.alignment.align` from the manifest to
samples (of --whole events): keys, outcomes of every item, splits, report. --data is not used.
"""

import functools
import time
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assets.alignment import align
from assets.joins.time_pairs import matching
from assets.lake import open_duckdb
from assets.settings import AlignSettings
from assets.source_settings import SourceSettings
from benchmarks import measure
from training.schema import MANIFEST, conform

_APART = 100_000  # microseconds between two events on average
_TOLERANCE = 10_000_000
_START = 1_714_564_800_000_000
_EARLIER = "q.begin IS NULL OR a.begin - p.begin <= q.begin - a.begin"
_BARE = {
    "backward": """
        SELECT a.number AS anchor, b.number, b.begin - a.begin AS distance FROM a ASOF JOIN b ON a.begin >= b.begin
    """,
    "nearest": f"""
        SELECT a.number AS anchor, CASE WHEN {_EARLIER} THEN p.number ELSE q.number END AS number,
          CASE WHEN {_EARLIER} THEN p.begin ELSE q.begin END - a.begin AS distance
        FROM a ASOF LEFT JOIN b p ON a.begin >= p.begin ASOF LEFT JOIN b q ON a.begin <= q.begin
    """,
}


def _times(events: int, seed: int) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).integers(0, events * _APART, events)) + _START


@functools.cache
def _streams(events: int) -> duckdb.DuckDBPyConnection:
    """Tables `anchors` and `stream` as the join makes them; a and b, views of the same rows."""
    connection = open_duckdb()
    for name, seed in (("anchors", 0), ("stream", 1)):
        begin = pa.array(_times(events, seed))
        lane = pa.array(np.ones(events, np.int32))
        rows = pa.table({"number": pa.array(np.arange(events)), "lane": lane, "begin": begin, "until": begin})
        connection.register("rows", rows)
        connection.execute(f"CREATE TABLE {name} AS SELECT *, number AS anchor FROM rows")
        connection.unregister("rows")
    connection.execute("CREATE VIEW a AS FROM anchors; CREATE VIEW b AS FROM stream")
    return connection


def _timed(events: int, query: str) -> dict[str, Any]:
    connection = _streams(events)
    started = time.perf_counter()
    connection.execute(f"CREATE OR REPLACE TABLE pairs AS SELECT anchor, number, distance FROM ({query})")
    seconds = time.perf_counter() - started
    check = f"SELECT count(*), sum(distance), sum(anchor) FROM pairs WHERE abs(distance) <= {_TOLERANCE}"
    return {"s": seconds, "check": connection.sql(check).fetchall()}


def ours(events: int, match: str) -> dict[str, Any]:
    return _timed(events, matching(match, _TOLERANCE, lanes=False))


def bare(events: int, match: str) -> dict[str, Any]:
    return _timed(events, _BARE[match])


@functools.cache
def _project(events: int) -> tuple[Any, ...]:
    """What `align` gets."""
    sources = [
        SourceSettings.of(name="camera", modality="image", files="c", table="c.csv", key="id", time="at"),
        SourceSettings.of(name="log", modality="text", table="l.csv", key="id", column="line", time="at"),
    ]
    tables = []
    for seed, source in enumerate(sources):
        number = pa.array(np.arange(events)).cast(pa.string())
        ids = pc.binary_join_element_wise(pa.scalar(f"{source.name:0>24}"), number, "")
        columns = {"item_id": ids, "sha256": ids, "key": number, "row": pa.array(np.arange(events))}
        said = {"source": source.name, "modality": source.modality, "uri": source.name, "attributes": "{}"}
        columns |= {name: pa.repeat(value, events) for name, value in said.items()}
        columns |= {"time": pa.array(_times(events, seed), pa.timestamp("us", tz="UTC"))}
        tables.append(conform(pa.table(columns), MANIFEST))
    clean = {s.modality: pa.table({"id": rows["sha256"]}) for s, rows in zip(sources, tables, strict=True)}
    rule = AlignSettings(on={"kind": "time", "base": "camera", "match": "backward", "tolerance": _TOLERANCE / 1e6})
    return pa.concat_tables(tables), clean, rule, sources, Path("/")


def whole(events: int) -> dict[str, Any]:
    given = _project(events)
    started = time.perf_counter()
    found = align(*given, refused={})
    seconds = time.perf_counter() - started
    joined = found.samples.num_rows - found.samples["text_id"].null_count
    return {"s": seconds, "check": joined}


def bare_count(events: int) -> dict[str, Any]:
    return _timed(events, _BARE["backward"]) | {"check": bare(events, "backward")["check"][0][0]}


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--whole", type=int, default=200_000)
    arguments = parser.parse_args()
    events, some = (20_000, 2_000) if arguments.quick else (arguments.events, arguments.whole)
    times = measure.repetitions(arguments)
    for match in _BARE:
        name = "alignment", f"{events:,} events, {match}: pairs"
        measure.compare(name, partial(ours, events, match), "bare ASOF JOIN", partial(bare, events, match), times)
    name = "alignment", f"{some:,} events, backward: whole step"
    measure.compare(name, partial(whole, some), "bare ASOF JOIN", partial(bare_count, some), times)


if __name__ == "__main__":
    main()
