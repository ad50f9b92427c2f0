"""How tables name files, what files' paths say, links, and keys of several columns."""

import json
import os
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assets.file_names import FileNames
from assets.keys import key_of
from assets.path_pattern import PathPattern
from assets.scan import Scan, scan
from assets.source_settings import SourceSettings
from assets.sources.base import Entry, SourceError
from assets.storage import is_outside


def listed(root: Path, **fields: Any) -> Scan:
    return scan(SourceSettings.of(**{"name": "s", "modality": "image"} | fields), root)


def make_files(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return folder


def write_table(path: Path, *names: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(["id;file", *(f"{n};{name}" for n, name in enumerate(names))]), "utf-8")


def found(root: Path, *names: str, table: str = "t.csv", files: Any = "data/photos") -> list[str]:
    """What the names are taken for: the path of the file, or the reason and message of the refusal."""
    write_table(root / table, *names)
    scanned = listed(root, files=files, table=table, key="id", file="file")
    rows = {row["row"]: Path(row["uri"]).name for row in scanned.rows.to_pylist()}
    rows |= {row["row"]: f"{row['reason']}: {row['message']}" for row in scanned.quarantine.to_pylist()}
    return [rows[n + 2] for n in range(len(names))]


# Names of files in tables


@pytest.mark.parametrize(
    "name",
    [
        "train/1.png",
        "train\\1.png",
        "./train/1.png",
        ".\\train\\1.png",
        "photos/train/1.png",
        "data\\photos\\train\\1.png",
        "./photos/./train/../train/1.png",
        "../photos/train/1.png",
        "{root}/data/photos/train/1.png",
        "file://{root}/data/photos/train/1.png",
        "train/1",
        "photos\\train\\1",
    ],
)
def test_a_file_is_found_however_its_path_is_written(tmp_path, name):
    make_files(tmp_path / "data/photos", "train/1.png", "2.png", "test/1.jpg")
    assert found(tmp_path, name.format(root=tmp_path), "2.png") == ["1.png", "2.png"]


def test_names_may_start_from_the_folder_of_the_table(tmp_path):
    make_files(tmp_path / "data/photos", "1.png", "2.png")
    assert found(tmp_path, "../photos/1.png", "../data/photos/2.png", table="data/meta.csv", files="data/photos/*")[
        0
    ] == ("1.png")
    make_files(tmp_path / "meta")
    assert found(tmp_path, "../data/photos/2.png", table="meta/t.csv") == ["2.png"]


def test_absolute_names_hold_where_the_folder_is_a_link(tmp_path):
    make_files(tmp_path / "disk/photos", "1.png")
    (tmp_path / "data").symlink_to(tmp_path / "disk")
    assert found(tmp_path, f"{tmp_path}/data/photos/1.png", f"{tmp_path}/disk/photos/1.png") == ["1.png", "1.png"]


def test_unicode_forms_of_one_name_are_one_and_a_file_called_so_comes_first(tmp_path):
    make_files(tmp_path / "data/photos", unicodedata.normalize("NFD", "Käse.png"), "a\\b.png", "a/b.png")
    assert found(tmp_path, "Käse.png", "a\\b.png", "a/b.png") == [
        unicodedata.normalize("NFD", "Käse.png"),
        "a\\b.png",
        "b.png",
    ]


def test_what_is_not_there_is_told_with_what_is_alike(tmp_path):
    make_files(tmp_path / "data/photos", "Train/1.PNG", "x/2.png", "3.jpg", "4.png", "4.jpg")
    case, elsewhere, suffix, several, gone, outside, drive = found(
        tmp_path, "train/1.png", "2.png", "3.png", "4", "5.png", "../../6.png", "C:\\photos\\3.jpg"
    )
    assert case.startswith("not_found") and case.endswith("; was 'Train/1.PNG' meant? Upper and lower case count")
    assert elsewhere.startswith("not_found") and elsewhere.endswith("; was 'x/2.png' meant?")
    assert suffix.startswith("not_found") and suffix.endswith("; was '3.jpg' meant?")
    assert several.startswith("ambiguous") and "4.jpg and" in several and several.endswith("write more of the path")
    assert gone.startswith("not_found") and "meant" not in gone
    assert outside.startswith("outside_root") and drive.startswith("outside_root")


def test_that_no_row_names_a_file_that_is_there_is_an_error_of_its_own(tmp_path):
    make_files(tmp_path / "data/photos", "1.png", "2.png")
    with pytest.raises(SourceError) as error:
        found(tmp_path, "pics/1.png", "pics/2.png")
    message = str(error.value)
    assert "none of the 2 files that column 'file' names is in" in message and "'pics/1.png', 'pics/2.png'" in message
    assert message.endswith("there are '1.png', '2.png'; was '1.png' meant?")


def test_names_of_members_and_of_objects(tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for name in ("1.png", "x/2.png"):
            archive.writestr(name, name)
    write_table(tmp_path / "t.csv", "photos/1.png", "photos.zip/x/2.png", "x\\2.png", "../photos.zip")
    scanned = listed(tmp_path, files="photos.zip", table="t.csv", key="id", file="file")
    assert scanned.rows["member"].to_pylist() == ["1.png", "x/2.png", "x/2.png"]
    memory = fsspec.filesystem("memory")
    for name in ("1.png", "a b.png"):
        memory.pipe_file(f"/{tmp_path.name}/photos/{name}", b"x" + name.encode())
    url = f"memory://{tmp_path.name}/photos"
    names = [f"{url}/1.png", f"{tmp_path.name}/photos/1.png", "photos/1.png", f"{url}/a%20b.png", "memory://x/1.png"]
    assert [name[:12] for name in found(tmp_path, *names, files=url)] == ["1.png"] * 3 + ["a b.png", "outside_root"]


NAMES = st.text(alphabet="./\\:ab C~é", max_size=14)


PATHS = st.sets(
    st.text(alphabet="/ab.é\\", min_size=1, max_size=8).filter(lambda p: not is_outside(p.replace("\\", "")))
)


@given(PATHS, NAMES)
def test_only_what_is_listed_is_ever_found(paths, name):
    paths = {os.path.normpath(path) for path in paths} - {"."}
    entries = [Entry(path, f"/root/f/{path}") for path in sorted(paths)]
    names = FileNames(entries, [("/root/f", "/root/f")])
    assert all(entry in entries for entry in names.find(name, "/root/t.csv"))
    names.hint(name), names.is_outside(name, "/root/t.csv")
    for entry in entries:
        assert names.find(entry.key or "", "/root/t.csv") == [entry]


# Links


def test_links_out_of_the_folder_are_read_where_the_source_says_so(tmp_path):
    make_files(tmp_path / "blobs", "sha1", "sub/sha2")
    photos = make_files(tmp_path / "photos", "here.png")
    (photos / "1.png").symlink_to("../blobs/sha1")
    (photos / "more").symlink_to("../blobs/sub")
    (photos / "up").symlink_to("..")
    (photos / "self").symlink_to("self")
    (photos / "gone.png").symlink_to("../blobs/gone")
    (tmp_path / "blobs/sub/back").symlink_to(tmp_path / "blobs/sub")
    without = listed(tmp_path, files="photos")
    assert without.rows["key"].to_pylist() == ["here"]
    assert sorted(without.quarantine["reason"].to_pylist()) == ["outside_root"] * 4 + ["unreadable"]
    assert all("follow_links: true" in m for m in without.quarantine["message"].to_pylist() if "leaves" in m)
    scanned = listed(tmp_path, files="photos", follow_links=True)
    assert scanned.rows["key"].to_pylist() == ["1", "here", "more/sha2"]
    assert scanned.rows["uri"].to_pylist()[0] == str(photos / "1.png")  # the place of the link, wherever it leads
    why = {row["key"]: row["reason"] for row in scanned.quarantine.to_pylist()}
    assert why == {"up": "loop", "self": "unreadable", "gone": "not_found"}
    assert listed(tmp_path, files="photos/*.png", follow_links=True).rows["key"].to_pylist() == ["1", "here"]


def test_a_link_that_leads_elsewhere_is_read_again(tmp_path):
    make_files(tmp_path, "a", "b")
    for name in "ab":
        os.utime(tmp_path / name, (1e9, 1e9))
    (tmp_path / "photos").mkdir()
    link = tmp_path / "photos/x.png"
    link.symlink_to("../a")
    settings = SourceSettings.of(name="s", modality="image", files="photos", follow_links=True)
    source = settings.make(tmp_path)
    first, signed = scan(settings, tmp_path), source.signature()
    link.unlink()
    link.symlink_to("../b")
    second = scan(settings, tmp_path, first.rows)
    assert second.rows["item_id"] == first.rows["item_id"] and second.rows["sha256"] != first.rows["sha256"]
    assert source.signature() != signed


# What paths say


@pytest.mark.parametrize(
    ("pattern", "path", "fields"),
    [
        ("{label}/{name}", "cat/1.b.png", {"label": "cat", "name": "1.b"}),
        ("{split}/{label}/{name}", "train/cat/1.png", {"split": "train", "label": "cat", "name": "1"}),
        ("{speaker}/{chapter}/{name}", "84/121123/84-121123-0001.flac", {"speaker": "84", "chapter": "121123"}),
        ("**/{speaker}-{rest}", "84/121123/84-121123-0001.flac", {"speaker": "84", "rest": "121123-0001"}),
        ("**/{speaker}-{rest}", "84-1.flac", {"speaker": "84", "rest": "1"}),
        ("*/{类}/*", "x/猫/1.png", {"类": "猫"}),
        ("{digit}_{speaker}_*.wav", "7_jackson_32.wav", {"digit": "7", "speaker": "jackson"}),
        ("{a}.{b}", "x.png", {"a": "x", "b": "png"}),
        ("{label}/{name}", "1.png", None),
        ("{label}/{name}", "a/b/1.png", None),
    ],
)
def test_a_pattern_reads_a_path(pattern, path, fields):
    read = PathPattern(pattern).read(path)
    assert (read is None) if fields is None else read is not None and read.items() >= fields.items()


@pytest.mark.parametrize("pattern", ["name", "{}", "{a}{b}", "{a}/{a}", "{a", "{a}/b}", ""])
def test_a_pattern_that_says_nothing_clear_is_refused(pattern):
    with pytest.raises(ValueError, match="path is"):
        SourceSettings.of(name="s", modality="image", files="f", path=pattern)


def test_parts_of_a_path_are_columns_and_may_be_the_key(tmp_path):
    make_files(tmp_path / "audio", "84/1/a.flac", "84/2/b.flac", "README")
    scanned = listed(tmp_path, files="audio", path="{speaker}/{chapter}/{name}", key="name")
    rows = [(row["key"], json.loads(row["attributes"])) for row in scanned.rows.to_pylist()]
    assert rows == [("a", {"speaker": "84", "chapter": "1"}), ("b", {"speaker": "84", "chapter": "2"})]
    (refused,) = scanned.quarantine.to_pylist()
    assert refused["reason"] == "bad_name" and "does not fit `path` ({speaker}/{chapter}/{name})" in refused["message"]
    both = listed(tmp_path, files="audio/*/*/*", path="{speaker}/{chapter}/{name}", key=["speaker", "name"])
    assert both.rows["key"].to_pylist() == ["84/a", "84/b"]
    with pytest.raises(ValueError, match=r"has key 'voice' but no table .* nor a path with it"):
        SourceSettings.of(name="s", modality="image", files="f", path="{speaker}/{name}", key="voice")


def test_a_table_and_paths_tell_of_one_file(tmp_path):
    make_files(tmp_path / "audio", "84/1.wav", "85/2.wav")
    (tmp_path / "t.csv").write_text("file,text\n84/1.wav,yes\n")
    scanned = listed(
        tmp_path, files="audio", table="t.csv", path="{speaker}/{take}", file="file", key=["speaker", "take"]
    )
    rows = [(row["key"], json.loads(row["attributes"])) for row in scanned.rows.to_pylist()]
    assert rows == [
        ("84/1", {"speaker": "84", "take": "1", "file": "84/1.wav", "text": "yes"}),
        ("85/2", {"speaker": "85", "take": "2"}),
    ]
    with pytest.raises(SourceError, match="column 'text' is a field of `path`, too"):
        listed(tmp_path, files="audio", table="t.csv", path="{text}/{take}", key="file")


# Keys of several columns


def test_several_columns_are_one_key(tmp_path):
    (tmp_path / "t.csv").write_text("patient,visit,note\np1,v1,fine\np1,,lost\n p2 ,v/1,well\n")
    scanned = listed(tmp_path, modality="text", table="t.csv", key=["patient", "visit"], column="note")
    rows = [(row["key"], json.loads(row["attributes"])) for row in scanned.rows.to_pylist()]
    assert rows[:2] == [("p1/v1", {"patient": "p1", "visit": "v1"}), (None, {"patient": "p1"} | rows[1][1])]
    assert rows[2][0] == "p2/v%2F1"
    with pytest.raises(SourceError, match="no column 'stay'"):
        listed(tmp_path, modality="text", table="t.csv", key=["patient", "stay"], column="note")
    with pytest.raises(ValueError, match="name the column that holds the file names as `file`"):
        SourceSettings.of(name="s", modality="image", files="f", table="t.csv", key=["patient", "visit"])


@given(*[st.tuples(*[st.text(alphabet="ab/% ", min_size=1, max_size=4)] * 2)] * 2)
def test_no_two_keys_become_one(one, other):
    strip = tuple(part.strip() for part in one), tuple(part.strip() for part in other)
    first, second = (key_of(dict(zip("pv", parts, strict=True)), "pv") for parts in (one, other))
    assert (first is None) == ("" in strip[0])
    if first is not None and second is not None:
        assert (first == second) == (strip[0] == strip[1])
