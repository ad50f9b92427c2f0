"""Archives as they come from elsewhere: damaged, in other encodings, of other systems."""

import io
import random
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from assets.contents import attach_data
from assets.scan import Scan, scan
from assets.source_settings import SourceSettings
from assets.sources.base import SourceError


def listed(root: Path, **fields: Any) -> Scan:
    return scan(SourceSettings.of(name="s", modality="image", **fields), root)


def keys(scanned: Scan) -> list[str]:
    return sorted(scanned.rows["key"].to_pylist())


def refused(scanned: Scan) -> dict[str, str]:
    return dict(zip(scanned.quarantine["reason"].to_pylist(), scanned.quarantine["message"].to_pylist(), strict=True))


def read(root: Path, scanned: Scan, **fields: Any) -> pa.RecordBatch:
    return attach_data(scanned.rows, {"s": SourceSettings.of(name="s", modality="image", **fields).make(root)})


def make_zip(names: dict[str, bytes], packing: int = zipfile.ZIP_STORED, unmarked: str | None = None) -> bytes:
    """A zip.

    Args:
        unmarked: encoding of the names, which the archive then does not mark as UTF-8.
    """
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", packing) as archive:
        for number, (name, content) in enumerate(names.items()):
            # Placeholders of the same length in bytes, since the library marks every name that is not ASCII.
            raw = name.encode(unmarked) if unmarked else b""
            archive.writestr(f"{number}".rjust(len(raw), "_") if unmarked else name, content)
    content = stream.getvalue()
    for number, name in enumerate(names if unmarked else []):
        raw = name.encode(unmarked or "")
        content = content.replace(f"{number}".rjust(len(raw), "_").encode(), raw)
    return content


def make_tar(names: dict[str, bytes], form: int = tarfile.PAX_FORMAT, encoding: str = "utf-8") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form, encoding=encoding) as archive:
        for name, content in names.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def with_sums(content: bytearray) -> bytearray:
    """A tar whose header checksums hold, so that the fields behind them are looked at."""
    for at in range(0, len(content) - 511, 512):
        if content[at + 257 : at + 262] == b"ustar":
            total = sum(content[at : at + 148]) + 256 + sum(content[at + 156 : at + 512])
            content[at + 148 : at + 156] = b"%06o\0 " % total
    return content


NAMES = {"a.png": b"A" * 300, "d/" * 60 + "b.png": b"B" * 300, "ü.png": b"C" * 300}
ARCHIVES = [
    *(("tar", make_tar(NAMES, form)) for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)),
    *(("zip", make_zip(NAMES, packing)) for packing in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)),
]


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(n, marks=pytest.mark.slow) for n in range(2, 10))])
def test_a_damaged_archive_ends_in_refused_members_or_in_one_sentence(tmp_path, seed):
    draw = random.Random(seed)
    for _ in range(25):
        kind, whole = draw.choice(ARCHIVES)
        content = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(content))
            flip = bytes([content[at] ^ 1 << draw.randrange(8)])
            content[at : at + 8] = draw.choice([flip, b"\xff" * 8, b"\x80" + bytes(7), b"7" * 8, b"", bytes(8)])
        (tmp_path / f"x.{kind}").write_bytes(with_sums(content) if kind == "tar" and draw.random() < 0.7 else content)
        fields: dict[str, Any] = {"files": f"x.{kind}", "encoding": draw.choice(["utf-8", "gbk"])}
        try:
            scanned = listed(tmp_path, **fields)
        except SourceError as error:
            assert f"x.{kind}" in str(error) and "\n" not in str(error)
        else:
            read(tmp_path, scanned, **fields)


def test_a_member_without_a_name_is_refused_and_the_others_are_read(tmp_path):
    (tmp_path / "x.zip").write_bytes(make_zip({"a.png": b"a", "Q": b"q"}).replace(b"Q", b"\0"))
    scanned = listed(tmp_path, files="x.zip")
    assert keys(scanned) == ["a"]
    assert "without a name" in refused(scanned)["bad_name"]


def test_a_zip_of_a_version_that_no_reader_knows_is_one_refused_file(tmp_path):
    content = bytearray(make_zip({"a.png": b"a"}))
    content[content.index(b"PK\1\2") + 6] = 90
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(SourceError, match=r"x\.zip: cannot be read as zip \(zip file version 9\.0\)"):
        listed(tmp_path, files="x.zip")


def test_a_zip_whose_member_cannot_lie_where_it_says(tmp_path):
    end = zipfile.ZIP64_LIMIT
    content = bytearray(make_zip({"a.png": b"a", "b.png": b"b"}))
    entry = content.index(b"PK\1\2")
    content[entry + 42 : entry + 46] = (end + 5).to_bytes(4, "little")
    (tmp_path / "x.zip").write_bytes(content)
    scanned = listed(tmp_path, files="x.zip")
    assert keys(scanned) == ["b"] and "x.zip: a.png" in refused(scanned)["unreadable"]


def test_a_tar_whose_header_leads_back_is_refused(tmp_path):
    content = bytearray(make_tar({"a.png": b"a", "b.png": b"b"}, tarfile.GNU_FORMAT))
    content[1024 + 124 : 1024 + 136] = b"\xff" * 10 + b"\xf8\x00"  # -2048, in base 256
    (tmp_path / "x.tar").write_bytes(with_sums(content))
    with pytest.raises(SourceError, match=r"x\.tar"):
        listed(tmp_path, files="x.tar")


def test_what_cannot_be_unpacked_says_what_to_do(tmp_path):
    locked, packed = bytearray(make_zip({"a.png": b"a"})), bytearray(make_zip({"b.png": b"b"}))
    locked[locked.index(b"PK\1\2") + 8] |= 1
    packed[packed.index(b"PK\1\2") + 10] = zipfile.ZIP_LZMA
    (tmp_path / "x.zip").write_bytes(locked)
    (tmp_path / "y.zip").write_bytes(packed)
    assert "encrypted; pack it without a password" in refused(listed(tmp_path, files="x.zip"))["unsupported"]
    assert "packed by method 14; pack it as stored" in refused(listed(tmp_path, files="y.zip"))["unsupported"]


# Names


CHINESE = {"猫.png": b"1", "狗/鸟.png": b"2", "马.png": b"3"}  # in GBK, 猫 is what è is in UTF-8


@pytest.mark.parametrize(("name", "encoding"), [("кот.png", "cp866"), ("ねこ.png", "shift_jis"), ("한글.png", "cp949")])
def test_names_in_other_encodings_are_never_taken_for_western_ones(tmp_path, name, encoding):
    (tmp_path / "x.zip").write_bytes(make_zip({name: b"1"}, unmarked=encoding))
    assert list(refused(listed(tmp_path, files="x.zip"))) == ["bad_name"]
    assert keys(listed(tmp_path, files="x.zip", encoding=encoding)) == [name.removesuffix(".png")]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_in_gbk_are_read_where_the_source_says_so_and_refused_where_not(tmp_path, kind):
    content = make_zip(CHINESE, unmarked="gbk") if kind == "zip" else make_tar(CHINESE, tarfile.GNU_FORMAT, "gbk")
    (tmp_path / f"x.{kind}").write_bytes(content)
    fields: dict[str, Any] = {"files": f"x.{kind}", "encoding": "gbk"}
    scanned = listed(tmp_path, **fields)
    assert keys(scanned) == ["狗/鸟", "猫", "马"]
    assert sorted(read(tmp_path, scanned, **fields)["data"].to_pylist()) == [b"1", b"2", b"3"]
    without = listed(tmp_path, files=f"x.{kind}")
    assert without.rows.num_rows == 0 and without.quarantine["reason"].to_pylist() == ["bad_name"] * 3
    assert "set `encoding` to that of the names (gbk" in refused(without)["bad_name"]


def test_names_that_are_utf8_by_chance_need_the_setting(tmp_path):
    """As docs/layouts.md says: no byte of the archive tells which was meant."""
    (tmp_path / "x.zip").write_bytes(make_zip({"猫.png": b"1"}, unmarked="gbk"))
    assert keys(listed(tmp_path, files="x.zip")) == ["è"]
    assert keys(listed(tmp_path, files="x.zip", encoding="gbk")) == ["猫"]


@pytest.mark.parametrize("encoding", ["utf-8", "cp437"])
def test_unmarked_names_are_read_as_utf8_or_as_the_format_says(tmp_path, encoding):
    (tmp_path / "x.zip").write_bytes(make_zip({"Käse.png": b"1", "crème.png": b"2"}, unmarked=encoding))
    assert keys(listed(tmp_path, files="x.zip")) == ["Käse", "crème"]


def test_texts_in_utf16_lie_under_plain_names(tmp_path):
    for kind, content in (("zip", make_zip({"ab.txt": b"1"})), ("tar", make_tar({"ab.txt": b"1"}))):
        (tmp_path / f"x.{kind}").write_bytes(content)
        assert keys(listed(tmp_path, files=f"x.{kind}", encoding="utf-16")) == ["ab"]


def test_a_name_that_stands_in_utf8_beside_the_other_one_is_taken(tmp_path):
    stream, raw = io.BytesIO(), "猫.png".encode("gbk")
    with zipfile.ZipFile(stream, "w") as archive:
        info = zipfile.ZipInfo("__.png")
        body = b"\1" + zlib.crc32(raw).to_bytes(4, "little") + "猫.png".encode()
        info.extra = b"\x75\x70" + len(body).to_bytes(2, "little") + body
        archive.writestr(info, b"1")
    (tmp_path / "x.zip").write_bytes(stream.getvalue().replace(b"__.png", raw))
    assert keys(listed(tmp_path, files="x.zip")) == keys(listed(tmp_path, files="x.zip", encoding="big5")) == ["猫"]


def test_names_that_say_they_are_utf8_are_taken_at_their_word(tmp_path):
    (tmp_path / "x.zip").write_bytes(make_zip(CHINESE))
    assert keys(listed(tmp_path, files="x.zip", encoding="shift_jis")) == ["狗/鸟", "猫", "马"]


def test_a_zip_packed_on_windows(tmp_path):
    (tmp_path / "x.zip").write_bytes(make_zip({"photos\\": b"", "photos\\a.png": b"a", "..\\b.png": b"b"}))
    scanned = listed(tmp_path, files="x.zip")
    assert keys(scanned) == ["photos/a"] and list(refused(scanned)) == ["outside_root"]


# Shards


def write_shards(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for n in range(3):
        (folder / f"shard-{n}.tar").write_bytes(make_tar({f"{n}0.png": b"x%d" % n, f"{n}1.png": b"y%d" % n}))


@pytest.mark.parametrize("files", ["s/shard-*.tar", "s", ["s/shard-0.tar", "s/shard-1.tar", "s/shard-2.tar"]])
def test_shards_give_the_members_of_all(tmp_path, files):
    write_shards(tmp_path / "s")
    scanned = listed(tmp_path, files=files)
    assert keys(scanned) == ["00", "01", "10", "11", "20", "21"]
    assert sorted(read(tmp_path, scanned, files=files)["data"].to_pylist()) == [
        b"x0",
        b"x1",
        b"x2",
        b"y0",
        b"y1",
        b"y2",
    ]


def test_a_damaged_shard_is_refused_and_the_others_are_read(tmp_path):
    write_shards(tmp_path / "s")
    (tmp_path / "s/shard-1.tar").write_bytes(b"nothing")
    scanned = listed(tmp_path, files="s/*.tar")
    assert keys(scanned) == ["00", "01", "20", "21"] and "shard-1.tar" in refused(scanned)["corrupt"]
    for n in (0, 2):
        (tmp_path / f"s/shard-{n}.tar").write_bytes(b"nothing")
    with pytest.raises(SourceError, match="none of its 3 archives can be read"):
        listed(tmp_path, files="s/*.tar")


def test_an_archive_among_other_files_is_refused_until_it_is_named(tmp_path):
    write_shards(tmp_path / "s")
    (tmp_path / "s/a.png").write_bytes(b"a")
    scanned = listed(tmp_path, files="s")
    assert keys(scanned) == ["a"] and scanned.quarantine["reason"].to_pylist() == ["unsupported"] * 3
    assert "shard-2.tar: an archive among other files; name it under `files`" in refused(scanned)["unsupported"]
    assert keys(listed(tmp_path, files=["s/*.png", "s/*.tar"])) == ["00", "01", "10", "11", "20", "21", "a"]


def test_a_change_of_a_shard_changes_the_signature(tmp_path):
    write_shards(tmp_path / "s")
    source = SourceSettings.of(name="s", modality="image", files="s/*.tar").make(tmp_path)
    before = source.signature()
    assert source.signature() == before
    (tmp_path / "s/shard-2.tar").write_bytes(make_tar({"new.png": b"n" * 20_000}))
    assert source.signature() != before


def test_rows_tell_members_of_the_same_name_apart_by_the_archive(tmp_path):
    for n in range(2):
        (tmp_path / f"{n}.tar").write_bytes(make_tar({"a.png": b"%d" % n}))
    (tmp_path / "t.csv").write_text("file\na.png\n0.tar/a.png\n1/a.png\n")
    scanned = listed(tmp_path, files="*.tar", table="t.csv", key="file")
    assert keys(scanned) == ["0.tar/a.png", "1/a.png"]
    assert "0.tar: a.png and" in (said := refused(scanned)["ambiguous"]) and "1.tar: a.png; write more" in said


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ("*.tar/*.png", ["1", "2"]),
        ("*.tar/**/*.png", ["1", "2", "x/3"]),
        ("a.tar/x", ["3", "y/4"]),
        ("a.tar/x/**/*.txt", ["y/4"]),
        ("a.tar/1.png", ["1"]),
        (["a.tar/x", "b.tar/*.png"], ["2", "3", "y/4"]),
    ],
)
def test_a_name_goes_on_in_archives(tmp_path, files, expected):
    (tmp_path / "a.tar").write_bytes(make_tar({"1.png": b"1", "1.txt": b"t", "x/3.png": b"3", "x/y/4.txt": b"4"}))
    (tmp_path / "b.tar").write_bytes(make_tar({"2.png": b"2", "2.txt": b"u"}))
    scanned = listed(tmp_path, files=files)
    assert keys(scanned) == expected
    assert [content.decode() for content in read(tmp_path, scanned, files=files)["data"].to_pylist()] == [
        row["member"][-5] for row in scanned.rows.to_pylist()
    ]


def test_a_folder_that_is_called_like_an_archive_is_a_folder(tmp_path):
    (tmp_path / "a.zip").mkdir()
    (tmp_path / "a.zip" / "1.png").write_bytes(b"1")
    assert keys(listed(tmp_path, files="a.zip/*.png")) == ["1"]
    (tmp_path / "empty.tar").write_bytes(make_tar({}))
    with pytest.raises(SourceError, match="there is nothing in"):
        listed(tmp_path, files="*.tar")
