"""Crops of pictures: by boxes and polygons of a table, from the project file to samples and their pixels."""

import csv
import io
import json
import os
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets import featurizing, pipeline
from assets.asset_checks import check_balance, check_leakage
from assets.catalog import SEGMENTS
from assets.data_assets import tiles
from assets.gate import write_raw
from assets.processing import PARTS
from assets.segments.base import content_id
from assets.source_settings import SourceSettings
from orchestration.inspection import check
from orchestration.project import load
from training import prediction_table
from training.catalog import MODALITIES
from training.crops import Crop
from training.images import Image, decode_image
from training.masks import read_mask
from training.media import MediaError
from training.schema import MANIFEST
from training.settings import MediaLimits

TRAFFIC = Path(os.environ.get("TRIPTYCH_SHARED", Path(__file__).parents[3] / "shared" / "data")) / "traffic"
LIMITS = MediaLimits()


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encoded(pixels: np.ndarray, form: str = "PNG", orientation: int = 1) -> bytes:
    file, exif = io.BytesIO(), PIL.Image.Exif()
    exif[274] = orientation
    PIL.Image.fromarray(pixels).save(file, form, exif=exif)
    return file.getvalue()


def decoded(width: int = 40, height: int = 30, orientation: int = 1) -> Image:
    return decode_image(encoded(noise(width, height), "PNG", orientation), LIMITS)


@cache
def made(options: str) -> Any:
    return SEGMENTS.make(
        SEGMENTS.choose({"kind": "boxes", "table": "boxes.csv", "picture": "file"} | json.loads(options))
    )


def cut(values: dict[str, Any], **options: Any) -> str:
    """The cut that a row of strings says."""
    return made(json.dumps(options)).cut({name: str(value) for name, value in values.items()})


@st.composite
def boxes(draw: st.DrawFn, width: int = 40, height: int = 30) -> tuple[int, int, int, int]:
    """Whole edges of a box within a picture."""
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    return left, top, draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))


# What rows say


@settings(max_examples=50)
@given(box=boxes(), scale=st.sampled_from([1, 2, 3, 0.25]))
def test_crops_are_slices_of_the_picture_however_a_box_is_written(box: tuple[int, ...], scale: float) -> None:
    picture = decoded()
    left, top, right, bottom = (edge * scale for edge in box)
    width, height = right - left, bottom - top
    center = {"cx": left + width / 2, "cy": top + height / 2, "w": width, "h": height}
    shares = {"cx": center["cx"] / 40, "cy": center["cy"] / 30, "w": width / 40, "h": height / 30}
    by_center = {"center_x": "cx", "center_y": "cy", "width": "w", "height": "h"}
    yxyx = {"box": "b", "order": ["top", "left", "bottom", "right"]}
    of = {"of": [40 * scale, 30 * scale]} if scale == int(scale) else {"of": ["W", "H"]}
    size = {"W": 40 * scale, "H": 30 * scale}
    cuts = {
        cut({"left": left, "top": top, "width": width, "height": height, **size}, **of),
        cut(
            {"x1": left, "y1": top, "x2": right, "y2": bottom, **size},
            left="x1",
            top="y1",
            right="x2",
            bottom="y2",
            **of,
        ),
        cut(center | size, **by_center, **of),
        cut({"b": [top, left, bottom, right], **size}, **yxyx, **of),
        cut({"b": f"{top} {left} {bottom} {right}", **size}, **yxyx, **of),
    }
    assert len(cuts) == 1, "the same crop has one name"
    parts = [picture.part(cuts.pop())]
    if scale == 1:
        parts.append(picture.part(cut(shares, **by_center, unit="relative")))
        parts.append(picture.part(cut({n: round(v, 6) for n, v in shares.items()}, **by_center, unit="relative")))
    for part in parts:
        np.testing.assert_array_equal(part.array, picture.array[box[1] : box[3], box[0] : box[2]])
        assert (part.x, part.y, part.width, part.height) == (*box[:2], box[2] - box[0], box[3] - box[1])
        assert not part.warnings and np.shares_memory(part.array, picture.array)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_are_of_the_picture_as_people_see_it(orientation: int) -> None:
    data = encoded(noise(40, 30), "JPEG", orientation)
    seen = np.asarray(PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data))))
    part = decode_image(data, LIMITS).part(cut({"left": 3, "top": 5, "width": 17, "height": 23}))
    np.testing.assert_array_equal(part.array, seen[5:28, 3:20])


@settings(max_examples=50)
@given(box=boxes(), orientation=st.integers(1, 8), form=st.sampled_from(["PNG", "TIFF"]))
def test_boxes_of_the_stored_picture_are_turned_with_it(box: tuple[int, ...], orientation: int, form: str) -> None:
    stored = noise(40, 30)
    picture = decode_image(encoded(stored, form, orientation), LIMITS)
    part = picture.part(Crop(box, stored=True).cut)
    alone = np.ascontiguousarray(stored[box[1] : box[3], box[0] : box[2]])
    expected = decode_image(encoded(alone, "PNG", orientation), LIMITS)
    np.testing.assert_array_equal(part.array, expected.array)
    again = picture.part(Crop((part.x, part.y, part.x + part.width, part.y + part.height)).cut)
    np.testing.assert_array_equal(again.array, part.array)


@settings(max_examples=40)
@given(points=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 300)), min_size=3, max_size=7))
def test_what_lies_outside_a_polygon_is_coloured_and_nothing_inside_is(points: list[tuple[int, int]]) -> None:
    import cv2

    picture = Image(np.full((30, 40, 3), 200, np.uint8), "PNG", "RGB", 40, 30)
    corners = np.array(points) / 10
    try:
        name = cut({"p": corners.tolist()}, polygon="p")
        part = picture.part(name)
    except (ValueError, MediaError):
        assert (np.ptp(corners, axis=0) < 1).any(), "it has no pixels"
        return
    kept = (part.array == 200).all(axis=2)
    assert ((part.array == 0).all(axis=2) | kept).all()
    contour = corners.astype(np.float32)
    simple = cv2.isContourConvex(contour)  # whether a line that crosses itself has an inside is a matter of taste
    for y, x in np.ndindex(*kept.shape):
        depth = cv2.pointPolygonTest(contour, (part.x + x + 0.5, part.y + y + 0.5), True)
        assert not simple or kept[y, x] or depth < 1.5
        assert not simple or not kept[y, x] or depth > -1.5
    keeping = picture.part(cut({"p": corners.tolist()}, polygon="p", outside="keep"))
    assert (keeping.x, keeping.y, keeping.array.shape) == (part.x, part.y, part.array.shape)
    assert (keeping.array == 200).all()


def test_polygons_as_people_write_them() -> None:
    square, other = [10, 5, 20, 5, 20, 15, 10, 15], [25, 5, 30, 5, 30, 10]
    pairs = np.reshape(square, (-1, 2)).tolist()
    written = [square, [square], pairs, [pairs], "10,5 20,5 20,15 10,15", "10 5 20 5 20 15 10 15"]
    assert len({cut({"p": p}, polygon="p") for p in written}) == 1
    picture = decoded()
    np.testing.assert_array_equal(picture.part(cut({"p": square}, polygon="p")).array, picture.array[5:15, 10:20])
    both = picture.part(cut({"p": [square, other]}, polygon="p", outside="white"))
    assert both.array.shape == (10, 20, 3) and (both.array[:, 11:15] == 255).all()
    np.testing.assert_array_equal(both.array[:, :10], picture.array[5:15, 10:20])


def runs_of(mask: np.ndarray) -> list[int]:
    flat = mask.T.ravel().astype(int)
    bounds = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), len(flat)]
    return [*([0] if flat[0] else []), *np.diff(bounds).tolist()]


def compressed(runs: list[int]) -> str:
    """As COCO's maskApi.c writes them."""
    text = ""
    for n, run in enumerate(runs):
        number, more = run - (runs[n - 2] if n > 2 else 0), True
        while more:
            digit, number = number & 31, number >> 5
            more = number != -1 if digit & 16 else number != 0
            text += chr(48 + digit + 32 * more)
    return text


def test_a_mask_that_others_have_compressed() -> None:
    given = {"size": [9, 10], "counts": "61X13mN000`0"}  # an example of pycocotools'
    assert read_mask(given) == (9, 10, [6, 1, 40, 4, 5, 4, 5, 4, 21])


masks = st.integers(1, 9).flatmap(
    lambda height: st.lists(st.lists(st.booleans(), min_size=height, max_size=height), min_size=1, max_size=9)
)


@settings(max_examples=40, deadline=None)
@given(masks, st.booleans(), st.integers(1, 8), st.sampled_from([1, 2]))
def test_what_a_mask_shows_is_cut_whichever_way_the_picture_lies(
    columns: list[list[bool]], is_text: bool, orientation: int, scale: int
) -> None:
    mask = np.array(columns).T
    height, width = mask.shape
    runs = runs_of(mask)
    said = json.dumps({"size": [height, width], "counts": compressed(runs) if is_text else runs})
    assert read_mask(json.loads(said)) == (height, width, runs)
    if not mask.any():
        return
    stored = np.full((scale * height, scale * width, 3), 200, np.uint8)
    turned = PIL.Image.fromarray(np.repeat(np.repeat(mask, scale, 0), scale, 1).astype(np.uint8))
    turned.getexif()[274] = orientation
    shown = np.asarray(PIL.ImageOps.exif_transpose(turned)) > 0
    picture = decode_image(encoded(stored, "PNG", orientation), LIMITS)
    part = picture.part(cut({"p": said}, polygon="p", pixels="stored"))
    rows, across = (np.flatnonzero(shown.any(axis)) for axis in (1, 0))
    expected = shown[rows[0] : rows[-1] + 1, across[0] : across[-1] + 1]
    np.testing.assert_array_equal(part.array[..., 0] == 200, expected)
    assert set(np.unique(part.array)) <= {0, 200} and part.array.shape[:2] == expected.shape
    whole = picture.part(cut({"p": said}, polygon="p", pixels="stored", outside="keep"))
    assert whole.array.shape == part.array.shape and (whole.array == 200).all()
    beside = picture.part(cut({"p": said}, polygon="p", pixels="stored", margin=1, outside="white"))
    assert (beside.array == 200).sum() == 3 * shown.sum(), "a margin shows nothing of it"


def test_a_margin_goes_as_far_as_the_picture() -> None:
    picture = decoded()
    part = picture.part(cut({"left": 1, "top": 10, "width": 10, "height": 10}, margin=0.2))
    np.testing.assert_array_equal(part.array, picture.array[8:22, 0:13])
    assert not part.warnings, "what a margin lacks nobody has asked for"


BOX = {"left": 1, "top": 2, "width": 3, "height": 4}


@pytest.mark.parametrize(
    ("values", "options", "said"),
    [
        (BOX | {"width": 0}, {}, r"from \(1, 2\) to \(1, 6\) has no area"),
        (BOX | {"height": -4}, {}, "has no area"),
        (BOX | {"left": "nan"}, {}, "not finite"),
        (BOX | {"left": "inf"}, {}, "not finite"),
        (BOX | {"top": ""}, {}, "column 'top' says nothing"),
        (BOX | {"top": "1,5"}, {}, "column 'top': '1,5' is no number"),
        ({"b": "[1, 2, 3]"}, {"box": "b", "order": ["left", "top", "right", "bottom"]}, "is no box: expected four"),
        ({"b": "[5, 5, 4, 9]"}, {"box": "b", "order": ["left", "top", "right", "bottom"]}, "has no area"),
        ({"left": 0.1, "top": 0.1, "width": 0.2, "height": 0.9}, {}, "say segments.unit: relative"),
        (BOX, {"of": ["W", "H"]}, "column 'W' says nothing"),
        (BOX | {"W": 0, "H": 5}, {"of": ["W", "H"]}, "no picture has that"),
        ({"p": '{"counts": [1], "size": [4, 4]}'}, {"polygon": "p"}, "counts are of 1 pixels, and its size of 16"),
        ({"p": '{"counts": [16], "size": [4, 4]}'}, {"polygon": "p"}, "a mask that shows nothing"),
        ({"p": '{"counts": "6 ", "size": [4, 4]}'}, {"polygon": "p"}, "none of COCO's characters"),
        ({"p": '{"counts": "6X", "size": [4, 4]}'}, {"polygon": "p"}, "end within a number"),
        ({"p": '{"counts": [1], "size": 4}'}, {"polygon": "p"}, r"a mask of size 4: expected \[height, width\]"),
        ({"p": "[1, 2, 3, 4]"}, {"polygon": "p"}, "4 numbers are no polygon"),
        ({"p": "[" * 20_000}, {"polygon": "p"}, "lists within lists|no JSON"),
        ({"p": "[" * 900 + "]" * 900}, {"polygon": "p"}, "lists within lists|no polygon"),
        ({"p": f"[1, 2, 3, 4, 5, {10**400}]"}, {"polygon": "p"}, "is no number"),
        ({"p": "here"}, {"polygon": "p"}, "'here' is no number"),
        (BOX, {"of": ["left", "inf"]}, "column 'inf' says nothing"),
        ({"p": "[1, 2, 1, 4, 1, 5]"}, {"polygon": "p"}, "has no area"),
    ],
)
def test_what_is_no_box_says_why(values: dict[str, Any], options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        cut(values, **options)


def test_a_part_that_was_found_is_cut_anew_by_its_place() -> None:
    place = {"x": 3, "y": 5, "width": 10, "height": 20}
    kind = MODALITIES.load("image")()
    assert kind.cut_of({"cut": "mine:Grid 0123456789abcdef", **place}) == Crop(box=(3, 5, 13, 25)).cut
    given = Crop(box=(3.25, 5, 13, 25)).cut
    assert kind.cut_of({"cut": given, **place}) == given


def test_a_box_beyond_the_picture() -> None:
    picture = decoded()
    part = picture.part(Crop((30, -5, 50, 10)).cut)
    np.testing.assert_array_equal(part.array, picture.array[:10, 30:])
    assert part.warnings == (
        "the box from (30, -5) to (50, 10) reaches beyond the picture of 40x30 pixels, and was cut there",
    )
    assert not picture.part(Crop((30, 0, 40.4, 10)).cut).warnings, "rounding is no overlap"
    for box, reason in (((40, 0, 50, 10), "beyond_edge"), ((3, 3, 3.2, 9), "no_pixels")):
        with pytest.raises(MediaError, match="of 40x30 pixels") as caught:
            picture.part(Crop(box).cut)
        assert caught.value.reason == reason
    for damaged in ("0-10", "{", '{"bax":[1]}'):
        with pytest.raises(ValueError, match="materialize the manifest"):
            picture.part(damaged)


def test_boxes_that_count_in_the_picture_before_exif_turns_it_are_not_cut_out_of_the_turned_one() -> None:
    turned, upright = decoded(40, 30, 6), decoded()
    said = Crop((20, 0, 80, 30), of=(80, 60))  # of a picture twice as large, lying on its side
    with pytest.raises(MediaError, match=r"segments\.pixels: stored"):
        turned.part(said.cut)
    stored = turned.part(Crop(said.box, of=said.of, stored=True).cut)
    np.testing.assert_array_equal(np.rot90(stored.array), upright.part(said.cut).array)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"left": "x", "top": "y", "right": "x2"}, "columns of the box is"),
        ({"box": "b"}, "order is"),
        ({"box": "b", "order": ["left", "top", "right", "height"]}, "order is"),
        ({"box": "b", "order": ["left", "top", "width", "height"], "polygon": "p"}, "three ways"),
        ({"order": ["left", "top", "width", "height"]}, "unless there is a `box`"),
        ({"of": [1600, 900], "unit": "relative"}, "unit is 'relative', expected nothing beside `of`"),
        ({"of": 5}, "of is"),
        ({"margin": -0.1}, "margin is -0.1"),
        ({"picture": None}, "under `picture`"),
        ({"table": None, "picture": None, "polygon": "p"}, "unless there is a `table`"),
    ],
)
def test_settings_that_do_not_fit_together(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        cut(BOX, **options)


# In a project

PROJECT = """
name: street
sources:
  - name: objects
    modality: image
    files: frames
    segments: {kind: boxes, table: boxes.csv, picture: frame, key: id}
  - {name: notes, modality: text, table: notes.csv, column: note, key: id}
align: {label: class, split: {train: 0.5, validation: 0.2}}
features:
  image: {size: 8}
engine: {workers: 2}
"""
ROWS = [
    # id, frame, left, top, width, height, class
    ("a1", "a", 100, 80, 60, 60, "car"),
    ("a2", "a.jpg", 300, 20, 60, 40, "bus"),
    ("a3", "a", 390, 10, 60, 60, "car"),  # 50 pixels of it are beyond the edge
    ("b1", "b", 0, 0, 400, 160, "car"),
    *((f"{name}1", name, 50, 50, 30, 20, "car") for name in "defghijk"),
    ("gone", "a", 500, 10, 60, 60, "car"),
    ("flat", "a", 10, 10, 0, 60, "car"),
    ("nan", "a", "nan", 10, 5, 60, "car"),
    ("nobody", "z", 10, 10, 5, 60, "car"),
    ("unnamed", "", 10, 10, 5, 60, "car"),
    ("broken1", "broken", 10, 10, 5, 60, "car"),
    ("a1", "a", 100, 80, 60, 60, "car"),
]


def write_table(path: Path, rows: list[tuple[Any, ...]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def write_boxes(folder: Path, rows: list[tuple[Any, ...]] = ROWS) -> None:
    write_table(folder / "boxes.csv", [("id", "frame", "left", "top", "width", "height", "class"), *rows])
    write_table(
        folder / "notes.csv", [("id", "note"), *((name, f"Number {name}.") for name in {row[0] for row in rows})]
    )


@pytest.fixture
def project(tmp_path: Path, home: Path) -> Path:
    folder = tmp_path / "street"
    (folder / "frames").mkdir(parents=True)
    for n, name in enumerate("abcdefghijk"):  # b is turned
        picture = encoded(noise(400, 160, n) if name != "b" else noise(160, 400, n), "JPEG", 6 if name == "b" else 1)
        (folder / "frames" / f"{name}.jpg").write_bytes(picture)
    (folder / "frames" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    write_boxes(folder)
    (folder / "project.yaml").write_text(PROJECT)
    return folder / "project.yaml"


def processed(path: Path) -> tuple[pipeline.Lake, int]:
    """The lake with clean items and features, and how many crops were new."""
    project = load(path)
    lake = pipeline.open_lake(project)
    pipeline.write_manifest(lake, project)
    return lake, [featurizing.process_modality(lake, project, m)["processed"] for m in ("text", "image")][1]


def test_boxes_from_the_project_file_to_the_pixels_of_samples(
    project: Path, decoded_sizes: dict[str, list[int | None]]
) -> None:
    lake, _ = processed(project)
    assert decoded_sizes["image"] == [None] * 11, "each picture is decoded once, in full, however many boxes it has"
    settings = load(project)
    pipeline.write_samples(lake, settings)

    rows = lake.sql(
        "SELECT key, x, y, width, height, len(warnings) AS warned, id, sha256, c.cut, member, uri FROM manifest m "
        "JOIN clean_image c ON parent_id = sha256 AND m.cut = c.cut ORDER BY key"
    ).to_pylist()
    assert [tuple(row[n] for n in ("key", "x", "y", "width", "height", "warned")) for row in rows] == [
        ("a1", 100, 80, 60, 60, 0),
        ("a2", 300, 20, 60, 40, 0),
        ("a3", 390, 10, 10, 60, 1),
        ("b1", 0, 0, 400, 160, 0),
        *((f"{name}1", 50, 50, 30, 20, 0) for name in "defghijk"),
    ]
    for row in rows:
        assert row["id"] == content_id(row["sha256"], row["cut"])
    assert json.loads(rows[0]["cut"]) == {"box": [100, 80, 160, 140]}

    keys = {row["item_id"]: row["key"] for row in lake.sql("SELECT item_id, key FROM manifest").to_pylist()}
    refused = lake.sql("SELECT * FROM quarantine WHERE modality = 'image'").to_pylist()
    refused = {row["key"] or keys.get(row["item_id"]): row for row in refused}
    assert {key: (row["outcome"], row["reason"]) for key, row in refused.items()} == {
        "gone": ("quarantined", "beyond_edge"),
        "flat": ("quarantined", "malformed"),
        "nan": ("quarantined", "malformed"),
        "nobody": ("quarantined", "not_found"),
        "unnamed": ("quarantined", "absent"),
        "broken1": ("quarantined", "corrupt"),
        "a1": ("duplicate", "duplicate"),
        "c": ("unmatched", "no_segments"),
    }
    for key, said in {"gone": "a.jpg, row 14: the box from (500, 10)", "flat": "boxes.csv line 15: the box"}.items():
        assert said in refused[key]["message"]
    assert check_balance(lake, settings).passed
    counted = pipeline.balance(lake, settings).counts["image"]
    assert (counted["passed"], counted["unmatched"], counted["lost"], counted["twice"]) == (12, 1, 0, 0)

    samples = lake.sql("SELECT sample_id, label, split FROM samples WHERE image_id IS NOT NULL").to_pylist()
    assert {row["sample_id"]: row["label"] for row in samples} == {row[0]: row[-1] for row in ROWS[:12]}
    assert len({row["split"] for row in samples if row["sample_id"][0] == "a"}) == 1
    assert check_leakage(lake, settings).passed

    # What people and models see is the crop, in full resolution
    whole = decode_image((project.parent / "frames" / "a.jpg").read_bytes(), LIMITS).array
    shown = tiles(settings, "image", lake.read("image_features"))
    area = whole[80:140, 100:160].reshape(60, 60, 3).astype(float)
    assert min(np.abs(t.astype(float).mean((0, 1)) - area.mean((0, 1))).max() for t in shown) < 2
    split = next(row["split"] for row in samples if row["sample_id"] == "a1")
    write_raw(lake, project.parent / "raw.parquet", split, settings.make_sources())
    (row,) = (r for r in pq.read_table(project.parent / "raw.parquet").to_pylist() if r["sample_id"] == "a1")
    np.testing.assert_array_equal(decode_image(row["image"], LIMITS, 8).array, whole[80:140, 100:160])
    assert (row["label"], json.loads(row["attributes"])["left"]) == ("car", "100")

    spec = SimpleNamespace(lake=lake.uri, storage_options={}, features=settings.features)
    assert prediction_table._inputs(spec, ["a1"])["a1"]["image"] == "a.jpg, 60x60 pixels from (100, 80)"

    decodings, before = len(decoded_sizes["image"]), lake.read("clean_image").num_rows
    assert processed(project)[1] == 0 and len(decoded_sizes["image"]) == decodings
    write_boxes(project.parent, [row if row[0] != "a2" else ("a2", "a", 301, 20, 60, 40, "bus") for row in ROWS])
    assert processed(project)[1] == 1 and len(decoded_sizes["image"]) == decodings + 1, "only what changed"
    assert lake.read("clean_image").num_rows == before + 1

    torn = load(project, ["align.group=notes.id"])
    pipeline.write_samples(lake, torn)
    leak = check_leakage(lake, torn)
    assert not leak.passed and "1 item of image stands on more than one side" in (leak.description or "")


def test_a_whole_picture_beside_its_crops_has_the_features_that_it_has_alone(project: Path) -> None:
    data = (project.parent / "frames" / "a.jpg").read_bytes()
    step = featurizing.make_step(load(project), "image")
    schema = pa.schema([*MANIFEST, ("data", pa.large_binary()), ("data_error", pa.string()), ("parts", PARTS)])

    def features(*cuts: str | None) -> dict[str, bytes]:
        asked = [{"item_id": str(cut), "source": "s", "uri": "a.jpg", "cut": cut, "need": ["features"]} for cut in cuts]
        item = {"item_id": "item", "uri": "a.jpg", "sha256": "whole", "data": data, "parts": asked}
        outcome = step(pa.RecordBatch.from_pylist([item], schema))
        return {row["id"]: row["pixels"] for row in outcome.features.to_pylist()}

    crop = Crop((0, 0, 100, 100)).cut
    alone, both = features(None), features(None, crop)
    assert both["whole"] == alone["whole"] and both.keys() == {"whole", content_id("whole", crop)}
    assert features(crop).items() <= both.items()
    full = features(Crop((0, 0, 400, 160)).cut)
    assert list(full.values()) != list(alone.values()), "libjpeg makes a smaller picture than the mean of areas does"


def test_check_counts_boxes_by_their_table(project: Path) -> None:
    found = check(load(project))
    assert (found.sources["objects"].listed, found.sources["objects"].seen) == (14, 20)
    assert found.refused["no_segments"] == 1 and any("not within" in message for message in found.unreadable)


def test_boxes_in_the_own_table_of_a_source(project: Path) -> None:
    source = SourceSettings.of(
        name="objects", modality="image", files="frames", table="boxes.csv", file="frame", key="id", segments="boxes"
    )
    entries = {entry.key: entry for entry in source.make(project.parent).list()}
    assert entries["a1"].cut == Crop((100, 80, 160, 140)).cut and entries["flat"].reason == "malformed"
    assert entries["c.jpg"].reason == "no_segments" and "'width' and 'height'" in entries["c.jpg"].message


def test_annotations_of_coco(project: Path) -> None:
    images = [{"id": n, "file_name": f"{name}.jpg", "width": 2400, "height": 800} for n, name in enumerate("abc")]
    square = [200, 400, 320, 400, 320, 520, 200, 520]
    annotations = [
        {"id": 11, "image_id": 0, "category_id": 3, "bbox": [200.5, 400, 120.2, 120], "segmentation": [square]},
        {
            "id": 12,
            "image_id": 1,
            "category_id": 4,
            "bbox": [0, 0, 20, 20],
            "segmentation": {"counts": [3], "size": []},
        },
    ]
    (project.parent / "instances.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    shared = {"kind": "boxes", "table": "instances.json", "rows": "annotations", "picture": "image_id", "key": "id"}
    shared |= {"of": ["width", "height"]}  # of the picture's own row

    def listed(**options: Any) -> dict[str | None, Any]:
        table = {"table": "instances.json", "rows": "images", "key": "id", "file": "file_name"}
        source = SourceSettings.of(
            name="objects", modality="image", files="frames", **table, segments={**shared, **options}
        )
        return {entry.key: entry for entry in source.make(project.parent).list()}

    entries = listed(box="bbox", order=["left", "top", "width", "height"])
    assert entries["11"].cut == Crop((200.5, 400, 320.7, 520), of=(2400, 800)).cut
    assert json.loads(entries["11"].attributes)["category_id"] == "3" and entries["2"].reason == "no_segments"
    entries = listed(polygon="segmentation")
    assert entries["11"].cut == Crop(polygons=[square], of=(2400, 800)).cut and "mask" in entries["12"].message
    assert "segmentation" not in json.loads(entries["11"].attributes)


@pytest.mark.skipif(not TRAFFIC.is_dir(), reason="the shared data folder is not there (TRIPTYCH_SHARED)")
def test_key_objects_of_traffic_scenes(tmp_path: Path, home: Path) -> None:
    objects = []
    with (TRAFFIC / "frames.csv").open(newline="") as file:
        for frame in csv.DictReader(file):
            for name, said in json.loads(frame["key_objects"]).items():
                number, camera, *_ = name.strip("<>").split(",")
                box = {"id": f"{frame['frame_id']}/{number}", "file": frame[camera], "box": json.dumps(said["2d_bbox"])}
                objects.append(box | {"category": said["Category"]})
    write_table(tmp_path / "objects.csv", [tuple(objects[0]), *(tuple(row.values()) for row in objects)])
    (tmp_path / "project.yaml").write_text(
        f"""
name: traffic
sources:
  - name: objects
    modality: image
    files: {TRAFFIC / "frames_jpg.tar"}
    segments: {{kind: boxes, table: objects.csv, picture: file, key: id, box: box,
      order: [left, top, right, bottom], of: [1600, 900]}}
align: {{label: category}}
features: {{image: {{size: 16}}}}
"""
    )
    project = load(tmp_path)
    lake = pipeline.open_lake(project)
    pipeline.write_manifest(lake, project)
    featurizing.process_modality(lake, project, "image")
    rows = lake.sql(
        "SELECT m.key, x, y, width, height, json_extract_string(attributes, '$.box') AS box FROM manifest m "
        "JOIN clean_image c ON parent_id = sha256 AND c.cut = m.cut"
    ).to_pylist()
    assert len(rows) == len(objects) > 20
    for row in rows:
        left, top, right, bottom = (edge / 2 for edge in json.loads(row["box"]))
        assert abs(row["x"] - left) <= 0.5 and abs(row["y"] - top) <= 0.5
        assert abs(row["x"] + row["width"] - right) <= 0.5 and abs(row["y"] + row["height"] - bottom) <= 0.5
