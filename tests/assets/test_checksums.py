"""Archives and tables as a whole, held against what the project file says of them."""

import hashlib
import io
import tarfile
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assets.contents import attach_data
from assets.scan import scan
from assets.source_settings import SourceSettings
from assets.sources.base import SourceError
from tests.assets.file_server import OLD, FileServer, serving

PHOTOS = {"a.png": b"A" * 999, "b.png": b"B"}
TABLE = b"name,kind\na,cat\nb,dog\n"


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving() as server:
        server.put("photos.tar", packed(PHOTOS))
        server.put("photos.csv", TABLE)
        yield server


def packed(files: dict[str, bytes]) -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return whole.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def settings(**fields: Any) -> SourceSettings:
    return SourceSettings.of(name="s", modality="image", **fields)


def test_an_archive_is_read_whole_once_and_a_table_each_time(server, tmp_path):
    sums = {"photos.tar": sha256(packed(PHOTOS)).upper(), "photos.csv": sha256(TABLE)}
    place = {"files": f"{server.url}/photos.tar", "table": f"{server.url}/photos.csv", "key": "name"}
    source = settings(**place, checksum=sums, allow_private=True)
    first = scan(source, tmp_path)
    assert attach_data(first.rows, {"s": source.make(tmp_path)})["data"].to_pylist() == list(PHOTOS.values())
    assert {etag.split(" sha256:")[1] for etag in first.rows["etag"].to_pylist()} == {sums["photos.tar"].lower()}
    assert len([line for line in server.reads("photos.tar") if "bytes" not in line]) == 1
    second = scan(source, tmp_path, first.rows)
    assert second.reused == 2 and second.rows.equals(first.rows)
    assert not [line for line in server.reads("photos.tar") if "bytes" not in line]

    plain = scan(settings(**place, allow_private=True), tmp_path, first.rows)
    assert plain.reused == 2 and "sha256:" not in str(plain.rows["etag"].to_pylist()), "taken back, nothing is read"
    server.reads()
    assert scan(source, tmp_path, plain.rows).rows.equals(first.rows)
    assert len([line for line in server.reads("photos.tar") if "bytes" not in line]) == 1, "it was not held against it"

    other = packed(PHOTOS | {"b.png": b"X"})
    server.put("photos.tar", other, OLD + 1)
    with pytest.raises(SourceError, match=rf"photos\.tar: its SHA-256 is {sha256(other)}, and `checksum` says "):
        scan(source, tmp_path, first.rows)
    server.put("photos.tar", packed(PHOTOS), OLD + 1)
    server.put("photos.csv", TABLE.replace(b"cat", b"dog"))
    with pytest.raises(SourceError, match=r"photos\.csv: its SHA-256 is .*get the file anew, or correct"):
        scan(source, tmp_path, first.rows)


def test_the_only_file_needs_no_name(tmp_path):
    pq.write_table(pa.table({"id": ["1"], "image": [b"A"]}), tmp_path / "t.parquet")
    (tmp_path / "0.tar").write_bytes(packed(PHOTOS))
    (tmp_path / "texts.csv").write_bytes(TABLE)
    sources: list[tuple[str, dict[str, Any]]] = [
        ("t.parquet", {"modality": "image", "table": "t.parquet", "key": "id", "column": "image"}),
        ("0.tar", {"modality": "image", "files": "*.tar"}),
        ("0.tar", {"modality": "image", "kind": "webdataset", "files": "0.tar", "member": "png"}),
        ("texts.csv", {"modality": "text", "table": "texts.csv", "key": "name", "column": "kind"}),
    ]
    for name, fields in sources:
        right = SourceSettings.of(name="s", **fields, checksum=sha256((tmp_path / name).read_bytes()))
        listed = scan(right, tmp_path)
        assert listed.rows.num_rows == listed.seen > 0
        with pytest.raises(SourceError, match=f"{name}: its SHA-256 is"):
            scan(SourceSettings.of(name="s", **fields, checksum="0" * 64), tmp_path)


def test_what_a_checksum_does_not_fit_is_named(tmp_path):
    (tmp_path / "0.tar").write_bytes(packed(PHOTOS))
    (tmp_path / "1.tar").write_bytes(packed(PHOTOS))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"A")
    zero = "0" * 64
    for files, checksum, words in (
        ("*.tar", zero, "of one archive or table, and there are 2: say it by their names"),
        ("photos", zero, "of one archive or table, and there is none"),
        ("*.tar", {"2.tar": zero}, r"names '2\.tar', which is no archive or table of it: there is 0\.tar, 1\.tar"),
    ):
        with pytest.raises(SourceError, match=f"checksum (is )?{words}"):
            scan(settings(files=files, checksum=checksum), tmp_path)
    for wrong in ("abc", {"0.tar": "abc"}):
        with pytest.raises(ValueError, match="checksum is 'abc', expected 64 hex digits"):
            settings(files="*.tar", checksum=wrong)
