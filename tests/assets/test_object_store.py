"""Sources in S3 buckets, on a server on loopback that fails as stores do."""

import io
import os
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from assets import featurizing, object_store, pipeline
from assets.contents import attach_data
from assets.scan import Scan, scan
from assets.source_settings import SourceSettings
from assets.sources.base import SourceError
from orchestration.automation import signature
from orchestration.project import load
from tests.assets.file_server import OLD, FileServer, serving

ROOT = Path("/nowhere")  # no local path is ever touched
PHOTOS = {"a.png": os.urandom(5000), "sub/b.png": b"B", "sub/ü c%20#?.png": b"C" * 99}


@pytest.fixture(scope="module")
def server() -> Iterator[FileServer]:
    with serving() as server:
        yield server


@pytest.fixture
def store(server, monkeypatch) -> FileServer:
    """An empty one, and what its clients find in the environment."""
    for what in (server.files, server.faults, server.asked):
        what.clear()
    for name, value in {"ACCESS_KEY_ID": "me", "SECRET_ACCESS_KEY": "secret", "ENDPOINT_URL": server.url}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    return server


@pytest.fixture
def photos(store) -> FileServer:
    for name, content in PHOTOS.items():
        store.put(f"bucket/photos/{name}", content)
    return store


def settings(modality: Any = "image", **fields: Any) -> SourceSettings:
    urls = {name: f"s3://bucket/{fields[name]}" for name in ("files", "table") if name in fields}
    return SourceSettings.of(name="s", modality=modality, **fields | urls)


def contents(source: SourceSettings, listed: Scan) -> dict[str, bytes]:
    batch = attach_data(listed.rows, {"s": source.make(ROOT)})
    return dict(zip(batch["key"].to_pylist(), batch["data"].to_pylist(), strict=True))


def packed_zip(content: bytes) -> bytes:
    with zipfile.ZipFile(packed := io.BytesIO(), "w") as archive:
        archive.writestr(zipfile.ZipInfo("in.png"), content)
    return packed.getvalue()


def test_an_unchanged_bucket_is_listed_and_no_object_is_opened(photos):
    photos.put("bucket/photos/.hidden/d.png", b"x")
    photos.put("bucket/photos/empty.png", b"")
    source = settings(files="photos")
    first = scan(source, ROOT)
    assert contents(source, first) == {name.removesuffix(".png"): content for name, content in PHOTOS.items()}
    assert first.quarantine["reason"].to_pylist() == ["empty"]
    photos.asked.clear()
    second = scan(source, ROOT, first.rows)
    assert second.reused == 3 and second.rows.equals(first.rows)
    assert not any("png" in line for line in photos.asked) and len(photos.asked) <= 4
    photos.put("bucket/photos/sub/b.png", b"D", OLD + 1)  # of the same size
    assert scan(source, ROOT, first.rows).reused == 2 and len(photos.reads()) == 1


def test_etags_tell_what_size_and_time_do_not(photos, monkeypatch):
    source = SourceSettings.of(name="s", modality="image", files=["s3://bucket/photos", "s3://bucket/left.zip"])
    photos.put("bucket/left.zip", zipped := packed_zip(b"A"))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # a store is asked directly, whoever lists
    with monkeypatch.context() as without:
        without.setattr(object_store, "_client", lambda *_: None)  # boto3 is not installed
        plain = scan(source, ROOT)
    assert set(zip(plain.rows["key"].to_pylist(), pc.is_valid(plain.rows["etag"]).to_pylist(), strict=True)) == {
        ("a", False), ("sub/b", False), ("sub/ü c%20#?", False), ("in", True)
    }  # fmt: skip
    first = scan(source, ROOT, plain.rows)
    assert first.reused == 4, "that it is installed now reads nothing again"
    assert first.rows.drop_columns("etag").equals(plain.rows.drop_columns("etag"))
    assert first.rows["etag"].null_count == 0
    with monkeypatch.context() as without:
        without.setattr(object_store, "_client", lambda *_: None)
        assert scan(source, ROOT, first.rows).rows.equals(first.rows), "what is not told stays known"
    photos.put("bucket/photos/sub/b.png", b"X")  # of the same size and time
    photos.put("bucket/left.zip", other := packed_zip(b"Z"))
    assert len(zipped) == len(other)
    photos.asked.clear()
    second = scan(source, ROOT, first.rows)
    assert second.reused == 2 and {line.split()[1] for line in photos.reads()} == {
        "/bucket/photos/sub/b.png", "/bucket/left.zip"
    }  # fmt: skip
    assert contents(source, second) | {"a": b"", "sub/ü c%20#?": b""} == {
        "a": b"", "sub/b": b"X", "sub/ü c%20#?": b"", "in": b"Z"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("files", "keys"),
    [("photos/*.png", {"a"}), ("photos/**/*.png", {"a", "sub/b", "sub/ü c%20#?"}), ("photos/sub/b.png", {"b"})],
)
def test_globs_and_single_objects(photos, files, keys):
    assert set(scan(settings(files=files), ROOT).rows["key"].to_pylist()) == keys


def test_a_tar_is_read_in_place_and_tables_are_read(store):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in PHOTOS.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    store.put("bucket/photos.tar", packed.getvalue())
    tar = settings(files="photos.tar")
    assert set(contents(tar, scan(tar, ROOT)).values()) == set(PHOTOS.values())
    assert all("bytes=" in line for line in store.reads())
    store.put("bucket/t.csv", b"id,note\n1,one\n2,two\n")
    table = settings("text", table="t.csv", key="id", column="note")
    assert contents(table, scan(table, ROOT)) == {"1": b"one", "2": b"two"}
    pq.write_table(pa.table({"id": list(PHOTOS), "image": list(PHOTOS.values())}), written := io.BytesIO())
    store.put("bucket/part-0.parquet", written.getvalue())
    embedded = settings(table="part-*.parquet", key="id", column="image", modality="speech")
    assert contents(embedded, scan(embedded, ROOT)) == PHOTOS


@pytest.mark.parametrize("fault", [503, "cut", "drop", "short"])
def test_what_breaks_off_is_tried_again(photos, fault):
    photos.faults["bucket/photos/a.png"].append(fault)
    source = settings(files="photos")
    listed = scan(source, ROOT)
    assert listed.rows.num_rows == 3 and len(photos.reads("/a.png")) == 2
    assert contents(source, listed)["a"] == PHOTOS["a.png"]


@pytest.mark.parametrize(
    ("fault", "why"), [(500, "500"), ("cut", "partial file"), ("short", "gave less than the 5000")]
)
def test_what_stays_broken_is_refused_with_its_reason(photos, fault, why, monkeypatch):
    monkeypatch.setattr(object_store, "_ATTEMPTS", 2)
    object_store._store.cache_clear()
    photos.faults["bucket/photos/a.png"] += [fault] * 2
    listed = scan(settings(files="photos"), ROOT)
    object_store._store.cache_clear()
    assert set(listed.rows["key"].to_pylist()) == {"sub/b", "sub/ü c%20#?"}
    (refused,) = listed.quarantine.to_pylist()
    assert refused["reason"] == "unreadable" and why in refused["message"]
    assert refused["message"].startswith("s3://bucket/photos/a.png: cannot be read")


@pytest.mark.parametrize("content", [b"other" * 2000, b"other"])
def test_an_object_that_changes_while_it_is_read_is_refused(photos, content):
    photos.faults["bucket/photos/a.png"].append(lambda: photos.put("bucket/photos/a.png", content, OLD + 1))
    source = settings(files="photos")
    listed = scan(source, ROOT)
    (refused,) = listed.quarantine.to_pylist()
    assert (refused["reason"], refused["key"]) == ("changed", "a")
    assert "changed while it was read; run again" in refused["message"]
    assert contents(source, scan(source, ROOT, listed.rows))["a"] == content


def test_what_is_not_there_or_does_not_answer_is_named(photos, monkeypatch):
    with pytest.raises(SourceError, match="s3://bucket/nowhere: no such file or folder"):
        scan(settings(files="nowhere"), ROOT)
    with pytest.raises(SourceError, match="s3://nobucket/photos: no such file or folder"):
        scan(SourceSettings.of(name="s", modality="image", files="s3://nobucket/photos"), ROOT)
    with pytest.raises(SourceError, match=r"gs://bucket/photos: cannot be opened: .*gcsfs"):
        scan(SourceSettings.of(name="s", modality="image", files="gs://bucket/photos"), ROOT)
    with pytest.raises(ValueError, match=r"endpoint_url is 'here', expected http"):
        settings(files="photos", endpoint_url="here")
    monkeypatch.setattr(object_store, "_ATTEMPTS", 1)
    dead = settings(files="photos", endpoint_url="http://127.0.0.1:9", optional=True)
    with pytest.raises(SourceError, match=r"s3://bucket/photos: cannot be listed: .*curlCode: 7"):
        scan(dead, ROOT)


def test_a_project_whose_photos_lie_in_a_bucket(tiny, store):
    for path in (tiny.parent / "photos").iterdir():
        store.put(f"bucket/photos/{path.name}", path.read_bytes())
    store.put("bucket/questions.csv", (tiny.parent / "questions.csv").read_bytes())
    moved = tiny.read_text().replace("files: photos", "files: s3://bucket/photos")
    tiny.write_text(moved.replace("table: questions.csv", "table: s3://bucket/questions.csv"))
    project = load(tiny)
    lake, before = pipeline.open_lake(project), signature(project)
    store.asked.clear()
    for expected in ({"text": 60, "image": 48, "speech": 47}, {"text": 0, "image": 0, "speech": 0}):
        listing = pipeline.write_manifest(lake, project)
        done = {m: featurizing.process_modality(lake, project, m)["processed"] for m in project.modalities}
        assert done == expected
        assert len(store.reads("photos/q")) == (96 if expected["image"] else 0)  # hashed, then decoded
    assert signature(project) == before and listing.words.endswith("as before")
    store.put("bucket/photos/q99.png", store.files["bucket/photos/q01.png"][0])
    store.put("bucket/photos/q00.png", store.files["bucket/photos/q01.png"][0], OLD + 1)
    del store.files["bucket/photos/q02.png"]
    assert signature(project) != before
    listing = pipeline.write_manifest(lake, project)
    assert listing.words.endswith("; 1 new, 1 changed, 1 vanished")
    photos = listing.sources["photos"]
    assert photos.changed_items == ["s3://bucket/photos/q00.png (q00)"]
    assert photos.vanished_items == ["s3://bucket/photos/q02.png (q02)"]
