"""The search for what was erased: it finds what is there, in whatever form a file holds it, and nothing else."""

import base64
import gzip
import hashlib
import json
import random
import sqlite3
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestration import proof
from orchestration.proof import byte_needles, hash_needles, prove, text_needles

DATA = b"\x89PNG" + bytes(400) + random.Random(0).randbytes(3000)
LONG = "".join(f"Frage {n}: Wo tut es weh? „Hier“. " for n in range(60))
HASH = hashlib.sha256(DATA).hexdigest()
NEEDLES = {
    "bytes": byte_needles(DATA),
    "long": text_needles(LONG),
    "short": text_needles("Wie geht's?"),
    "hash": hash_needles(HASH),
}
ENCODED = base64.b64encode(DATA).decode()


def database(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE events (body TEXT)")
        connection.execute("INSERT INTO events VALUES (?)", (json.dumps({"preview": LONG}),))
    connection.close()


def parquet(path: Path) -> None:
    rows = {"id": [HASH, "x"], "listed": [[{"text": "Wie geht's?"}], None], "data": [DATA, b""], "one": ["same"] * 2}
    pq.write_table(pa.table(rows), path, compression="zstd", use_dictionary=["one", "id"])


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("inner/page.html", f"<p>{LONG}</p>")


@pytest.mark.parametrize(
    ("name", "write", "held"),
    [
        ("a.bin", lambda path: path.write_bytes(b"x" * 5_000_000 + DATA), ["bytes"]),
        (
            "a.json",
            lambda path: path.write_text(json.dumps([LONG, ENCODED])),
            ["bytes", "long"],
        ),
        ("a.raw", lambda path: path.write_bytes(bytes.fromhex(HASH)), ["hash"]),
        ("a.txt.gz", lambda path: path.write_bytes(gzip.compress(f"{HASH} Wie geht's?".encode())), ["short", "hash"]),
        ("a.zip", archive, ["long"]),
        ("a.parquet", parquet, ["bytes", "short", "hash"]),
        ("a.db", database, ["long"]),
        ("none.gz", lambda path: path.write_bytes(b"\x1f\x8bno gzip"), []),
        ("none.parquet", lambda path: path.write_bytes(b"PAR1 and no more"), []),
        ("none.bin", lambda path: path.write_bytes(bytes(100_000) + b"\x89PNG"), []),
    ],
)
def test_each_form_is_found_and_no_other(tmp_path, name, write, held):
    write(tmp_path / name)
    told = prove([tmp_path], NEEDLES)
    assert sorted(one.what for one in told.found) == sorted(held)
    assert {Path(one.file).name for one in told.found} <= {name}
    assert (told.files, told.bytes) == (1, (tmp_path / name).stat().st_size)


@given(before=st.integers(0, 200), data=st.binary(min_size=1, max_size=120), after=st.binary(max_size=50))
def test_what_lies_across_two_pieces_is_found(tmp_path_factory, before, data, after):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof, "_PIECE", 64)
        folder = tmp_path_factory.mktemp("pieces")
        (folder / "file").write_bytes(b"\0" * before + data + after)
        assert [one.what for one in prove([folder], {"it": [data]}).found] == ["it"]


def test_whole_copies_are_known_by_their_hash_alone(tmp_path):
    (tmp_path / "copy.png").write_bytes(DATA)
    (tmp_path / "as_long.png").write_bytes(DATA[::-1])
    pq.write_table(pa.table({"media": [b"x", DATA, DATA]}), tmp_path / "media.parquet")
    told = prove([tmp_path], {}, copies={len(DATA): {HASH}})
    assert [Path(one.file).name for one in told.found] == ["copy.png", "media.parquet"]
    assert {one.what for one in told.found} == {"the bytes of an item, by their hash"}


def damaged(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("page.html", LONG)
    data = path.read_bytes()
    path.write_bytes(data[:60] + bytes(20) + data[80:])


def encrypted(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("page.html", LONG)
    data = bytearray(path.read_bytes())
    data[6] |= 1  # the flag of the member, and of its entry in the directory
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)


def cut_column(path: Path) -> None:
    pq.write_table(pa.table({"data": [HASH] * 50}), path, compression="zstd", use_dictionary=False)
    data = path.read_bytes()
    path.write_bytes(data[:20] + bytes(30) + data[50:])


@pytest.mark.parametrize("write", [damaged, encrypted, cut_column])
def test_what_cannot_be_read_is_told_and_the_rest_is_searched(tmp_path, write):
    write(tmp_path / "a.odd")
    (tmp_path / "b.bin").write_bytes(DATA)
    told = prove([tmp_path], NEEDLES)
    assert [Path(one.file).name for one in told.found if one.what == "bytes"] == ["b.bin"]
    assert len(told.not_searched) == 1 and "a.odd cannot be read: " in told.not_searched[0]


def test_a_text_that_is_a_part_of_much_else_is_not_looked_for():
    assert text_needles("ja") == []
