"""Sources behind a URL, on fsspec's file system in memory: listed, hashed, read and watched as on a local disk."""

import csv
import io
import tarfile
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import pytest

from assets.contents import attach_data
from assets.scan import Scan, scan
from assets.source_settings import SourceSettings
from assets.sources.base import SourceError

ROOT = Path("/nowhere")  # no local path is ever touched


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    files = fsspec.filesystem("memory")
    yield files
    files.rm("/bucket", recursive=True)


def put(memory: fsspec.AbstractFileSystem, path: str, content: bytes) -> None:
    """A file, old enough to be relied on."""
    memory.pipe_file(f"/bucket/{path}", content)
    memory.store[f"/bucket/{path}"].modified = datetime.now(UTC) - timedelta(seconds=100)


def settings(modality: Any = "image", **fields: Any) -> SourceSettings:
    urls = {name: f"memory://bucket/{fields[name]}" for name in ("files", "table") if name in fields}
    return SourceSettings.of(name="s", modality=modality, **fields | urls)


def contents(source: SourceSettings, listed: Scan) -> dict[str, bytes]:
    batch = attach_data(listed.rows, {"s": source.make(ROOT)})
    return dict(zip(batch["key"].to_pylist(), batch["data"].to_pylist(), strict=True))


def refused(listed: Scan) -> dict[str, str]:
    return dict(zip(listed.quarantine["reason"].to_pylist(), listed.quarantine["message"].to_pylist(), strict=True))


def rows(*rows: list[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def test_a_folder_with_a_table(memory):
    large = b"L" * 20_000_000  # several requests
    for name, content in {"a.png": b"A", "sub/b.png": large, "left.png": b"left", ".hidden/c.png": b"x"}.items():
        put(memory, f"images/{name}", content)
    put(memory, "images/empty.png", b"")
    put(memory, "t.csv", rows(["id", "file"], ["1", "a.png"], ["2", "sub/b.png"], ["3", "gone"], ["4", "../t.csv"]))
    source = settings(files="images", table="t.csv", key="id", file="file")
    listed = scan(source, ROOT)
    assert contents(source, listed) == {"1": b"A", "2": large, "left.png": b"left"}
    assert "memory://bucket/images/a.png" in listed.rows["uri"].to_pylist()
    assert refused(listed).keys() == {"empty", "not_found", "outside_root"}
    assert "memory://bucket/t.csv line 4" in refused(listed)["not_found"]
    assert listed.seen == 6


def test_a_glob_and_a_single_file(memory):
    for name in ("a.png", "b.jpg", "x/c.png", "x/y/d.png"):
        put(memory, f"images/{name}", name.encode())
    for files, keys in {"images/*.png": {"a"}, "images/**/*.png": {"a", "x/c", "x/y/d"}, "images/b.jpg": {"b"}}.items():
        source = settings(files=files)
        assert contents(source, scan(source, ROOT)).keys() == keys


def test_a_tar_and_a_zip_are_read_in_place(memory):
    members = {"a.png": b"A" * 700, "d/b.png": b"B" * 3_000_000}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    put(memory, "images.tar", packed.getvalue())
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("a.png", members["a.png"], zipfile.ZIP_STORED)
        archive.writestr("d/b.png", members["d/b.png"], zipfile.ZIP_DEFLATED)
    put(memory, "images.zip", zipped.getvalue())
    for files in ("images.tar", "images.zip"):
        source = settings(files=files)
        first = scan(source, ROOT)
        assert contents(source, first) == {"a": members["a.png"], "d/b": members["d/b.png"]}
        assert scan(source, ROOT, first.rows).reused == 2
    put(memory, "images.tar", packed.getvalue()[:2000])
    with pytest.raises(SourceError, match=r"memory://bucket/images\.tar"):
        scan(settings(files="images.tar"), ROOT)


def test_texts_of_tables_and_files(memory):
    put(memory, "t.csv", rows(["id", "note"], ["1", "one"], ["2", " "]))
    put(memory, "notes/3.txt", "drei".encode("utf-16"))
    table = settings("text", table="t.csv", key="id", column="note")
    assert contents(table, scan(table, ROOT)) == {"1": b"one"}
    files = settings("text", files="notes", encoding="utf-16")
    assert contents(files, scan(files, ROOT)) == {"3": b"drei"}


def test_what_has_not_changed_is_not_read_again(memory):
    for name in ("a.png", "b.png"):
        put(memory, f"images/{name}", name.encode())
    memory.pipe_file("/bucket/images/fresh.png", b"fresh")  # may change again within the clock's tick
    source = settings(files="images")
    first = scan(source, ROOT)
    before = source.make(ROOT).signature()
    memory.pipe_file("/bucket/images/b.png", b"B.PNG")  # of the same size
    second = scan(source, ROOT, first.rows)
    assert (first.reused, second.reused) == (0, 1)
    assert contents(source, second) == {"a": b"a.png", "b": b"B.PNG", "fresh": b"fresh"}
    assert source.make(ROOT).signature() != before
    assert contents(source, first)["b"] is None, "what was listed is not what is there"


def test_what_is_not_there_is_named(memory):
    put(memory, "images/a.png", b"a")
    with pytest.raises(SourceError, match="memory://bucket/nowhere: no such file or folder"):
        scan(settings(files="nowhere"), ROOT)
    with pytest.raises(SourceError, match=r"memory://bucket/t\.csv: no such table"):
        scan(settings("text", table="t.csv", key="id", column="note"), ROOT)
    assert scan(settings(files="nowhere", optional=True), ROOT).seen == 0
    with pytest.raises(SourceError, match=r"nosuch://x/y: cannot be opened: .*nosuch"):
        scan(SourceSettings.of(name="s", modality="image", files="nosuch://x/y"), ROOT)


def test_a_url_of_a_local_file_is_that_file(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"a")
    by_url, by_path = (
        scan(SourceSettings.of(name="s", modality="image", files=files), tmp_path).rows
        for files in ((tmp_path / "images").as_uri(), "images")
    )
    assert by_url.drop_columns("mtime").equals(by_path.drop_columns("mtime"))
