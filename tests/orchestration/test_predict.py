"""What people write for several inputs of one row, on the command line, in tables and in Python, as rows are asked."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestration.predict import by_view, raw_rows, refusal, rows_of_table
from triptych import _files

VIEWS = ("front", "left", "right")


def test_views_are_named_each_once() -> None:
    assert by_view(["front=a.png", " left = b=c.png"], VIEWS, "--image") == {"front": "a.png", "left": "b=c.png"}
    for words, says in ((["a.png"], "expected VIEW=VALUE with a view"), (["left=a", "left=b"], "left is given twice")):
        with pytest.raises(ValueError, match=says):
            by_view(words, VIEWS, "--image")


@pytest.mark.parametrize(
    ("table", "places", "expected"),
    [
        ("image\na.png;b.png\n", 2, ["a.png", "b.png"]),
        ("image\nleft=b.png; front=a.png\n", VIEWS, {"left": "b.png", "front": "a.png"}),
        ('image\n"{""left"": ""b.png"", ""front"": null}"\n', VIEWS, {"left": "b.png"}),
        ("image.left,image.front\nb.png,\n", VIEWS, {"left": "b.png"}),
        ("image.left,image\nb.png,front=a.png\n", VIEWS, {"front": "a.png", "left": "b.png"}),
    ],
)
def test_cells_and_columns_of_a_table(tmp_path: Path, table: str, places: Any, expected: Any) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "ask.csv").write_text(table)
    (row,) = rows_of_table(tmp_path / "ask.csv", (), {"image": places})
    named = list(row["image"].items() if isinstance(row["image"], dict) else enumerate(row["image"]))
    assert {name: file.name for name, file in named} == (
        expected if isinstance(expected, dict) else dict(enumerate(expected))
    )
    (batch,) = raw_rows([row], ())
    (raw,) = batch.to_pylist()
    assert raw["image_views"] == (list(expected) if isinstance(expected, dict) else None)
    assert [raw["image"], *raw["image_more"]] == [file.read_bytes() for _, file in named]


def test_several_texts_are_a_list_and_a_semicolon_is_part_of_one(tmp_path: Path) -> None:
    (tmp_path / "ask.csv").write_text('text\n"one; and the same"\n"[""a"", ""b;c""]"\n')
    rows = rows_of_table(tmp_path / "ask.csv", (), {"text": 3})
    assert [row["text"] for row in rows] == ["one; and the same", ["a", "b;c"]]
    (row,) = rows_of_table(tmp_path / "ask.csv")[1:]
    assert row["text"] == '["a", "b;c"]', "where a row has one"


def test_what_is_given_twice_or_of_no_view_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    for table, says in (
        ("image.left,image\na.png,left=a.png\n", r"ask.csv line 2: image 'left=a.png': left is given twice"),
        ("image\na.png\n", r"line 2: image 'a.png': expected VIEW=VALUE with a view \(front, left, right\)"),
        ("image.rear\na.png\n", r"expected one of text, image, speech, image.front"),
    ):
        (tmp_path / "ask.csv").write_text(table)
        with pytest.raises(ValueError, match=says):
            rows_of_table(tmp_path / "ask.csv", (), {"image": VIEWS})


def test_the_file_at_fault_is_named() -> None:
    files = [Path("a.png"), Path("b.png")]
    assert refusal([{"image": files}], 1, "image 2 of 2: broken") == "image b.png: broken"
    assert refusal([{"image": dict(zip(("left", "rear 2"), files, strict=True))}], 1, "image rear 2: broken") == (
        "image b.png: broken"
    )


def test_a_list_of_vectors_is_several_where_a_row_may_have_several() -> None:
    vectors = [np.array([1.0, 2.0]), np.array([3.0, 4.0])]

    def given(value: Any, *several: str) -> Any:
        file = _files({"image": value}, (), several)["image"]
        return [json.loads(one) for one in file] if isinstance(file, list) else json.loads(file)

    assert given(vectors) == given([[1, 2], [3, 4]]) == [[1, 2], [3, 4]], "a sequence, of which a row has one"
    assert given(vectors, "image") == given([[1, 2], [3, 4]], "image") == [[1, 2], [3, 4]]
    assert isinstance(_files({"image": vectors}, (), ("image",))["image"], list), "each of them"
    assert given([1.0, 2.0], "image") == [1, 2] and given(np.array([1.0, 2.0]), "image") == [1, 2]
    assert given(np.stack(vectors), "image") == [[1, 2], [3, 4]] and given([np.stack(vectors)], "image") == [
        [[1, 2], [3, 4]]
    ]
    assert _files({"text": ["a", "b"]}, (), ("text",)) == {"text": ["a", "b"]}
    assert _files({"image": {"left": b"x", "front": None}}, (), ("image",)) == {"image": {"left": b"x"}}
