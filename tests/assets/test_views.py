"""Views: several items of a modality in one sample, each at the place that its name has, whatever the others are."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.alignment import Alignment
from assets.dataset import dataset_sql, samples_fingerprint
from assets.lake import open_duckdb
from assets.settings import AlignSettings, Project
from assets.source_settings import SourceSettings
from tests.assets.test_alignment import IMAGES, SOUNDS, aligned, items, manifest_of, reasons, sha, write_csv
from tests.assets.test_several_items import images_of, labelled
from tests.assets.test_time_join import Item
from tests.assets.test_time_join import aligned as aligned_in_time

SIDE = SourceSettings.of(name="side", modality="image", files="side.tar", table="side.csv", key="file")
BY_SOURCE = {"image": ["side", "pictures"]}
BY_COLUMN = {"image": {"views": ["left", "front", "right"], "by": "camera"}}


def seen(found: Alignment) -> dict[str, dict[str, str]]:
    """Sample -> view -> item."""
    rows = found.samples.to_pylist()
    return {row["sample_id"]: dict(zip(row["image_views"] or [], images_of(row), strict=True)) for row in rows}


def test_a_missing_view_moves_no_other_up() -> None:
    rows = items(IMAGES, ["a", "b", ("c", "bad")]) + items(SIDE, ["a", "c", ("c", "more")])
    found = aligned(manifest_of(rows), AlignSettings(several=BY_SOURCE), sources=(IMAGES, SIDE), bad=["bad"])
    assert seen(found) == {
        "a": {"side": "side:0", "pictures": "pictures:0"},
        "b": {"pictures": "pictures:1"},
        "c": {"side": "side:1"},
    }
    assert found.samples["image_views"].to_pylist()[0] == ["side", "pictures"], "in the order of the views"
    assert found.samples["image_status"].to_pylist() == ["present", "present", "incomplete"]
    assert reasons(found) == {"side:2": "same_view"}
    with open_duckdb() as connection:
        connection.register("samples", labelled(found.samples))
        assert connection.sql(dataset_sql()).fetchnumpy()["image_views"][1].tolist() == ["pictures"]
    other = aligned(manifest_of(items(IMAGES, ["a"])), AlignSettings(several=BY_SOURCE), sources=(IMAGES, SIDE)).samples
    same = manifest_of([{**items(IMAGES, ["a"])[0], "source": "side"}])
    turned = aligned(same, AlignSettings(several=BY_SOURCE), sources=(IMAGES, SIDE)).samples
    assert other["image_id"] == turned["image_id"] and samples_fingerprint(other) != samples_fingerprint(turned)


def test_what_is_of_no_view_is_told_and_left() -> None:
    cameras = {("a", "1"): {"camera": "front"}, ("a", "2"): {"camera": "rear"}, ("a", "3"): {}, ("b", "4"): {}}
    found = aligned(manifest_of(items(IMAGES, cameras)), AlignSettings(several=BY_COLUMN), sources=(IMAGES,))
    assert seen(found) == {"a": {"front": "pictures:0"}}
    assert reasons(found) == dict.fromkeys(("pictures:1", "pictures:2", "pictures:3"), "no_view")
    (said,) = found.findings
    assert said.code == "unknown_view"
    assert (
        "source pictures: 3 items of no view of image (left, front, right): column 'camera' has 'rear'" in said.message
    )
    with pytest.raises(ValueError, match=r"no source of image has a column 'kamera' \(by\); there are camera, file"):
        rule = AlignSettings(several={"image": {"views": ["a", "b"], "by": "kamera"}})
        aligned(manifest_of(items(IMAGES, cameras)), rule, sources=(IMAGES,))


def test_sources_that_are_no_views_are_told_when_the_file_is_read() -> None:
    for views, says in ((["side", "front"], "is 'pictures', expected one of the views"), (["a", "b"], "is 'side'")):
        with pytest.raises(ValueError, match=rf"align.several.image {says}"):
            Project(name="x", sources=(SIDE, IMAGES), align=AlignSettings(several={"image": views}, label="l"))


cells = st.tuples(st.sampled_from("abc"), st.sampled_from(["left", "front", "right", "rear", ""]), st.booleans())


@settings(max_examples=4, deadline=None)
@given(st.lists(cells, max_size=9), st.lists(cells, max_size=4))
def test_views_of_a_key_are_those_of_a_nested_loop(pictures: list[Any], sides: list[Any]) -> None:
    rows = []
    for source, given_cells in ((IMAGES, pictures), (SIDE, sides)):
        made = items(source, [(key, f"{source.name} {n}") for n, (key, _, _) in enumerate(given_cells)])
        for row, (_, view, usable) in zip(made, given_cells, strict=True):
            row |= {"attributes": json.dumps({"camera": view}), "sha256": row["sha256"] if usable else sha("bad")}
        rows += made
    rows += items(SOUNDS, ["a", "b", "c"])
    rows[-1] |= {"attributes": "{}"}
    if not any(row["modality"] == "image" for row in rows):
        return
    found = aligned(manifest_of(rows), AlignSettings(several=BY_COLUMN), sources=(IMAGES, SIDE, SOUNDS), bad=["bad"])
    expected: dict[str, dict[str, str]] = {"a": {}, "b": {}, "c": {}}
    usable = [row for row in rows if row["modality"] == "image" and row["sha256"] != sha("bad")]
    for row in usable:
        view = json.loads(row["attributes"])["camera"]
        if view in BY_COLUMN["image"]["views"]:
            expected[row["key"]].setdefault(view, row["item_id"])
    assert seen(found) == expected
    told = reasons(found)
    for row in usable:
        view = json.loads(row["attributes"])["camera"]
        is_used = expected[row["key"]].get(view) == row["item_id"]
        reason = "same_view" if view in BY_COLUMN["image"]["views"] else "no_view"
        assert told.get(row["item_id"]) == (None if is_used else reason)


named = st.sampled_from(["a.png", "b.png", "c.png", "gone.png", ""])


@settings(max_examples=3, deadline=None)
@given(st.lists(st.tuples(named, named, named), max_size=5))
def test_columns_of_a_link_table_are_views(links: list[tuple[str, str, str]]) -> None:
    manifest = manifest_of(items(IMAGES, ["sure.png", "a.png", "b.png", ("c.png", "bad")]))
    number = {"sure.png": 0, "a.png": 1, "b.png": 2}
    links = [("sure.png", "", ""), *links]
    with tempfile.TemporaryDirectory() as folder:
        rows = [(str(n), *cells) for n, cells in enumerate(links)]
        write_csv(Path(folder) / "links.csv", ["id", "front", "left", "right"], *rows)
        rule = AlignSettings(table="links.csv", id="id", several={"image": ["right", "left", "front"]})
        found = aligned(manifest, rule, Path(folder), [IMAGES], bad=["bad"])
    expected = {}
    for n, cells in enumerate(links):
        mine: dict[str, str] = {}
        for view, name in sorted(zip(("front", "left", "right"), cells, strict=True), reverse=True):
            if name in number and f"pictures:{number[name]}" not in mine.values():
                mine[view] = f"pictures:{number[name]}"
        if mine:  # what two columns name is of the first of them, in the order of the views
            expected[str(n)] = {view: mine[view] for view in ("right", "left", "front") if view in mine}
    assert seen(found) == expected


def test_a_link_table_names_the_views_by_its_columns_or_each_source_is_one(tmp_path: Path) -> None:
    write_csv(tmp_path / "links.csv", ["id", "front", "rear", "side", "pictures"], ["1", "a", "b", "x", "b"])
    manifest = manifest_of(items(IMAGES, ["a", "b"]), items(SIDE, ["x"]))
    rule: dict[str, Any] = {"table": "links.csv", "id": "id"}
    each = AlignSettings(**rule, several=BY_SOURCE)
    assert seen(aligned(manifest, each, tmp_path, [IMAGES, SIDE])) == {
        "1": {"side": "side:0", "pictures": "pictures:1"}
    }
    with pytest.raises(
        ValueError, match=r"align.columns.pictures is .* called like the views of image \(front, left\)"
    ):
        two = AlignSettings(**rule, columns={"pictures": ("front;rear",)}, several={"image": ["front", "left"]})
        aligned(manifest_of(items(IMAGES, ["a", "b"])), two, tmp_path, [IMAGES])


def test_a_linked_item_of_no_view_is_not_there(tmp_path: Path) -> None:
    write_csv(tmp_path / "links.csv", ["id", "pictures"], ["1", "a;b"], ["2", "a"], ["3", "b"])
    manifest = manifest_of(items(IMAGES, {"a": {"camera": "left"}, "b": {"camera": "rear"}}))
    rule = AlignSettings(table="links.csv", id="id", several=BY_COLUMN, max_missing=1.0)
    found = aligned(manifest, rule, tmp_path, [IMAGES])
    assert seen(found) == {"1": {"left": "pictures:0"}, "2": {"left": "pictures:0"}}
    assert found.samples["image_status"].to_pylist() == ["incomplete", "present"]


def nearest(items: list[Item], view: str, at: int) -> int | None:
    mine = [
        (abs((item.at or 0) - at), (item.at or 0) > at, n)
        for n, item in enumerate(items)
        if item.usable and item.source == "radar" and item.label == view
    ]
    near = min(mine, default=None)
    return near[2] if near is not None and near[0] <= 40 else None


moments = st.integers(0, 30).map(lambda n: 7 * n)
frames = st.tuples(moments, st.sampled_from("xyz"), st.sampled_from([True, True, False])).map(
    lambda row: Item("radar", row[0], label=row[1], usable=row[2])
)


@settings(max_examples=4, deadline=None)
@given(st.lists(frames, max_size=12), st.lists(moments, min_size=1, max_size=4, unique=True))
def test_of_each_view_what_is_nearest_in_time(radar: list[Item], heard: list[int]) -> None:
    heard = [*heard, 10_000]  # with one that something is near to: where nothing matches, that is an error
    everything = [*(Item("microphone", at) for at in heard), *radar, Item("radar", 10_030, label="y")]
    rule = {"several": {"image": {"views": ["y", "x"], "by": "label"}}}
    rows = aligned_in_time(
        everything, "microphone", "radar", more=rule, base="microphone", match="nearest", tolerance=0.04
    ).samples.to_pylist()
    assert len(rows) == len(heard)
    for row in rows:
        at = heard[int(row["speech_item"])]
        expected = {view: nearest(everything, view, at) for view in ("y", "x")}
        found = dict(zip(row["image_views"] or [], map(int, images_of(row)), strict=True))
        assert found == {view: n for view, n in expected.items() if n is not None}


def test_cameras_with_clocks_of_their_own_are_views_and_windows_take_the_first_of_each() -> None:
    cameras = [Item("camera", 0), Item("camera", 100), Item("radar", 5030), Item("radar", 5190), Item("microphone", 10)]
    rule = {"several": {"image": ["radar", "camera"]}}
    found = aligned_in_time(
        cameras, more=rule, base="microphone", match="nearest", tolerance=0.05, clocks={"radar": {"offset": -5}}
    )
    assert seen(found) == {"0004@2024-05-01T12:00:00.010000Z": {"radar": "0002", "camera": "0000"}}
    assert {row["item_id"]: row["reason"] for row in found.quarantine.to_pylist()} == {
        "0001": "no_partner",
        "0003": "no_partner",
    }
    windows = aligned_in_time([*cameras[:2], Item("radar", 900)], more=rule, windows={"length": 1})
    ((views),) = seen(windows).values()
    assert views == {"radar": "0002", "camera": "0000"}
    assert {row["item_id"]: row["reason"] for row in windows.quarantine.to_pylist()} == {"0001": "same_view"}
