"""Small files are written whole or not at all."""

import threading

import pytest

from training.files import write_bytes, write_text


def test_a_reader_never_sees_half_a_file(tmp_path):
    path = tmp_path / "new" / "folder" / "file.txt"
    contents = {letter * 200_000 for letter in "abcdé"}
    write_text(path, "a" * 200_000)
    seen: set[str] = set()
    ended = threading.Event()

    def read() -> None:
        while not ended.is_set():
            seen.add(path.read_text(encoding="utf-8"))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(40):
        for content in contents:
            write_text(path, content)
    ended.set()
    reader.join()
    assert seen <= contents
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]


def test_what_cannot_be_put_in_place_leaves_nothing(tmp_path):
    target = tmp_path / "taken"
    target.mkdir()
    with pytest.raises(OSError):
        write_bytes(target, b"data")
    assert list(tmp_path.iterdir()) == [target]
