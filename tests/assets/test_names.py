"""Blanks around a name and its Unicode form never make two of one; whatever could be meant stays."""

import csv
import unicodedata
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assets.alignment import align
from assets.names import normalize
from assets.scan import scan
from assets.settings import AlignSettings, SplitSettings
from assets.source_settings import SourceSettings
from orchestration.erasure import erase
from orchestration.project import load


def decomposed(text: str) -> str:
    return unicodedata.normalize("NFD", text)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("cat", "cat"),
        (" cat\t\r\n", "cat"),
        ("\ufeffcat\u200b", "cat"),
        ("\u3000猫\xa0", "猫"),
        ("\u200fقط\u200f", "قط"),
        (decomposed("café"), "café"),
        (" \u200b ", ""),
        ("New  York", "New  York"),
        ("a\nb", "a\nb"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("👩\u200d🔬", "👩\u200d🔬"),
        ("007", "007"),
        ("²", "²"),
    ],
)
def test_a_name_has_one_form(given, name):
    assert normalize(given) == name


@given(st.text())
def test_a_normal_name_stays(text):
    assert normalize(normalize(text)) == normalize(text)
    assert text.isascii() or unicodedata.is_normalized("NFC", normalize(text))


def write(path: Path, rows: list[list[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Notes and photos under the same names in other spellings, with labels, speakers and parts to train on."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(4):
        (folder / f"{decomposed('café')} {n}.png").write_bytes(b"%d" % n)
    rows = [[f"café {n}" + " " * (n % 2), f"note {n}", *cells] for n, cells in enumerate(CELLS)]
    write(tmp_path / "notes.csv", [["id", "note", "label", "who", "part"], *rows])
    write(
        tmp_path / "links.csv",
        [["n", "photos", "notes"], *([f"{n}\xa0", row[0], row[0]] for n, row in enumerate(rows))],
    )
    return tmp_path


CELLS = [
    ["cat", "zoé", "train"],
    ["cat ", decomposed("zoé"), " Train"],
    ["\u200bcat", " zoé", "train\u200b"],
    [" ", "\xa0", "train"],
]
SOURCES = [
    SourceSettings.of(name="photos", modality="image", files="photos"),
    SourceSettings.of(name="notes", modality="text", table="notes.csv", key="id", column="note"),
]


def aligned(root: Path, settings: AlignSettings) -> list[dict]:
    manifest = pa.concat_tables(scan(source, root).rows for source in SOURCES)
    clean = {m: pa.table({"id": manifest["sha256"]}) for m in ("image", "text")}
    return align(manifest, clean, settings, SOURCES, root, {}).samples.to_pylist()


@pytest.mark.parametrize("links", [{}, {"table": "links.csv", "id": "n"}])
def test_keys_labels_groups_and_parts_are_compared_in_one_form(shop, links):
    rule = AlignSettings(label="label", group=("who",), split=SplitSettings(column="part"), **links)
    rows = aligned(shop, rule)
    assert [row["sample_id"] for row in rows] == (
        [f"{n}" for n in range(4)] if links else [f"café {n}" for n in range(4)]
    )
    assert all(row["image_id"] and row["text_id"] for row in rows)
    assert [row["label"] for row in rows] == ["cat", "cat", "cat", None]
    assert [row["groups"] for row in rows] == ['{"who": "zoé"}'] * 3 + ["{}"]
    assert [row["split"] for row in rows] == ["train"] * 3 + ["unlabelled"]


def test_test_values_are_compared_in_one_form(shop):
    rule = AlignSettings(label="label", held_out=("who",), test_values={"who": (decomposed("zoé") + " ",)})
    assert [row["split"] for row in aligned(shop, rule)] == ["test"] * 3 + ["unlabelled"]


def test_two_spellings_of_a_key_with_one_content_are_a_duplicate(tmp_path):
    write(tmp_path / "notes.csv", [["id", "note"], ["a", "same"], ["a ", "same"], ["A", "same"]])
    found = scan(SOURCES[1], tmp_path)
    assert found.rows["key"].to_pylist() == ["a", "A"]
    assert found.quarantine["reason"].to_pylist() == ["duplicate"]


def test_cells_that_name_files_and_parts_of_keys_have_one_form(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.png").write_bytes(b"1")
    write(tmp_path / "photos.csv", [["patient", "visit", "file"], [decomposed("zoé "), " v1", "1.png\xa0"]])
    options = {"files": "photos", "table": "photos.csv", "key": ["patient", "visit"], "file": "file"}
    found = scan(SourceSettings.of(name="photos", modality="image", **options), tmp_path)
    assert found.rows["key"].to_pylist() == ["zoé/v1"] and found.quarantine.num_rows == 0


def test_what_is_erased_may_be_called_as_its_table_spells_it(tiny):
    from assets import pipeline

    project = load(tiny)
    pipeline.write_manifest(pipeline.open_lake(project), project)
    assert len(erase(project, " q00\u200b", True, False).items) == 3
