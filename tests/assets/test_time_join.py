"""Alignment in time: every way to match against a nested loop, and what becomes of what does not match."""

import csv
import hashlib
import json
import math
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.alignment import Alignment, align
from assets.balance import item_balance
from assets.catalog import JOINS
from assets.items import load_items, register_items
from assets.joins.columns import Columns
from assets.joins.several import set_views
from assets.joins.time import TimeJoin
from assets.lake import open_duckdb
from assets.leakage import leakage
from assets.scan import scan
from assets.settings import AlignSettings, SplitSettings
from assets.source_settings import SourceSettings
from training.schema import MANIFEST, MODALITIES, QUARANTINE, SPLITS

START = datetime(2024, 5, 1, 12, tzinfo=UTC)
MODALITY = {"camera": "image", "radar": "image", "microphone": "speech", "log": "text"}
SOURCES = [
    SourceSettings.of(name=name, modality=modality, table=f"{name}.csv", key="id", time="at", **more)
    for name, modality in MODALITY.items()
    for more in [{"column": "note"} if modality == "text" else {"files": name}]
]


MANY = int(os.environ.get("EXAMPLES", 3))


class Item(NamedTuple):
    source: str
    at: int | None  # milliseconds
    lasts: int | None = None
    key: str | None = "a"
    usable: bool = True
    label: str = "x"


class Given(NamedTuple):
    """What `align` gets."""

    manifest: pa.Table
    clean: dict[str, pa.Table]
    settings: AlignSettings
    sources: list[SourceSettings]
    root: Path
    refused: dict[str, set[str]]


def several(most: int) -> dict[str, int]:
    """Of pictures and recordings; of texts the first."""
    return dict.fromkeys(("image", "speech"), most) if most > 1 else {}


def given_of(items: Sequence[Item], names: Sequence[str], more: dict[str, Any], on: dict[str, Any]) -> Given:
    rows: list[dict[str, Any]] = []
    clean: dict[str, list[str]] = {m: [] for m in MODALITIES}
    refused: dict[str, set[str]] = {m: set() for m in MODALITIES}
    for n, item in enumerate(items):
        content = hashlib.sha256(f"{n}".encode()).hexdigest()
        at = None if item.at is None else START + timedelta(milliseconds=item.at)
        until = None if at is None or item.lasts is None else at + timedelta(milliseconds=item.lasts)
        attributes = {"label": item.label} | ({} if item.key is None else {"drive": item.key})
        rows.append(
            {"item_id": f"{n:04}", "source": item.source, "modality": MODALITY[item.source], "key": f"{n:04}"}
            | {"uri": f"/{item.source}", "row": n, "time": at, "until": until, "sha256": content}
            | {"attributes": json.dumps(attributes)}
        )
        clean[MODALITY[item.source]] += [content] * item.usable
        refused[MODALITY[item.source]] |= set() if item.usable else {content}
    ids = {m: pa.table({"id": pa.array(contents, pa.string())}) for m, contents in clean.items()}
    chosen = [source for source in SOURCES if source.name in names]
    rule = AlignSettings(on={"kind": "time", **on}, **{"several": several(64), **more})
    return Given(pa.Table.from_pylist(rows, MANIFEST), ids, rule, chosen, Path("/data"), refused)


def aligned(items: Sequence[Item], *sources: str, more: dict[str, Any] | None = None, **on: Any) -> Alignment:
    """Aligned by `on: time`, and checked for what holds of each alignment: balance, and nothing on two sides."""
    given = given_of(items, sources or tuple(dict.fromkeys(item.source for item in items)), more or {}, on)
    found = align(*given)
    bad = [{"stage": "clean", "modality": m, "sha256": sha} for m in given.refused for sha in given.refused[m]]
    seen = pa.concat_tables([found.quarantine, pa.Table.from_pylist(bad, QUARANTINE)])
    balance = item_balance(given.manifest, seen, found.samples)
    assert balance.holds, balance
    assert leakage(found.samples, given.settings).num_rows == 0
    return found


def matched(found: Alignment) -> list[tuple[int | None, ...]]:
    """Of each sample the numbers of its items: image, speech, text."""
    columns = ("image_item", "speech_item", "text_item")
    return sorted(
        (tuple(None if row[c] is None else int(row[c]) for c in columns) for row in found.samples.to_pylist()),
        key=lambda row: [-1 if n is None else n for n in row],
    )


def reasons(found: Alignment) -> dict[int, str]:
    return {int(row["item_id"]): row["reason"] for row in found.quarantine.to_pylist()}


CAMERA = [Item("camera", at) for at in (0, 100, 200)]


@pytest.mark.parametrize(
    ("match", "tolerance", "expected"),
    [
        ("nearest", None, [5, 5, 6]),
        ("nearest", "40ms", [None, 5, None]),
        ("backward", None, [4, 5, 5]),
        ("forward", "0.06 s", [5, None, 6]),
    ],
)
def test_as_of(match: str, tolerance: Any, expected: list[int | None]) -> None:
    sounds = [Item("microphone", at) for at in (-900, -120, 60, 260)]
    found = aligned([*CAMERA, *sounds], base="camera", match=match, tolerance=tolerance)
    assert matched(found) == [(n, sound, None) for n, sound in enumerate(expected)]


@pytest.mark.parametrize(
    ("match", "tolerance", "expected"),
    [
        ("overlap", None, {0: [3, 4], 1: [4, 5], 2: []}),
        ("overlap", "20ms", {0: [3, 4, 5], 1: [4, 5], 2: [6]}),
        ("within", None, {0: [4], 1: [5], 2: []}),
    ],
)
def test_all_that_lasts_meanwhile(match: str, tolerance: Any, expected: dict[int, list[int]]) -> None:
    cameras = [Item("camera", at, 50) for at in (0, 60, 200)]
    sounds = [Item("microphone", *span) for span in ((-30, 31), (10, 70), (60, None), (250, 10))]
    found = joined([*cameras, *sounds], base="camera", match=match, tolerance=tolerance)
    assert {anchor: slots["speech"] for anchor, slots in found.items()} == expected


def joined(items: Sequence[Item], most: int = 64, **on: Any) -> dict[int, dict[str, list[int]]]:
    """Number of the base's item -> modality -> numbers of its items, as the join gives them."""
    given = given_of(items, list(MODALITY), {"several": several(most)}, on)
    with open_duckdb() as connection:
        connection.register("manifest", given.manifest)
        register_items(connection, given.clean, given.refused, None)
        load_items(connection, given.sources, lenient=False)
        columns = Columns.of(connection, given.sources)
        JOINS.make(given.settings.on).join(connection, given.settings, given.sources, given.root, columns)
        rows = connection.sql("FROM joined ORDER BY sample_id").to_arrow_table().to_pylist()
    assert len({row["sample_id"] for row in rows}) == len(rows)
    found = {}
    for row in rows:
        slots = {}
        for m in MODALITIES:
            taken = [] if row[f"{m}_item"] is None else [row[f"{m}_item"], *(i["item"] for i in row[f"{m}_more"] or ())]
            assert (row[f"{m}_status"] in ("present", "incomplete")) == bool(taken)
            slots[m] = [int(item) for item in taken]
        found[int(row["sample_id"][:4])] = slots
    return found


def reference(
    items: Sequence[Item],
    match: str,
    tolerance: int | None,
    keyed: bool,
    once: bool,
    most: int,
    around: tuple[int, int] | None = None,
) -> Any:
    """As `joined`, by loops over all pairs."""
    lanes = [item.key if keyed else "" for item in items]
    timed = [n for n, item in enumerate(items) if item.at is not None and lanes[n] is not None]
    anchors = [n for n in timed if items[n].source == "camera"]

    def span(n: int) -> tuple[int, int]:
        begin = items[n].at * 1000  # type: ignore[operator]
        return begin, max(begin + 1, begin + (items[n].lasts or 0) * 1000)

    pairs: list[tuple[int, int]] = []
    for source in ("radar", "microphone", "log"):
        stream = [n for n in timed if items[n].source == source and items[n].usable]
        for a in anchors:
            near = [n for n in stream if lanes[n] == lanes[a]]
            reach = math.inf if tolerance is None else tolerance
            if match in ("overlap", "within"):
                low, high = span(a) if around is None else (span(a)[0] + 1000 * shift for shift in around)
                low, high = low - (tolerance or 0), high + (tolerance or 0)
                ends = {n: span(n)[1] if match == "overlap" else span(n)[0] + 1 for n in near}
                pairs += [(a, n) for n in near if span(n)[0] < high and low < ends[n]]
                continue
            gaps = {n: span(n)[0] - span(a)[0] for n in near}
            sided = {"nearest": lambda g: True, "backward": lambda g: g <= 0, "forward": lambda g: g >= 0}[match]
            fitting = [n for n in near if sided(gaps[n]) and abs(gaps[n]) <= reach]
            if fitting:
                pairs.append((a, min(fitting, key=lambda n: (abs(gaps[n]), gaps[n], n))))
    if once:
        best: dict[int, int] = {}
        for a, n in pairs:
            rank = (abs(span(n)[0] - span(a)[0]), span(a)[0], a)
            if n not in best or rank < (abs(span(n)[0] - span(best[n])[0]), span(best[n])[0], best[n]):
                best[n] = a
        pairs = [(a, n) for n, a in best.items()]
    order = list(MODALITY)
    found = {}
    for a in anchors:
        slots: dict[str, list[int]] = {m: [] for m in MODALITIES}
        for n in sorted((n for b, n in pairs if b == a), key=lambda n: (order.index(items[n].source), span(n)[0], n)):
            slots[MODALITY[items[n].source]].append(n)
        slots["image"] = [*([a] if items[a].usable else []), *slots["image"]]
        found[a] = {m: numbers[: 1 if m == "text" else most] for m, numbers in slots.items()}
    return found


streams = st.lists(
    st.builds(
        Item,
        source=st.sampled_from(list(MODALITY)),
        at=st.none() | st.integers(-20, 20) | st.sampled_from([0, 7]),
        lasts=st.none() | st.integers(0, 12),
        key=st.sampled_from(["a", "b", None]),
        usable=st.integers(0, 7).map(bool),
    ),
    max_size=25,
)


@settings(max_examples=MANY, deadline=None)
@given(
    streams,
    st.sampled_from(["nearest", "backward", "forward", "overlap", "within"]),
    st.none() | st.sampled_from([0, 1000, 3500, 9000]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1, 2, 64]),
    st.none() | st.tuples(st.integers(-9, 3), st.integers(1, 9)),
)
def test_every_match_is_that_of_a_nested_loop(
    items: list[Item],
    match: str,
    tolerance: int | None,
    keyed: bool,
    once: bool,
    most: int,
    width: tuple[int, int] | None,
) -> None:
    around = None if width is None else (width[0], width[0] + width[1])
    items = [*items, Item("camera", 500), Item("radar", 500), Item("microphone", 500), Item("log", 500)]
    on = {"base": "camera", "match": match, "tolerance": None if tolerance is None else tolerance / 1e6}
    on |= {"key": "drive" if keyed else (), "once": once}
    on |= {} if around is None else {"windows": {"from": f"{around[0]}ms", "to": f"{around[1]}ms"}}
    items += [] if around is None else [Item("log", 500 + around[0])]  # where nothing matches, that is an error
    expected = reference(items, match, tolerance, keyed, once, most, around)
    assert joined(items, most, **on) == expected
    found = aligned(items, more={"several": several(most)}, **on)  # checks the balance
    used = {n for slots in expected.values() for numbers in slots.values() for n in numbers}
    why = reasons(found)
    assert why.keys() == {n for n, item in enumerate(items) if item.usable} - used
    for n, reason in why.items():
        assert (reason == "no_time") == (items[n].at is None)
        assert (reason == "no_key") == (keyed and items[n].at is not None and items[n].key is None)
        assert reason != "over_several" or most < 64 or items[n].source == "log"


@settings(max_examples=MANY, deadline=None)
@given(
    streams,
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(-5, 5),
    st.booleans(),
    st.sampled_from(["within", "overlap"]),
)
def test_windows_are_those_of_a_nested_loop(
    items: list[Item], length: int, stride: int, origin: int, keyed: bool, match: str
) -> None:
    items = [*items, *(Item(source, origin) for source in MODALITY)]
    at = (START + timedelta(milliseconds=origin)).isoformat()
    windows = {"length": f"{length}ms", "stride": f"{stride}ms", "origin": at}
    found = aligned(items, windows=windows, key="drive" if keyed else (), match=match)
    expected = {}
    for window in range(-80, 80):
        for lane in ("a", "b", None) if keyed else ("any",):
            begin = (origin + window * stride) * 1000
            inside = [
                n
                for n, item in enumerate(items)
                if item.at is not None
                and item.usable
                and (not keyed or item.key == lane is not None)
                and item.at * 1000 < begin + length * 1000
                and begin < item.at * 1000 + max(1, (item.lasts or 0) * 1000 if match == "overlap" else 0)
            ]
            slots = [
                min(
                    (n for n in inside if MODALITY[items[n].source] == m),
                    default=None,
                    key=lambda n: (list(MODALITY).index(items[n].source), items[n].at, n),
                )
                for m in ("image", "speech", "text")
            ]
            if inside:
                expected[lane, begin] = tuple(slots)
    assert matched(found) == sorted(expected.values(), key=lambda row: [-1 if n is None else n for n in row])
    for reason in reasons(found).values():
        assert reason in ("no_time", "no_key", "outside", "over_several")
        assert reason != "outside" or stride > length


def test_what_matches_nothing_says_why() -> None:
    found = aligned(
        [
            *(Item("camera", at) for at in (0, 100)),
            *(Item("microphone", at) for at in (10, 12, 12, 5000, None)),
            Item("log", -400),
            Item("log", 20),
            Item("radar", 3),
        ],
        base="camera",
        tolerance="50ms",
        streams={"log": {"match": "backward", "tolerance": "0.3 s"}},
        more={"several": {}},
    )
    said = {int(row["item_id"]): (row["reason"], row["message"]) for row in found.quarantine.to_pylist()}
    assert {n: reason for n, (reason, _) in said.items()} == {
        3: "passed_over", 4: "same_time", 5: "no_partner", 6: "no_time", 7: "no_partner", 9: "over_several",
    }  # fmt: skip
    assert said[5][1].endswith("camera is too far: the nearest item begins 4.9 s earlier (allowed: 50 ms)")
    assert said[7][1].endswith("camera is too far: the nearest item begins 400 ms later (allowed: 300 ms)")
    assert matched(found) == [(0, 2, None), (1, None, 8)]


def test_what_never_ends_costs_no_more_than_what_lasts_as_long_as_all_else() -> None:
    frames, sounds = ([Item(source, at * 1000, 900) for at in range(3000)] for source in ("camera", "microphone"))
    endless = Item("microphone", 500, 10**13)
    found = joined([*frames, *sounds, endless], base="camera", match="overlap")
    assert {n: slots["speech"] for n, slots in found.items()} == {0: [3000, 6000]} | {
        n: [6000, 3000 + n] for n in range(1, 3000)
    }
    with pytest.raises(ValueError, match=r"align\.on\.windows: an item is in over 1,000,000 of them: correct its end"):
        aligned([Item("camera", 0), endless], windows={"length": "1s"}, match="overlap")


def test_a_sample_is_incomplete_where_what_was_refused_would_have_been_taken() -> None:
    cameras = [Item("camera", at) for at in (0, 100, 200)]
    views = [Item("radar", at, usable=at != 201) for at in (1, 101, 201)]
    rows = aligned([*cameras, *views], base="camera", match="nearest").samples.to_pylist()
    assert [row["image_status"] for row in rows] == ["present", "present", "incomplete"]


def test_what_may_be_shared_excludes_nothing() -> None:
    frames = [Item("camera", at * 30_000) for at in range(400)]
    sounds = [Item("microphone", at * 100_000 + 50_000, 100_000) for at in range(120)]
    rule: dict[str, Any] = {"label": "camera.label", "split": SplitSettings(train=0.5, validation=0.2)}
    on = {"base": "camera", "match": "overlap", "block": "600s"}
    for more, excluded in (({}, True), ({"allow_shared": ("speech",)}, False)):
        rows = aligned([*frames, *sounds], more={**rule, "several": {}, **more}, **on).samples.to_pylist()
        assert any(row["split"] == "excluded" for row in rows) == excluded


@pytest.mark.parametrize("setting", ["block", "tolerance"])
def test_no_span_is_infinite(setting: str) -> None:
    with pytest.raises(ValueError, match="expected a number of seconds"):
        AlignSettings(on={"kind": "time", "base": "camera", setting: float("inf")})


def test_a_refused_item_is_told_from_one_that_never_was() -> None:
    items = [Item("camera", 0), Item("camera", 100, usable=False), Item("camera", 200), Item("camera", 900)]
    items += [Item("microphone", 2, usable=False), Item("microphone", 101), Item("microphone", 205)]
    rows = aligned(items, base="camera", tolerance="50ms").samples.to_pylist()
    assert [(row["image_status"], row["speech_status"]) for row in rows] == [
        ("present", "quarantined"), ("quarantined", "present"), ("present", "present"), ("present", "absent"),
    ]  # fmt: skip


def test_nothing_of_one_stretch_of_time_stands_on_two_sides() -> None:
    """The item that serves samples of two stretches takes them out, where these are on two sides."""
    frames = [Item("camera", at * 1000) for at in range(400)]
    sounds = [Item("microphone", at * 1000) for at in range(0, 400, 7)]
    rule = {"label": "camera.label", "split": SplitSettings(train=0.5, validation=0.2)}
    rows = aligned([*frames, *sounds], base="camera", block="40s", more=rule).samples.to_pylist()
    blocks = [(row["time"] - START).total_seconds() // 40 for row in rows]
    assert {row["split"] for row in rows} == {*SPLITS, "excluded"}
    of_block = {b: {r["split"] for r, at in zip(rows, blocks, strict=True) if at == b} - {"excluded"} for b in blocks}
    assert all(len(splits) == 1 for splits in of_block.values())
    assert 0 < sum(row["split"] == "excluded" for row in rows) < 60
    drives = [item._replace(key=f"d{n // 40}") for n, item in enumerate(frames)]
    alone = aligned(drives, base="camera", key="drive", more=rule).samples.to_pylist()
    of_key: dict[int, set[str]] = {}
    for row in alone:
        of_key.setdefault(int(row["image_item"]) // 40, set()).add(row["split"])
    assert len(of_key) == 10 and all(len(splits) == 1 for splits in of_key.values())


def test_overlapping_windows_leak_nothing() -> None:
    items = [Item("log", at * 1000) for at in range(900)]
    rule = {"label": "log.label", "split": SplitSettings(train=0.5, validation=0.2)}
    rows = aligned(items, windows={"length": 10, "stride": 5}, more=rule).samples.to_pylist()
    assert rows[0]["sample_id"] == "2024-05-01T11:59:55.000000Z"
    assert {row["split"] for row in rows} == {*SPLITS, "excluded"}


def test_a_cut_lies_where_its_recording_does() -> None:
    """Parts of a recording begin so many seconds after it; of a recording without a time, after its key's beginning."""
    recording = {
        "item_id": "r",
        "source": "microphone",
        "modality": "speech",
        "key": "r",
        "uri": "/r",
        "sha256": "whole",
    }
    recording |= {"attributes": json.dumps({"drive": "a"}), "time": START}
    frames = [
        {"item_id": f"f{n}", "source": "camera", "modality": "image", "key": f"f{n}", "uri": "/f", "sha256": f"f{n}"}
        | {"attributes": json.dumps({"drive": "a"}), "time": START + timedelta(seconds=n)}
        for n in (0, 7)
    ]
    parts = {"id": ["p0", "p1"], "parent_id": ["whole"] * 2, "start": [0.0, 5.0], "seconds": [5.0, 5.0]}
    clean = {"speech": pa.table(parts), "image": pa.table({"id": ["f0", "f7"]})}
    on = {"kind": "time", "base": "camera", "match": "overlap", "key": "drive"}
    sources = [source for source in SOURCES if source.name in ("camera", "microphone")]

    def speech(**changed: Any) -> list[str | None]:
        relative = {"relative": True} if "time" in changed else {}
        zero = datetime(1970, 1, 1, tzinfo=UTC)
        rows = [frame | ({"time": zero + (frame["time"] - START)} if relative else {}) for frame in frames]
        manifest = pa.Table.from_pylist([recording | changed, *rows], MANIFEST)
        rule = AlignSettings(on={**on, **relative})
        return align(manifest, clean, rule, sources, Path("/data")).samples["speech_id"].to_pylist()

    assert speech() == speech(time=None) == ["p0", "p1"]


def test_columns_of_a_key_may_differ_in_name() -> None:
    items = [Item("camera", 0), Item("microphone", 0), Item("microphone", 0, key="b")]
    given = given_of(items, ["camera", "microphone"], {}, {"base": "camera", "key": "drive"})
    renamed = [
        row["attributes"].replace("drive", "ride") if row["source"] == "microphone" else row["attributes"]
        for row in given.manifest.to_pylist()
    ]
    at = given.manifest.column_names.index("attributes")
    given = given._replace(manifest=given.manifest.set_column(at, "attributes", pa.array(renamed)))
    with pytest.raises(
        ValueError, match=r"source microphone has no column 'drive' .*align\.on\.streams\.microphone\.key"
    ):
        align(*given)
    on = {"kind": "time", "base": "camera", "key": "drive", "streams": {"microphone": {"key": "ride"}}}
    found = align(*given._replace(settings=AlignSettings(on=on)))
    assert matched(found) == [(0, 1, None)] and reasons(found) == {2: "no_partner"}


@pytest.mark.parametrize(
    ("on", "says"),
    [
        ({}, "say around what samples are made"),
        ({"base": "lidar"}, "base names 'lidar', which is no source; there are camera, radar, microphone, log"),
        ({"base": "camera", "clocks": {"lidar": {"offset": 1}}}, "clocks names 'lidar'"),
        ({"base": "camera", "clocks": {"camera": {"estimate": True}}}, "whose clock is known"),
        ({"windows": {"length": 1}, "clocks": {"camera": {"estimate": True}}}, "say under `to`"),
        ({"base": "camera", "match": "closest"}, "match is 'closest'"),
        ({"base": "camera", "tolerance": "5 parsecs"}, "tolerance is '5 parsecs': expected seconds, or a number"),
        ({"base": "camera", "windows": {"length": 1}}, r"expected windows \{from: ..., to: ...\} beside a `base`"),
        ({"windows": {"from": -1, "to": 0}}, "expected length, without a `base`"),
        ({"base": "camera", "windows": {"from": 1, "to": -1}}, "to is -1.0, expected more than `from` "),
        ({"base": "camera", "windows": {"from": -1, "length": 2}}, "length is 2.0, expected nothing beside `from`"),
        ({"base": "camera", "clocks": {"log": {"estimate": True, "each": True}}}, "clocks.log is 'of each key'"),
        ({"base": "camera", "clocks": {"log": {"offset": 1, "each": True}}}, "nothing without `estimate: true`"),
        ({"windows": {"length": 0}}, "length is 0.0, expected more than 0 seconds"),
        ({"windows": {"length": 1}, "match": "nearest"}, "overlap or within, where there are windows"),
        ({"base": "camera", "relative": True}, "`key` beside it"),
        ({"base": "camera", "clocks": {"log": {"drift": 1e-5}}}, "origin is None, expected a time"),
        ({"base": "camera", "streams": {"log": {"tolerance": -1}}}, "tolerance is -1.0, expected 0 seconds or more"),
    ],
)
def test_what_is_wrong_is_said_when_the_file_is_read(on: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        rule = AlignSettings(on={"kind": "time", **on})
        JOINS.make(rule.on).check(rule, SOURCES)
    timeless = [SourceSettings.of(name="camera", modality="image", files="x")]
    rule = AlignSettings(on={"kind": "time", "base": "camera"})
    with pytest.raises(ValueError, match="source 'camera' says of no item when it was recorded"):
        JOINS.make(rule.on).check(rule, timeless)


def test_streams_that_never_meet_are_an_error_that_says_how_far_they_are() -> None:
    items = [Item(source, at + (7_200_000 if source == "log" else 0)) for source in ("camera", "log") for at in (0, 9)]
    with pytest.raises(
        ValueError, match=r"2 of 2 items match nothing of camera within 1 s; the nearest begins 2 h earlier"
    ):
        aligned(items, base="camera", tolerance=1)


def claps(offset: float, drift: float, *, share: bool = True) -> list[Item]:
    """A camera and a log that see the same moments, the log by a clock that is slow; a microphone by the camera's."""
    random = np.random.default_rng(3)
    moments = np.sort(random.uniform(0, 900_000, 60)).round().astype(int)
    told = moments if share else np.sort(random.uniform(0, 900_000, 60)).round().astype(int)
    written = [round((at - offset * 1000) / (1 + drift)) for at in told]
    both = ("camera", moments), ("log", written)
    return [Item(source, int(at), label=str(n)) for source, times in both for n, at in enumerate(times)]


def test_a_clock_is_given_or_estimated_and_a_stream_of_other_moments_is_refused() -> None:
    items = claps(0.25, 50e-6)
    whole = [(n, None, n + 60) for n in range(60)]
    rest = {"base": "camera", "tolerance": "20ms"}
    given = {"log": {"offset": "250ms", "drift": 50e-6, "origin": START.isoformat()}}
    assert matched(aligned(items, clocks=given, **rest)) == whole
    with pytest.raises(ValueError, match=r"60 of 60 items match nothing of camera within 20 ms; .* 27\d ms later"):
        aligned(items, **rest)
    found = aligned(items, clocks={"log": {"estimate": True}}, **rest)
    assert matched(found) == whole
    (clock,) = [json.loads(value) for name, value in found.report if name == "clock"]
    assert clock["source"] == "log" and clock["events"] == 60 and clock["drift_ppm"] == pytest.approx(50, abs=5)
    (said,) = [finding.message for finding in found.findings if finding.code == "clock"]
    assert said.startswith("to the times of source log +0.27") and "60 of its 60 events" in said
    with pytest.raises(ValueError, match=r"clocks\.log: the clock of log cannot be told from camera: no offset makes"):
        aligned(claps(0.25, 0, share=False), clocks={"log": {"estimate": True}}, **rest)
    by_label = {"log": {"estimate": True, "events": "label"}}
    assert matched(aligned(items, clocks=by_label, **rest)) == whole
    with pytest.raises(ValueError, match=r"source log has no column 'clap' \(events\)"):
        aligned(items, clocks={"log": {"estimate": True, "events": "clap"}}, **rest)


def of_devices(offsets: dict[str, float], few: str = "") -> list[Item]:
    """Of each device a camera, and a log by a clock of its own that sees the same moments, or of `few` two of them."""
    random, items = np.random.default_rng(5), list[Item]()
    for key, offset in offsets.items():
        moments = np.sort(random.uniform(0, 900_000, 2 if key == few else 40)).round().astype(int)
        items += [Item("camera", int(at), key=key) for at in moments]
        items += [Item("log", round(at - 1000 * offset), key=key) for at in moments]
    return items


def test_each_device_has_a_clock_of_its_own() -> None:
    offsets = {"d1": 0.25, "d2": -12.0, "d3": 3.5}
    items, rest = of_devices(offsets), {"base": "camera", "key": "drive", "tolerance": "20ms"}
    whole = sorted((n, None, n + 40) for first in (0, 80, 160) for n in range(first, first + 40))
    given = {"log": {"offset": 0.25, "keys": {"d2": {"offset": "-12 s"}, "d3": {"offset": 3.5}, "d9": {"offset": 1}}}}
    found = aligned(items, clocks=given, **rest)
    assert matched(found) == whole
    assert "keys has 'd9', which no item has" in next(f.message for f in found.findings if f.code == "unknown_clock")
    estimated = {"log": {"estimate": True, "each": True, "max_drift": 0}}
    found = aligned(items, clocks=estimated, **rest)
    assert matched(found) == whole
    (clock,) = [json.loads(value) for name, value in found.report if name == "clock"]
    assert clock["known"] == 3 and not clock["refused"] and clock["worst_error"] < 0.001
    assert {key: round(one["offset"], 2) for key, one in clock["each"].items()} == offsets
    (said,) = [finding.message for finding in found.findings if finding.code == "clock"]
    assert "each of 3 keys has its own offset added, from -12.0000 to +3.5000 s" in said and "'d2' -12.0000 s" in said


def test_a_device_whose_events_do_not_tell_its_clock_is_refused_and_the_others_are_not() -> None:
    rest = {"base": "camera", "key": "drive", "tolerance": "20ms"}
    estimated = {"log": {"estimate": True, "each": True, "max_drift": 0}}
    found = aligned(of_devices({"d1": 0.25, "d2": 0.0, "d3": -9.0}, few="d2"), clocks=estimated, **rest)
    rows = matched(found)
    assert len(rows) == 82 and [row[2] for row in rows].count(None) == 2, "of d2 nothing is matched"
    refused = [row for row in found.quarantine.to_pylist() if row["reason"] == "no_clock"]
    assert len(refused) == 2
    assert (
        "has a clock that cannot be told: there are 2 and 2 events, and 4 of each are the least"
        in refused[0]["message"]
    )
    (said,) = [finding.message for finding in found.findings if finding.code == "clock"]
    assert "of 1 keys the clock is not known, and nothing is matched: 'd2' (there are 2 and 2 events" in said
    with pytest.raises(ValueError, match=r"clocks.log: the clock of no key can be told; d1: there are 2 and 2 events"):
        aligned(of_devices({"d1": 0.25}, few="d1"), clocks=estimated, **rest)


def test_windows_before_each_event_gather_what_came_before_it() -> None:
    events = [Item("camera", at) for at in (10_000, 20_000)]
    lines = [Item("log", at) for at in (4_999, 5_000, 9_999, 10_000, 16_000)]
    found = aligned(
        [*events, *lines], base="camera", windows={"from": "-5 s", "to": "0 s"}, more={"several": {"text": 3}}
    )
    texts = {
        int(row["image_item"]): [int(row["text_item"]), *(int(one["item"]) for one in row["text_more"] or [])]
        for row in found.samples.to_pylist()
    }
    assert texts == {0: [3, 4], 1: [6]}
    assert reasons(found) == {2: "no_partner", 5: "no_partner"}
    near = {"windows": {"from": "-5 s", "to": "0 s"}, "streams": {"log": {"match": "nearest"}}}
    assert matched(aligned([*events, *lines], base="camera", **near)) == [(0, None, 5), (1, None, 6)]


TRAFFIC = Path(os.environ.get("TRIPTYCH_SHARED", Path(__file__).parents[3] / "shared" / "data")) / "traffic"
CAMERAS = ("CAM_FRONT", "CAM_FRONT_LEFT", "CAM_FRONT_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")


@pytest.mark.skipif(not TRAFFIC.is_dir(), reason="needs the pictures of traffic")
def test_six_cameras_are_aligned_by_the_microseconds_in_their_names() -> None:
    """As `frames.csv` puts them together. Each camera looks once in 0.5 s, within 50 ms of the others."""
    sources = [
        SourceSettings.of(
            name=name.lower(),
            modality="image",
            files=f"{TRAFFIC}/frames_jpg.tar/images/{name}/*.jpg",
            path=f"{{log}}__{name}__{{us}}",
            time="us",
        )
        for name in CAMERAS
    ]
    scans = [scan(source, TRAFFIC) for source in sources]
    manifest = pa.concat_tables(found.rows for found in scans)
    assert manifest.num_rows == 54 and manifest["time"].null_count == 0
    with (TRAFFIC / "frames.csv").open(newline="") as file:
        together = {row["CAM_FRONT"]: [row[name] for name in CAMERAS] for row in csv.DictReader(file)}
    on = {"kind": "time", "base": "cam_front", "key": "log", "tolerance": "50ms"}
    rule = AlignSettings(on=on, several={"image": 6})
    with open_duckdb() as connection:
        connection.register("manifest", manifest)
        register_items(connection, {"image": pa.table({"id": manifest["sha256"]})}, {}, None)
        load_items(connection, sources, lenient=False)
        TimeJoin(JOINS.options(rule.on)).join(connection, rule, sources, TRAFFIC, Columns.of(connection, sources))
        rows = connection.sql("SELECT image_item, image_more FROM joined").fetchall()
    views = AlignSettings(on=on, several={"image": [name.lower() for name in sorted(CAMERAS)]})
    with open_duckdb() as connection:
        connection.register("manifest", manifest)
        register_items(connection, {"image": pa.table({"id": manifest["sha256"]})}, {}, None)
        load_items(connection, sources, lenient=False)
        columns = Columns.of(connection, sources)
        set_views(connection, views.views, columns)
        TimeJoin(JOINS.options(views.on)).join(connection, views, sources, TRAFFIC, columns)
        by_view = connection.sql("SELECT image_item, image_more, image_views FROM joined").fetchall()
    place = {row["item_id"]: row["member"] for row in manifest.to_pylist()}
    found = {place[first]: [place[first], *(place[i["item"]] for i in more)] for first, more in rows}
    assert found == together
    for first, more, names in by_view:
        members = [place[first], *(place[one["item"]] for one in more)]
        assert names == list(views.views["image"].views)
        assert all(f"/{name.upper()}/" in member for name, member in zip(names, members, strict=True))
        assert sorted(members) in [sorted(row) for row in together.values()]
