"""Samples of WebDataset shards: what is one, its key, its columns, and what is refused."""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pytest

from assets.scan import scan
from assets.source_settings import SourceSettings
from assets.sources.base import SourceError


def shard(path: Path, members: Sequence[tuple[str, bytes]]) -> None:
    path.write_bytes(packed(members))


def packed(members: Sequence[tuple[str, bytes]]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def items(root: Path, modality: str = "image", **options: Any) -> dict[str, Mapping[str, str]]:
    """Key -> attributes of what is listed; of what is refused, reason -> its message."""
    options = {"files": "*.tar", "member": None if "column" in options else "jpg", **options}
    listed = scan(SourceSettings.of(name="s", modality=modality, kind="webdataset", **options), root)
    found = {row["key"]: json.loads(row["attributes"]) for row in listed.rows.to_pylist()}
    return found | {f"!{row['reason']}": row["message"] for row in listed.quarantine.to_pylist()}


def test_members_in_any_order_are_one_sample_and_its_labels_are_columns(tmp_path):
    members = [("b.jpg", b"B"), ("in/a.JPG", b"A"), ("README", b"x"), ("b.cls", b"7\n"), ("in/a.Txt", "grün".encode())]
    members += [("b.json", b'{"cls": 1, "size": [1, 2], "vector": [0.5], "who": "x"}'), ("b.seg.png", b"S")]
    shard(tmp_path / "one.tar", members)
    place = {"__shard__": "one"}
    b = {**place, "__key__": "b", "cls": "7", "size": "[1, 2]", "who": "x"}
    assert items(tmp_path) == {"one/b": b, "one/in/a": {**place, "__key__": "in/a", "txt": "grün"}}
    assert items(tmp_path, member="seg.png")["one/b"] == b
    texts = items(tmp_path, "text", column="txt")
    assert texts["one/in/a"] == {**place, "__key__": "in/a"} and "'txt'" in texts["!absent"]
    assert list(items(tmp_path, key="cls")) == ["7", None]


def test_a_name_in_two_shards_is_two_samples_unless_names_alone_are_the_key(tmp_path):
    for number in range(2):
        shard(tmp_path / f"s{number}.tar", [("0001.jpg", b"%d" % number), (f"x{number}.jpg", b"X%d" % number)])
    assert set(items(tmp_path)) == {"s0/0001", "s0/x0", "s1/0001", "s1/x1"}
    found = items(tmp_path, key="__key__")
    assert set(found) == {"0001", "x0", "x1", "!ambiguous"}
    assert str(tmp_path / "s0.tar") in found["!ambiguous"] and "s1.tar: 0001.jpg" in found["!ambiguous"]


@pytest.mark.parametrize(
    ("members", "reason", "words"),
    [
        ([("1.txt", b"no picture")], "absent", ["1", ".jpg"]),
        ([("1.jpg", b"J"), ("1.json", b"[1]")], "malformed", ["1.jpg", "1.json", "list"]),
        ([("1.jpg", b"J"), ("1.json", b'{"a":')], "malformed", ["1.json", "no JSON object"]),
        ([("1.jpg", b"J"), ("1.cls", b"\xff")], "malformed", ["1.cls", "utf-8", "encoding"]),
        ([("1.jpg", b"J"), ("1.jpg", b"K")], "superseded", ["1.jpg"]),
        ([("1.jpg", b"J"), ("1.json", b'{"when": "soon"}')], "malformed", ["1.jpg", "'when'", "soon"]),
        ([("../1.jpg", b"J")], "outside_root", ["../1.jpg"]),
        ([("1.jpg", b"J"), ("1.png", b"K")], "ambiguous", ["1.jpg and 1.png", "member"]),
    ],
)
def test_what_cannot_be_used_says_why(tmp_path, members, reason, words):
    shard(tmp_path / "one.tar", [*members, ("good.jpg", b"G")])
    found = items(tmp_path, member=["jpg", "png"], time="when")
    assert {"one/good", f"!{reason}"} <= set(found)
    assert all(word in found[f"!{reason}"] for word in ["one.tar", *words])


def test_shards_say_by_their_paths_and_behind_urls(tmp_path):
    memory = fsspec.filesystem("memory")
    for split in ("train", "test"):
        memory.pipe_file(f"/wds/{tmp_path.name}/{split}-7.tar", packed([("1.jpg", split.encode()), ("1.cls", b"3")]))
    found = items(tmp_path, files=f"memory://wds/{tmp_path.name}/*.tar", path="{split}-*")
    assert [row["split"] for row in found.values()] == ["test", "train"] and found["test-7/1"]["cls"] == "3"


def test_a_shard_that_is_damaged_is_one_thing_refused(tmp_path):
    (tmp_path / "bad.tar").write_bytes(b"no archive at all")
    with pytest.raises(SourceError, match=r"none of its 1 shards can be read: .*bad\.tar"):
        items(tmp_path)
    shard(tmp_path / "good.tar", [("1.jpg", b"J")])
    (tmp_path / "sizes.json").write_text("{}")
    found = items(tmp_path, files=".")
    assert set(found) == {"good/1", "!corrupt", "!unsupported"}
    assert "bad.tar" in found["!corrupt"] and "sizes.json" in found["!unsupported"]


@pytest.mark.parametrize(
    ("modality", "options", "words"),
    [
        ("image", {}, "suffix of its items in each sample as `member`"),
        ("image", {"column": "txt"}, "image lies in no column"),
        ("text", {"member": "txt", "column": "txt"}, "or a `column`"),
        ("text", {"column": "txt", "path": "x"}, "fields in braces"),
    ],
)
def test_options_that_do_not_fit(modality, options, words):
    with pytest.raises(ValueError, match=words):
        SourceSettings.of(name="s", modality=modality, kind="webdataset", files="a.tar", **options).make(Path())
