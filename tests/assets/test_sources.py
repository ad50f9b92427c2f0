"""Our sources: what is listed, what is refused and why, and what is not read twice."""

import csv
import hashlib
import io
import json
import os
import tarfile
import tempfile
import time
import zipfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assets.contents import attach_data
from assets.scan import Scan, scan
from assets.source_settings import SourceSettings
from assets.sources.base import SourceError
from assets.sources.files import FilesSource
from assets.storage import is_outside
from assets.tables import read_table
from assets.times import parse_time
from training.schema import MANIFEST, QUARANTINE
from training.settings import MediaLimits

DIRTY = Path(os.environ.get("TRIPTYCH_SHARED", Path(__file__).parents[3] / "shared" / "data")) / "dirty" / "files"


def listed(root: Path, *known: Any, modality: Any = "image", limits: MediaLimits | None = None, **fields: Any) -> Scan:
    """A scan, checked for what holds of each: schemas, unique ids, and the count."""
    settings = SourceSettings.of(name="s", modality=modality, **fields)
    scanned = scan(settings, root, known[0].rows if known else None, limits)
    assert scanned.rows.schema.equals(MANIFEST) and scanned.quarantine.schema.equals(QUARANTINE)
    assert scanned.seen == scanned.rows.num_rows + scanned.quarantine.num_rows
    ids = [*scanned.rows["item_id"].to_pylist(), *scanned.quarantine["item_id"].to_pylist()]
    assert len(set(ids)) == len(ids)
    return scanned


def contents(root: Path, scanned: Scan, **fields: Any) -> pa.RecordBatch:
    """What the manifest rows of a scan are read as."""
    modality = scanned.rows["modality"][0].as_py() if scanned.rows else "image"
    return attach_data(scanned.rows, {"s": SourceSettings.of(name="s", modality=modality, **fields).make(root)})


def keys(scanned: Scan) -> list[str]:
    return sorted(scanned.rows["key"].to_pylist())


def reasons(scanned: Scan) -> list[tuple[str, int | None]]:
    return sorted((row["reason"], row["row"]) for row in scanned.quarantine.to_pylist())


def make_files(folder: Path, *names: str) -> Path:
    """Files whose content is their name, old enough to be relied on."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        age(path)
    return folder


def age(path: Path, seconds: float = 100) -> None:
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))
    time.sleep(0.06)  # the time of the inode cannot be set, and is not relied on for a few ticks


def make_tar(path: Path, members: dict[str, bytes], *special: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in special:
            archive.addfile(info)
    age(path)
    return path


def write_csv(path: Path, *rows: list[str]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


# Settings


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "source 's' has neither files nor table: give one of them"),
        ({"kind": "files"}, "source 's' has no files: say where they lie"),
        ({"modality": "image", "table": "t"}, "source 's' is image and has no files: say where its media lie"),
        ({"table": "t", "key": "id"}, "source 's' reads text from a table: name its column and its key"),
        ({"files": "f", "table": "t"}, "source 's' has a table: name the key, the column that holds the file names"),
        (
            {"files": "f", "table": "t", "key": "id", "column": "c"},
            "source 's' has files and a column of texts or media",
        ),
        ({"files": "f", "time": "t"}, "source 's' has time but no table that could have such a column"),
        ({"table": "t", "key": "id", "column": "c", "file": "f"}, "source 's' has a column of file names but no files"),
        ({"files": "f", "use": "noise"}, "source 's' has use: noise and is text: only speech gets noise added"),
        ({"files": "f", "encoding": "utf-9"}, "encoding is 'utf-9', expected one that Python knows"),
        ({"files": "f", "kind": "file"}, "source is 'file', expected one of files, table.* did you mean files"),
        ({"files": "f", "kind": 3}, "kind is 3, expected the name of a kind of source"),
        ({"files": "f", "encodng": "utf-8"}, "'encodng' is no key of such a source; did you mean encoding"),
        ({"files": "f", "key": True}, "key is True: expected a name or a list of names"),
    ],
)
def test_settings_that_do_not_fit_are_named(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SourceSettings.of(**{"name": "s", "modality": "text"} | fields)


# Files


def test_folder_gives_each_file_with_its_path_as_key(tmp_path: Path) -> None:
    make_files(tmp_path / "images", "a.png", "sub/b.c.png", ".hidden.png", ".git/config")
    scanned = listed(tmp_path, files="images")
    assert keys(scanned) == ["a", "sub/b.c"]
    row = scanned.rows.to_pylist()[0]
    assert row["sha256"] == hashlib.sha256(b"a.png").hexdigest() and row["size"] == 5
    assert contents(tmp_path, scanned, files="images")["data"].to_pylist() == [b"a.png", b"sub/b.c.png"]


def test_glob_and_single_file(tmp_path: Path) -> None:
    make_files(tmp_path / "images", "a.png", "b.jpg", "x/c.png", "x/y/d.png")
    assert keys(listed(tmp_path, files="images/*.png")) == ["a"]
    assert keys(listed(tmp_path, files="images/**/*.png")) == ["a", "x/c", "x/y/d"]
    assert keys(listed(tmp_path, files="images/b.jpg")) == ["b"]


def test_ids_survive_moving_the_project(tmp_path: Path) -> None:
    for place in ("here", "there"):
        make_files(tmp_path / place / "images", "a.png", "b.png")
    here, there = listed(tmp_path / "here", files="images"), listed(tmp_path / "there", files="images")
    assert here.rows["item_id"].equals(there.rows["item_id"])
    assert not here.rows["uri"].equals(there.rows["uri"])


def test_links_are_followed_within_the_folder_only(tmp_path: Path) -> None:
    make_files(tmp_path, "secret.png", "private/x.png")
    folder = make_files(tmp_path / "images", "a.png")
    (folder / "inner.png").symlink_to("a.png")
    (folder / "outer.png").symlink_to(tmp_path / "secret.png")
    (folder / "outer_folder").symlink_to(tmp_path / "private")
    (folder / "loop").symlink_to(folder)
    (folder / "broken.png").symlink_to(folder / "nothing.png")
    os.mkfifo(folder / "pipe.png")
    scanned = listed(tmp_path, files="images")
    assert keys(scanned) == ["a", "inner"]
    refused = {row["key"]: row["reason"] for row in scanned.quarantine.to_pylist()}
    expected = {"outer": "outside_root", "outer_folder": "outside_root", "broken": "not_found", "pipe": "unsupported"}
    assert refused == expected


def test_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    make_files(tmp_path / "images", "a.png")
    Path(os.fsdecode(os.fsencode(tmp_path / "images") + b"/\xff.png")).write_text("x")
    scanned = listed(tmp_path, files="images")
    assert keys(scanned) == ["a"] and reasons(scanned) == [("bad_name", None)]


def test_empty_too_large_and_unreadable_files(tmp_path: Path) -> None:
    folder = make_files(tmp_path / "images", "fine.png", "much_too_large.png", "locked.png")
    (folder / "empty.png").touch()
    (folder / "locked.png").chmod(0)
    scanned = listed(tmp_path, files="images", limits=MediaLimits(max_bytes=12))
    expected = [("empty", None), ("too_large", None)]
    if os.geteuid() != 0:  # root reads everything
        expected.append(("unreadable", None))
    assert reasons(scanned) == sorted(expected)
    assert all(row["uri"] in row["message"] for row in scanned.quarantine.to_pylist())


@pytest.mark.parametrize("files", ["nowhere", "images/*.png", "empty"])
def test_empty_source_is_an_error(tmp_path: Path, files: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "images").mkdir()
    with pytest.raises(SourceError, match=files.replace("*", r"\*")):
        listed(tmp_path, files=files)


# Archives


def test_tar_members_are_read_in_place(tmp_path: Path) -> None:
    members = {"./a.png": b"A" * 700, "d/" + "long" * 60 + ".png": b"B", "d/ü.png": b"C" * 3_000_000}
    make_tar(tmp_path / "images.tar", members)
    scanned = listed(tmp_path, files="images.tar")
    assert keys(scanned) == sorted(["a", "d/" + "long" * 60, "d/ü"])
    batch = contents(tmp_path, scanned, files="images.tar")
    assert set(batch["data"].to_pylist()) == set(members.values())
    assert batch["data_error"].null_count == 3


def test_tar_refuses_what_leaves_it_and_links(tmp_path: Path) -> None:
    def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        return info

    make_tar(
        tmp_path / "images.tar",
        {"fine.png": b"x", "../up.png": b"x", "/etc/passwd": b"x", "a/../../up.png": b"x"},
        special("symbolic.png", tarfile.SYMTYPE, "/etc/passwd"),
        special("hard.png", tarfile.LNKTYPE, "fine.png"),
        special("device.png", tarfile.CHRTYPE),
        special("folder", tarfile.DIRTYPE),
    )
    scanned = listed(tmp_path, files="images.tar")
    assert keys(scanned) == ["fine"]
    assert [reason for reason, _ in reasons(scanned)] == ["link"] * 2 + ["outside_root"] * 3 + ["unsupported"]
    again = listed(tmp_path, scanned, files="images.tar")
    assert again.rows.equals(scanned.rows) and again.quarantine.equals(scanned.quarantine)


def test_last_member_of_a_name_counts(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        for content in (b"old", b"new!"):
            info = tarfile.TarInfo("a.png")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    scanned = listed(tmp_path, files="images.tar")
    assert contents(tmp_path, scanned, files="images.tar")["data"].to_pylist() == [b"new!"]
    assert reasons(scanned) == [("superseded", None)]


def test_zip_members_are_read_in_place(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("stored.png", b"abc" * 1000, zipfile.ZIP_STORED)
        archive.writestr("d/deflated.png", b"abc" * 2_000_000, zipfile.ZIP_DEFLATED)
        archive.writestr("../up.png", b"x")
    scanned = listed(tmp_path, files="images.zip")
    data = contents(tmp_path, scanned, files="images.zip")["data"].to_pylist()
    assert dict(zip(scanned.rows["key"].to_pylist(), data, strict=True)) == {
        "stored": b"abc" * 1000,
        "d/deflated": b"abc" * 2_000_000,
    }
    assert reasons(scanned) == [("outside_root", None)]


@pytest.mark.parametrize("damage", ["truncated", "header", "not_a_tar"])
def test_damaged_tar_is_an_error(tmp_path: Path, damage: str) -> None:
    path = make_tar(tmp_path / "images.tar", {f"{n}.png": b"x" * 2000 for n in range(20)})
    content = bytearray(path.read_bytes())
    if damage == "header":
        content[2560 * 10 : 2560 * 10 + 512] = b"\xaa" * 512
    path.write_bytes(content[:30_000] if damage == "truncated" else b"junk" * 999 if damage == "not_a_tar" else content)
    with pytest.raises(SourceError, match=r"images\.tar"):
        listed(tmp_path, files="images.tar")


def test_compressed_tar_is_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "images.tar.gz").write_bytes(b"")
    with pytest.raises(SourceError, match="decompress"):
        listed(tmp_path, files="images.tar.gz")


def test_content_that_changed_since_it_was_listed_is_not_used(tmp_path: Path) -> None:
    make_files(tmp_path / "images", "a.png", "b.png", "c.png")
    scanned = listed(tmp_path, files="images")
    (tmp_path / "images/a.png").write_text("other")
    (tmp_path / "images/b.png").unlink()
    batch = contents(tmp_path, scanned, files="images")
    assert batch["data"].to_pylist() == [None, None, b"c.png"]
    changed, gone, fine = batch["data_error"].to_pylist()
    assert "changed" in changed and "b.png" in gone and fine is None
    assert attach_data(scanned.rows.slice(0, 0), {}).num_rows == 0
    assert "'s' is not in the project file" in attach_data(scanned.rows, {})["data_error"][0].as_py()


# Tables that name files


def test_table_names_files(tmp_path: Path) -> None:
    make_files(tmp_path / "images", "a.png", "sub/b.png", "unnamed.png")
    write_csv(tmp_path / "t.csv", ["file", "label"], ["a.png", "1"], ["./sub/b.png", "2"])
    scanned = listed(tmp_path, files="images", table="t.csv", key="file")
    rows = {row["key"]: row for row in scanned.rows.to_pylist()}
    assert set(rows) == {"a.png", "./sub/b.png", "unnamed.png"}
    assert json.loads(rows["a.png"]["attributes"]) == {"label": "1"} and rows["a.png"]["row"] == 2
    assert rows["unnamed.png"]["attributes"] == "{}" and rows["unnamed.png"]["row"] is None


def test_table_may_leave_out_the_folder_that_all_members_share(tmp_path: Path) -> None:
    make_tar(tmp_path / "t.tar", {"all/x/a.png": b"a", "all/x/b.png": b"b", "all/x/c.png": b"c"})
    write_csv(tmp_path / "t.csv", ["file"], ["a.png"], ["b.png"])
    assert keys(listed(tmp_path, files="t.tar", table="t.csv", key="file")) == ["a.png", "b.png", "c.png"]


def test_file_column_apart_from_the_key(tmp_path: Path) -> None:
    make_files(tmp_path / "images", "a.png")
    write_csv(tmp_path / "t.csv", ["id", "picture"], ["s1", "a.png"], ["s2", "a.png"], ["s3", ""])
    scanned = listed(tmp_path, files="images", table="t.csv", key="id", file="picture")
    assert keys(scanned) == ["s1", "s2"] and reasons(scanned) == [("absent", 4)]


def test_bad_rows_name_file_and_line(tmp_path: Path) -> None:
    make_files(tmp_path / "images", "a.png")
    make_files(tmp_path, "outside.png")
    outside = ["../outside.png", "/etc/passwd", "..\\x.png", "file:///etc/passwd", "C:\\x.png", "http://x/y.png"]
    names = ["a.png", "gone.png", *outside, "a\0.png", "", "a.png"]
    write_csv(tmp_path / "t.csv", ["file", "label"], *([name, "x"] for name in names))
    with (tmp_path / "t.csv").open("a") as file:
        file.write("one,too,many\na.png\0\n")
    scanned = listed(tmp_path, files="images", table="t.csv", key="file")
    assert keys(scanned) == ["a.png"]
    expected = [("not_found", 3), *(("outside_root", 4 + n) for n in range(6)), ("malformed", 10), ("absent", 11)]
    expected += [("duplicate", 12), ("malformed", 13), ("malformed", 14)]
    assert reasons(scanned) == sorted(expected)
    for row in scanned.quarantine.to_pylist():
        assert "t.csv" in row["message"] and f"line {row['row']}" in row["message"]
        assert row["outcome"] == ("duplicate" if row["reason"] == "duplicate" else "quarantined")


@given(st.text(alphabet="./\\:abC~", max_size=12))
def test_no_name_reaches_outside(name: str) -> None:
    if not is_outside(name):
        assert Path(os.path.normpath(f"/root/{name}")).is_relative_to("/root")
        assert "\\" not in name


def test_strict_lists_what_is_wrong(tmp_path: Path) -> None:
    make_files(tmp_path / "images", "a.png")
    write_csv(tmp_path / "t.csv", ["file"], ["a.png"], [""], *([f"gone{n}.png"] for n in range(30)))
    with pytest.raises(SourceError) as error:
        listed(tmp_path, files="images", table="t.csv", key="file", strict=True)
    message = str(error.value)
    assert "30 of 32" in message and "'gone0.png'" in message and "10 more" in message
    assert len(message.splitlines()) == 22


def test_same_key_and_content_is_a_duplicate_and_same_content_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    make_files(folder, "a.png", "b.png")
    (folder / "a.jpg").write_text("a.png")
    (folder / "c.png").write_text("a.png")
    scanned = listed(tmp_path, files="images")
    assert keys(scanned) == ["a", "b", "c"]
    (duplicate,) = scanned.quarantine.to_pylist()
    assert duplicate["outcome"] == "duplicate" and "a.jpg" in duplicate["message"]


# Texts


def test_text_table(tmp_path: Path) -> None:
    text = '\ufeffid;text;time\r\n1;"two\r\nlines";2024-05-01T10:00:00+02:00\r\n2;x;\r\n\r\n3; ;\r\n4;;\r\n5;y;soon\r\n'
    (tmp_path / "t.csv").write_bytes(text.encode())
    scanned = listed(tmp_path, modality="text", table="t.csv", key="id", column="text", time="time")
    first, second = scanned.rows.to_pylist()
    assert first["text"] == "two\r\nlines" and first["time"] == datetime(2024, 5, 1, 8, tzinfo=UTC)
    assert (second["key"], second["text"], second["row"], second["time"]) == ("2", "x", 4, None)
    assert reasons(scanned) == [("absent", 7), ("empty", 6), ("malformed", 8)]


def test_text_tables_agree_whatever_the_format(tmp_path: Path) -> None:
    rows = [{"id": n, "text": f"text {n}", "ok": n > 1} for n in range(5)]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    pq.write_table(pa.Table.from_pylist([row | {"raw": b"\xff"} for row in rows]), tmp_path / "t.parquet")
    write_csv(tmp_path / "t.csv", ["id", "text", "ok"], *([r["id"], r["text"], str(r["ok"]).lower()] for r in rows))
    columns = ["key", "text", "sha256", "attributes"]
    scanned = [
        listed(tmp_path, modality="text", table=f"t.{kind}", key="id", column="text").rows.select(columns)
        for kind in ("csv", "jsonl", "parquet")
    ]
    assert scanned[0].num_rows == 5 and scanned[0].equals(scanned[1]) and scanned[0].equals(scanned[2])


def test_json_number_of_thousands_of_digits_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"id": 1, "text": "one"}\n{"id": 2, "text": "two", "n": %s}\n' % ("9" * 5000))
    scanned = listed(tmp_path, modality="text", table="t.jsonl", key="id", column="text")
    assert keys(scanned) == ["1"] and reasons(scanned) == [("malformed", 2)]
    assert "t.jsonl: line 2 holds a number that is too long" in scanned.quarantine["message"][0].as_py()


def test_row_added_in_the_middle_changes_no_other_id(tmp_path: Path) -> None:
    rows = [["a", "one"], ["b", "two"], ["b", "other"], ["b", "two"]]
    settings: dict[str, Any] = {"modality": "text", "table": "t.csv", "key": "id", "column": "text"}
    write_csv(tmp_path / "t.csv", ["id", "text"], *rows)
    before = listed(tmp_path, **settings)
    write_csv(tmp_path / "t.csv", ["id", "text"], ["new", "zero"], *rows)
    after = listed(tmp_path, **settings)
    assert [row["message"] for row in before.quarantine.to_pylist()] == [
        f"{tmp_path}/t.csv line 5: the same key and content as {tmp_path}/t.csv line 3"
    ]
    assert before.rows["item_id"].to_pylist() == after.rows["item_id"].to_pylist()[1:]


def test_text_files_are_decoded(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_bytes("今天路口".encode("gbk"))
    (tmp_path / "texts/b.txt").write_bytes(b" \n")
    assert [r for r, _ in reasons(listed(tmp_path, modality="text", files="texts"))] == ["empty", "wrong_encoding"]
    first = listed(tmp_path, modality="text", files="texts", encoding="gbk")
    (row,) = first.rows.to_pylist()
    assert row["text"] == "今天路口" and row["sha256"] == hashlib.sha256("今天路口".encode()).hexdigest()
    assert attach_data(first.rows, {})["data"].to_pylist() == ["今天路口".encode()]


def test_jsonl_rows_that_cannot_be_stored(tmp_path: Path) -> None:
    lines = [
        '{"id":1,"text":"fine"}',
        '{"id":2,"text":"cut',
        "[]",
        '{"id":4,"text":"\\ud800"}',
        '{"id":5,"text":"\\u0000"}',
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    scanned = listed(tmp_path, modality="text", table="t.jsonl", key="id", column="text")
    assert keys(scanned) == ["1"] and reasons(scanned) == [("malformed", n) for n in (2, 3, 4, 5)]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("t.csv", b"id,body\n1,x\n", "no column 'text'; it has id, body"),
        ("t.jsonl", b'{"id":1,"body":"x"}\n', "no column 'text'; it has id, body"),
        ("t.csv", b"id,text\n1,x\n2,\xd6\xd0\n", "line 3 is not utf-8"),
        ("t.csv", b"id,text,id\n1,x,2\n", "occurs twice"),
        ("t.csv", b"", "empty"),
        ("t.csv", b"id,text\n", "empty"),
        ("t.parquet", b"PAR1 and then nothing", "cannot be read"),
        ("t.xls", b"x", r"ends in one of \.csv"),
        ("t.xlsx", b"x", "cannot be read as a workbook"),
        ("t.csv", None, "no such table"),
    ],
)
def test_table_that_cannot_be_read_is_an_error(tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=says) as error:
        listed(tmp_path, modality="text", table=name, key="id", column="text")
    assert name in str(error.value)


cells = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)


@given(st.lists(st.tuples(cells, cells), max_size=8))
def test_csv_cells_come_back_as_written(rows: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write_csv(Path(folder) / "t.csv", ["a", "b"], *map(list, rows))
        assert [tuple(record.values.values()) for record in read_table(path)] == rows


@given(st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1)))
def test_times_are_read_in_any_unit(time: datetime) -> None:
    time = time.replace(tzinfo=UTC)
    microseconds = (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    assert parse_time(time.isoformat()) == time
    assert parse_time(time.replace(tzinfo=None).isoformat()) == time
    assert parse_time(f"{microseconds // 10**6}.{microseconds % 10**6:06}") == time
    for unit in (microseconds, microseconds * 1000):
        assert parse_time(str(unit)) == time
    assert parse_time(str(microseconds // 1000)) == time - timedelta(microseconds=microseconds % 1000)


@pytest.mark.parametrize("word", ["soon", "", "nan", "inf", "1e400", "-1e30", "2024-13-01"])
def test_what_is_no_time(word: str) -> None:
    with pytest.raises(ValueError, match="no time"):
        parse_time(word)


# Nothing twice


def test_unchanged_files_are_not_read_again(tmp_path: Path) -> None:
    folder = make_files(tmp_path / "images", "a.png", "b.png", "c.png")
    first = listed(tmp_path, files="images")
    assert first.reused == 0
    status = (folder / "a.png").stat()
    (folder / "a.png").write_text("A.PNG")  # same size and time, as after cp -p
    os.utime(folder / "a.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    (folder / "b.png").write_text("B.PNG")
    age(folder / "b.png", 50)
    make_files(folder, "d.png")
    second = listed(tmp_path, first, files="images")
    before, after = (
        dict(zip(*(s.rows[c].to_pylist() for c in ("key", "sha256")), strict=True)) for s in (first, second)
    )
    assert second.reused == 1 and after["c"] == before["c"]
    assert [after[key] for key in "ab"] == [hashlib.sha256(content).hexdigest() for content in (b"A.PNG", b"B.PNG")]


def test_file_changed_just_now_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_text("one")
    first = listed(tmp_path, files="images")
    (tmp_path / "images/a.png").write_text("two")  # the clock of a file system may be too coarse to tell
    second = listed(tmp_path, first, files="images")
    assert second.rows["sha256"].to_pylist() == [hashlib.sha256(b"two").hexdigest()]


@pytest.mark.parametrize("modality", ["speech", "text"])
@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_member_with_another_checksum_is_refused(tmp_path: Path, modality: str, packing: int) -> None:
    path = tmp_path / "z.zip"
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name in "abc":
            archive.writestr(name, f"whole {name}")
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        crc = archive.getinfo("b").CRC.to_bytes(4, "little")
    path.write_bytes(content.replace(b"whole b", b"other b").replace(crc, b"\1\2\3\4" if packing else crc))
    scanned = listed(tmp_path, modality=modality, files="z.zip")
    (refused,) = scanned.quarantine.to_pylist()
    assert keys(scanned) == ["a", "c"] and refused["reason"] == "unreadable"
    assert "z.zip: b: is damaged: its checksum is another" in refused["message"]


def test_zip_member_that_unpacks_to_absurd_size_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.wav", bytes(17 * 2**20))
        archive.writestr("small.wav", bytes(2**20))
        archive.writestr("stored.wav", bytes(17 * 2**20), zipfile.ZIP_STORED)
    scanned = listed(tmp_path, modality="speech", files="z.zip")
    assert keys(scanned) == ["small", "stored"]
    (bomb,) = scanned.quarantine.to_pylist()
    assert bomb["reason"] == "too_large" and "unpack to 17825792" in bomb["message"]


def test_members_of_an_unchanged_tar_are_not_read_but_its_table_is_joined_again(tmp_path: Path, monkeypatch) -> None:
    make_tar(tmp_path / "t.tar", {"d/a.png": b"a", "d/b.png": b"b", "../c.png": b"c"})
    write_csv(tmp_path / "t.csv", ["file", "label"], ["a.png", "1"], ["../c.png", "2"])
    settings: dict[str, Any] = {"files": "t.tar", "table": "t.csv", "key": "file"}
    first = listed(tmp_path, **settings)
    write_csv(tmp_path / "t.csv", ["file", "label"], ["a.png", "3"], ["b.png", "4"], ["gone.png", "5"])
    monkeypatch.setattr(FilesSource, "open", lambda _, entry: pytest.fail(f"{entry} was read"))
    second = listed(tmp_path, first, **settings)
    assert second.reused == 2
    assert {r["key"]: json.loads(r["attributes"]) for r in second.rows.to_pylist()} == {
        "a.png": {"label": "3"},
        "b.png": {"label": "4"},
    }
    assert reasons(second) == [("not_found", 4), ("outside_root", None)]


def test_tar_whose_refusals_depend_on_settings_is_listed_again(tmp_path: Path) -> None:
    make_tar(tmp_path / "t.tar", {"a.png": b"a", "big.png": b"b" * 99})
    first = listed(tmp_path, files="t.tar", limits=MediaLimits(max_bytes=10))
    assert reasons(first) == [("too_large", None)]
    assert keys(listed(tmp_path, first, files="t.tar")) == ["a", "big"]


def test_a_member_that_the_last_scan_does_not_tell_of_is_listed_again(tmp_path: Path) -> None:
    make_tar(tmp_path / "t.tar", {"a.png": b"a", "b.png": b"b", "c.png": b"c"})
    first = listed(tmp_path, files="t.tar")
    erased = replace(first, rows=first.rows.slice(1))
    again = listed(tmp_path, erased, files="t.tar")
    assert (again.seen, again.reused, again.rows) == (3, 2, first.rows)


# The damaged files that come with the project's shared data


@pytest.mark.skipif(not DIRTY.is_dir(), reason="the shared data folder is not there (TRIPTYCH_SHARED)")
class TestDirty:
    def test_tables(self) -> None:
        text: dict[str, Any] = {"modality": "text", "key": "id", "column": "text"}
        nul = listed(DIRTY, table="nul.csv", **text)
        assert reasons(nul) == [("malformed", 4)] and "nul.csv" in nul.quarantine["message"][0].as_py()
        assert reasons(listed(DIRTY, table="broken.jsonl", **text)) == [("malformed", 2)]
        assert listed(DIRTY, table="bom_crlf.csv", **text).rows.num_rows == 5
        with pytest.raises(SourceError, match=r"trunc\.parquet"):
            listed(DIRTY, table="trunc.parquet", **text)
        with pytest.raises(SourceError, match="line 2"):
            listed(DIRTY, table="broken.jsonl", strict=True, **text)

    def test_names(self) -> None:
        speech: dict[str, Any] = {"modality": "speech", "key": "audio", "files": "../../spoken_digits/recordings.tar"}
        missing = listed(DIRTY, table="missing_files.csv", **speech)
        assert reasons(missing) == [("not_found", 7), ("not_found", 8)]
        refused = listed(DIRTY, table="traversal.csv", **speech)
        assert reasons(refused) == [("outside_root", n) for n in (7, 8, 9, 10)]
        with pytest.raises(SourceError) as error:
            listed(DIRTY, table="missing_files.csv", strict=True, **speech)
        assert "no_such_file_1.wav" in str(error.value) and "no_such_file_2.wav" in str(error.value)

    def test_text_file_in_another_encoding(self) -> None:
        (refused,) = listed(DIRTY, modality="text", files="gbk.txt").quarantine.to_pylist()
        assert refused["reason"] == "wrong_encoding" and "gbk.txt: byte 0" in refused["message"]
        (row,) = listed(DIRTY, modality="text", files="gbk.txt", encoding="gbk").rows.to_pylist()
        assert row["text"].startswith("今天路口") and len(row["text"].splitlines()) == 2
