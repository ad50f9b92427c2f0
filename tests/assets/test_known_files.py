"""What lies in files that are as they were is not listed anew, and what is listed is the same as if it were."""

import io
import os
import tarfile
import time
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assets import pipeline
from assets.storage import _TICK_SECONDS
from orchestration.project import load

PROJECT = """
name: files
sources:
  - {name: notes, modality: text, table: notes/*.csv, column: note, key: id}
  - {name: pictures, modality: image, files: pictures/*.tar}
align: {label: answer}
"""
_cells = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["one", "two", " "])), min_size=1, max_size=3)
_folder = st.dictionaries(st.sampled_from(["1", "2", "3"]), _cells, min_size=1)


@pytest.fixture
def project(tmp_path: Path, home: Path):
    (tmp_path / "project.yaml").write_text(PROJECT)
    for folder in ("notes", "pictures"):
        (tmp_path / folder).mkdir()
    return load(tmp_path)


def write(path: Path, cells: list[tuple[str, str]], moment: int) -> None:
    """A table or an archive of keys and contents, as it lay there long ago."""
    if path.suffix == ".csv":
        path.write_text("\n".join(["id,note,answer", *(f"{key},{note},yes" for key, note in cells)]))
    else:
        with tarfile.open(path, "w") as archive:
            for key, note in cells:
                member = tarfile.TarInfo(f"{key}.png")
                member.size = len(note)
                archive.addfile(member, io.BytesIO(note.encode()))
    os.utime(path, (moment, moment))


def put(folder: Path, files: dict[str, list], moment: int) -> None:
    """Makes the folder hold these files; those that are as they were stay."""
    suffix = ".csv" if folder.name == "notes" else ".tar"
    for path in folder.iterdir():
        if path.stem not in files:
            path.unlink()
    for name, cells in files.items():
        path = folder / f"{name}{suffix}"
        before = path.read_bytes() if path.exists() else b""
        then = path.stat().st_mtime if before else moment
        write(path, cells, moment)
        if path.read_bytes() == before:
            os.utime(path, (then, then))


def facts(rows) -> list[dict]:
    return sorted(rows.to_pylist(), key=lambda row: (row["item_id"], row["uri"], row["row"] or 0))


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(_folder, _folder), min_size=3, max_size=3))
def test_the_same_is_listed_file_by_file_as_of_all_files(project, states):
    lake, root = pipeline.open_lake(project), Path(project.root)
    for moment, (notes, pictures) in enumerate(states, 1_000_000):
        put(root / "notes", notes, moment)
        put(root / "pictures", pictures, moment)
        time.sleep(2 * _TICK_SECONDS)  # until then the time of what was written is not told
        listing = pipeline.write_manifest(lake, project)
        scans = pipeline.scan_sources(lake, project)
        assert facts(lake.read("manifest")) == facts_of([scan.rows for scan in scans])
        refused = lake.sql("SELECT * FROM quarantine WHERE stage = 'manifest'")
        assert facts(refused) == facts_of([scan.quarantine for scan in scans])
        assert (listing.seen, listing.listed) == (sum(s.seen for s in scans), sum(s.rows.num_rows for s in scans))
        assert {name: change.items for name, change in listing.sources.items() if change.items} == {
            scan.source: scan.rows.num_rows for scan in scans if scan.rows.num_rows
        }


def facts_of(tables: list) -> list[dict]:
    return facts(pa.concat_tables(tables))


def test_only_files_that_changed_are_opened(project, monkeypatch):
    lake, root, asked = pipeline.open_lake(project), Path(project.root), []
    scan_into = pipeline.scan_into
    monkeypatch.setattr(pipeline, "scan_into", lambda *given: (asked.append(given[-1]), scan_into(*given))[1])

    def listed() -> pipeline.Listing:
        time.sleep(2 * _TICK_SECONDS)  # what was written just now would be read again the next time
        return pipeline.write_manifest(lake, project)

    for name in "123":
        write(root / "notes" / f"{name}.csv", [(name, f"note {name}")], 1_000)
        write(root / "pictures" / f"{name}.tar", [(name, f"picture {name}")], 1_000)
    assert listed().words == "6 items, 0 refused" and asked == [None, None]

    asked.clear()
    write(root / "notes" / "2.csv", [("2", "note 2"), ("9", "another")], 2_000)
    write(root / "pictures" / "4.tar", [("4", "picture 4")], 2_000)
    (root / "pictures" / "1.tar").unlink()
    listing = listed()
    assert listing.words == "7 items, 0 refused; 2 new, 1 vanished" and listing.reused == 4
    assert asked == [{str(root / "notes" / "2.csv")}, {str(root / "pictures" / "4.tar")}]

    asked.clear()
    write(root / "notes" / "2.csv", [("1", "note 1")], 3_000)
    listing = listed()
    shared = {str(root / "notes" / f"{name}.csv") for name in "12"}
    assert asked == [{str(root / "notes" / "2.csv")}, shared], "of the same content under one key one is kept"
    assert listing.listed == 5 and listing.refused == 1
    asked.clear()
    (root / "notes" / "1.csv").unlink()
    listing = listed()
    assert listing.refused == 0 and asked == [set(), {str(root / "notes" / "2.csv")}], "the other one stands for it now"
    assert listed().words == "5 items, 0 refused; as before"


def test_a_file_of_other_columns_is_told_whichever_is_read(project):
    lake, root = pipeline.open_lake(project), Path(project.root)
    write(root / "pictures" / "1.tar", [("1", "picture")], 1_000)
    for name in "12":
        write(root / "notes" / f"{name}.csv", [(name, f"note {name}")], 1_000)
    pipeline.write_manifest(lake, project)
    (root / "notes" / "2.csv").write_text("id,note,other\n2,note,yes")
    with pytest.raises(ValueError, match="its columns are id, note, other, those of the first file"):
        pipeline.write_manifest(lake, project)
