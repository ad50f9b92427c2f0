"""What is told of items, keys and labels: the right counts, examples and advice, and nothing where all is well."""

import csv
import json
import time
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from assets.alignment import Alignment, align
from assets.findings import Finding
from assets.joins.matching import unmatched
from assets.labels import disputed_inputs, label_findings, label_rows, label_table
from assets.scan import scan
from assets.settings import AlignSettings, Project
from assets.source_settings import SourceSettings
from training.family import Choice
from training.schema import SAMPLES
from training.settings import ModelSettings


def write(path: Path, *rows: list[str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


# Keys, links and rows that were refused


def source(name: str, **options: Any) -> SourceSettings:
    return SourceSettings.of(name=name, **options)


NOTES = source("notes", modality="text", table="notes.csv", key="id", column="note")
PHOTOS = source("photos", modality="image", files="photos")


def aligned(root: Path, settings: AlignSettings | None = None, sources: Any = (PHOTOS, NOTES)) -> Alignment:
    scans = [scan(s, root) for s in sources]
    manifest, refused = pa.concat_tables(s.rows for s in scans), pa.concat_tables(s.quarantine for s in scans)
    clean = {m: pa.table({"id": manifest["sha256"]}) for m in ("image", "text")}
    return align(manifest, clean, settings or AlignSettings(), sources, root, {}, refused)


def shop(root: Path, photos: list[str], notes: list[str]) -> Path:
    (root / "photos").mkdir()
    for name in photos:
        (root / "photos" / name).parent.mkdir(exist_ok=True)
        (root / "photos" / name).write_bytes(name.encode())
    write(root / "notes.csv", ["id", "note", "label"], *([key, f"note {key}", "x"] for key in notes))
    return root


def test_nothing_is_told_where_all_keys_match(tmp_path):
    assert aligned(shop(tmp_path, ["1.png", "2.png"], ["1", "2"])).findings == []


@pytest.mark.parametrize(
    ("photo", "note", "way"),
    [
        ("A1.png", "a1", "without case"),
        ("b.png", "b.png", "without the suffix"),
        ("c.png", "day/c", "without the folder"),
        ("7.png", "007", "without leading zeros"),
        ("img_7.png", "img_0007", "without leading zeros"),
        ("d 1.png", "d-1", "without spaces and punctuation"),
        ("１２.png", "12", "without full-width characters"),
        ("Café.png", "Cafe", "without accents"),
        ("ab\u200bc.png", "abc", "without invisible characters"),
        ("E 5.png", "day/e_05.jpg", "without several such differences"),
        ("IMG_1234.png", "1234", "by their digits alone"),
    ],
)
def test_keys_that_match_nothing_are_told_with_what_would_match(tmp_path, photo, note, way):
    notes, photos = aligned(shop(tmp_path, ["same.png", photo], ["same", note])).findings
    key = photo.removesuffix(".png")
    assert photos == Finding(
        "unmatched_keys",
        f"source photos: 1 of 2 keys occur in no other modality, such as {key!r}; of these 1 would match "
        f"{way} ({key!r} and '{note}')",
    )
    assert notes.message.startswith("source notes: 1 of 2 keys") and f"('{note}' and {key!r})" in notes.message


def test_what_would_match_is_part_of_the_error_when_nothing_does(tmp_path):
    with pytest.raises(ValueError, match=r"no key of modality image .*of these 2 would match without the suffix \('1'"):
        aligned(shop(tmp_path, ["1.png", "2.png"], ["1.png", "2.png"]))


def test_cells_of_links_that_name_nothing_are_told(tmp_path):
    root = shop(tmp_path, ["1.png", "2.png", "3.png"], ["a", "b", "c"])
    write(root / "links.csv", ["photos", "notes"], ["1.png", "a"], ["p/2.png", "b"], ["3", "d"])
    photos, notes = (f.message for f in aligned(root, AlignSettings(table="links.csv")).findings[::-1])
    assert "column 'photos' of" in photos and "1 of 3 keys name nothing in source photos, such as 'p/2.png'" in photos
    assert "1 would match without the folder ('p/2.png' and '2.png')" in photos
    assert "column 'notes' of" in notes and notes.endswith("1 of 3 keys name nothing in source notes, such as 'd'")


def test_keys_of_which_many_end_alike_are_compared_at_once():
    """Two hundred folders with the same names on both sides would be eight million pairs."""
    keys = (
        "SELECT '{0}' AS source, '{0}' AS modality, '{0}' || i || '/' || j AS key FROM range(200) a(i), range(200) b(j)"
    )
    own, other = keys.format("left"), keys.format("right")
    begun = time.monotonic()
    with duckdb.connect() as connection:
        (found,) = unmatched(connection, own, f"{own} UNION ALL {other}", "o.source <> k.source")
    assert found.unmatched == 40_000 and "40,000 would match without the folder" in found.advice
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("settings", [AlignSettings(), AlignSettings(label="label")])
def test_refused_rows_are_told_before_keys_and_columns(tmp_path, settings):
    root = shop(tmp_path, ["1.png"], [])
    with (root / "notes.csv").open("a") as file:
        file.writelines(f"{n},note,x,too much\n" for n in range(1, 4))
    write(root / "more.csv", ["id", "note"], ["2", "another"])
    more = source("more", modality="text", table="more.csv", key="id", column="note")
    with pytest.raises(
        ValueError, match=r"^source notes: 3 of 3 items are refused \(3 malformed\), such as .*line 2 "
    ) as e:
        aligned(root, settings, (PHOTOS, NOTES, more))
    assert "; align: no " in str(e.value)


def test_most_refused_is_told_where_nothing_fails(tmp_path):
    root = shop(tmp_path, ["1.png", "2.png"], ["1"])
    with (root / "notes.csv").open("a") as file:
        file.writelines(["2,note,x,y\n", "3,note,x,y\n", "4,,x\n"])
    first = aligned(root).findings[0]
    assert first.code == "refused" and first.message.startswith("source notes: 2 of 3 items are refused (2 malformed)")


def test_a_duplicate_that_says_something_else_is_told(tmp_path):
    write(tmp_path / "notes.csv", ["id", "note", "label"], ["1", "a", "cat"], ["1", "a", "dog"], ["1", "a", "cat"])
    found = aligned(tmp_path, sources=[NOTES])
    (finding,) = found.findings
    assert finding.code == "differing_duplicate"
    assert finding.message.startswith(
        "1 row with a key and content that stood before and other values: the first counts"
    )
    assert "line 3: the same key and content as" in finding.message
    assert finding.message.endswith("line 2, and other values (label: 'dog' instead of 'cat')")


def test_two_tables_that_give_another_label_are_told(tmp_path):
    root = shop(tmp_path, ["1.png", "2.png"], ["1", "2"])
    write(root / "photos.csv", ["file", "label"], ["1.png", "x"], ["2.png", "y"])
    photos = source("photos", modality="image", files="photos", table="photos.csv", key="file")
    write(root / "notes.csv", ["id", "note", "label"], ["1.png", "a", "x"], ["2.png", "b", "x"])
    (finding,) = aligned(root, AlignSettings(label="notes.label"), (photos, NOTES)).findings
    assert finding == Finding(
        "conflicting_labels",
        "1 sample with another value in column 'photos.label' than the label: '2.png': 'x' and 'y'",
    )


# Labels


def made(output: str) -> Project:
    model = ModelSettings(output=Choice(output))
    return Project(name="x", sources=(NOTES,), align=AlignSettings(label="label"), model=model)


def told(labels: dict[str, list[str | None]], output: str = "class", **more: Any) -> dict[str, str]:
    """Split -> labels of its samples; returns code -> message."""
    rows = [
        {"sample_id": f"{split} {n}", "split": split, "label": label, "text_id": f"{split} {n}"} | more
        for split, some in labels.items()
        for n, label in enumerate(some)
    ]
    return {f.code: f.message for f in label_findings(pa.Table.from_pylist(rows, SAMPLES), made(output))}


GOOD: dict[str, list[str | None]] = {"train": ["cat", "dog"] * 4, "test": ["cat", "dog"]}


@pytest.mark.parametrize("output", ["class", "text"])
def test_nothing_is_told_of_good_labels(output):
    assert told(GOOD, output) == {}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("cat", "Cat"), ("3", "3.0"), ("3", "03"), ("3,50", "3.5"), ("t-shirt", "t shirt"), ("New York", "New_York"),
        ("yes", "yes."), ("ＡＢ", "ab"), ("grade 1", "grade1"), ("cat", "ca\u200bt"), ("New\xa0York", "New York"),
    ],
)  # fmt: skip
def test_labels_that_look_like_slips_are_told(one, other):
    message = told({"train": [one] * 5 + [other] * 2})["labels_alike"]
    assert message == f"labels that may mean one class are several: {one!r} (5 rows) and {other!r} (2 rows)"


@pytest.mark.parametrize(
    ("one", "other"), [("A+", "A-"), ("C", "C++"), ("1-2", "12"), ("+1", "-1"), ("cat", "cats"), ("1.5", "15")]
)
def test_labels_that_mean_different_things_are_not(one, other):
    assert "labels_alike" not in told({"train": [one, other] * 4})


def test_rare_unseen_and_missing_labels_are_told():
    found = told({"train": [*["cat"] * 5, "owl", None], "test": ["cat", "dog", "dog"], "unlabelled": [None]})
    assert found["rare_class"] == "1 class of 3 with a single row: 'owl'"
    said = "1 label of validation or test that training never sees (2 rows, never right): 'dog'"
    assert found["unseen_label"] == said
    assert found["unlabelled"] == "2 of 11 samples have no label (column 'label'), such as 'train 6', 'unlabelled 0'"
    assert told({"train": ["cat"] * 5})["one_class"] == "all 5 labels are 'cat': there is nothing to learn"
    assert told({"train": [f"{n}" for n in range(9)]})["many_classes"].startswith("9 classes in 9 rows: ")


def test_labels_that_can_hardly_be_answers_are_told():
    long, broken = "very long " * 12, "a\nb"
    found = told({"train": [long, broken, "cat"] * 3})["doubtful_label"]
    assert found.startswith("2 labels of 6 rows can hardly be an answer: 'very long very") and "120 characters" in found
    assert found.endswith("'a\\nb' holds a line break")
    written = told({"train": [long, broken, "cat"] * 3}, "text")["doubtful_label"]
    assert written.startswith("1 label of 3 rows") and "about 30 tokens" in written and "max_new_tokens (16)" in written


def test_of_texts_only_what_concerns_texts_is_told():
    captions = {"train": [f"a picture of a {n}" for n in range(9)], "test": ["A picture", "a picture", "word " * 20]}
    assert set(told(captions, "text")) == {"doubtful_label"}
    assert {"rare_class", "unseen_label", "labels_alike"} <= set(told(captions, "class"))


def test_one_input_with_several_labels_is_told():
    labels = ["cat", "dog", "cat", None, "cat"]
    rows = [{"sample_id": str(n), "label": label, "text_id": "t", "image_id": "i"} for n, label in enumerate(labels)]
    project = made("class")
    (finding,) = disputed_inputs(pa.Table.from_pylist(rows, SAMPLES), project)
    said = "4 samples have inputs that stand under several labels (1 input): "
    assert finding.message == said + "'0', '1', '2' and 1 more: 'cat', 'dog'"
    other = [row | {"image_id": f"i{n}"} for n, row in enumerate(rows)]
    assert disputed_inputs(pa.Table.from_pylist(other, SAMPLES), project) == []
    texts = [row | {"label": f"a picture of {n}"} for n, row in enumerate(rows)]
    assert disputed_inputs(pa.Table.from_pylist(texts, SAMPLES), made("text")) == []


def test_a_key_of_several_items_with_several_labels_is_told(tmp_path):
    rows = [{"sample_id": f"k#{n:016x}", "label": "xy"[n % 2], "split": "train"} for n in range(4)]
    found = {f.code: f.message for f in label_findings(pa.Table.from_pylist(rows, SAMPLES), made("class"))}
    assert found["conflicting_labels"] == "1 key of several items with several labels: 'k': 'x', 'y'"


def test_of_several_labels_each_is_told_by_its_column():
    model = ModelSettings(outputs={"kind": "class", "price": "number"})
    project = Project(name="x", sources=(NOTES,), align=AlignSettings(), model=model)
    labels = [{"kind": "cat", "price": "3"}, {"kind": "Cat", "price": "much"}, {"price": "4"}, {"kind": "dog"}] * 2
    rows = [{"sample_id": str(n), "label": json.dumps(x), "split": "train"} for n, x in enumerate(labels)]
    samples = pa.Table.from_pylist(rows, SAMPLES)
    found = [(f.code, f.message) for f in label_findings(samples, project)]
    assert [code for code, _ in found] == ["unlabelled", "labels_alike", "unlabelled", "doubtful_label"]
    assert found[0][1].startswith("kind: 2 of 8 samples have no label (column 'kind')")
    assert found[3][1].startswith(
        "price: 1 label of 2 rows can hardly be an answer: 'much' cannot be read: it is no number"
    )
    table = label_table(label_rows(samples, project.make_output())).to_pylist()
    assert {row["label"]: row["train"] for row in table}["kind: cat"] == 2 and len(table) == 6


def test_labels_are_counted_by_split():
    rows = [{"sample_id": str(n), "label": "ab"[n % 2], "split": "test" if n > 5 else "train"} for n in range(7)]
    assert label_table(pa.Table.from_pylist(rows, SAMPLES)).to_pylist() == [
        {"label": "a", "rows": 4, "train": 3, "validation": 0, "test": 1},
        {"label": "b", "rows": 3, "train": 3, "validation": 0, "test": 0},
    ]
