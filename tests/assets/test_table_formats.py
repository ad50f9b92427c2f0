"""Typed tables: NaN is no value, a whole float is a whole number, a list is no text; JSON arrays and workbooks."""

import datetime
import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assets import featurizing, pipeline
from assets.formats.base import Record
from assets.scan import Scan, scan
from assets.source_settings import SourceSettings
from assets.sources.base import SourceError
from assets.tables import read_table
from orchestration.project import load

NAN = float("nan")


def texts(root: Path, table: str, **fields: Any) -> Scan:
    fields = {"key": "id", "column": "text"} | fields
    return scan(SourceSettings.of(name="s", modality="text", table=table, **fields), root)


def values(path: Path, *required: str) -> list[dict[str, str | None]]:
    return [record.values for record in read_table(path, required=required)]


def problems(path: Path, **more: Any) -> dict[int, str | None]:
    records: list[Record] = list(read_table(path, **more))
    return {record.line: record.problem for record in records if record.problem}


# NaN, whole floats, and other types


@pytest.mark.parametrize("kind", ["float64", "float32", "float16"])
def test_numbers_of_parquet_are_what_a_csv_would_say(tmp_path: Path, kind: str) -> None:
    numbers = np.array([3.0, 0.5, NAN, float("inf"), -0.0, -2.0], kind)
    pq.write_table(pa.table({"n": numbers}), tmp_path / "t.parquet")
    assert [row["n"] for row in values(tmp_path / "t.parquet")] == ["3", "0.5", None, None, "0", "-2"]


def test_nan_and_infinity_of_json_are_no_value(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"a": NaN, "b": -Infinity, "c": [1, NaN], "d": 1e999, "e": 2.0, "f": 0.1}\n')
    assert values(tmp_path / "t.jsonl") == [{"a": None, "b": None, "c": "[1, null]", "d": None, "e": "2", "f": "0.1"}]
    rows = pa.table({"a": [["one", None]], "b": [{"x": NAN, "y": "z"}]})
    pq.write_table(rows, tmp_path / "t.parquet")
    assert [json.loads(v or "") for v in values(tmp_path / "t.parquet")[0].values()] == [
        ["one", None],
        {"x": None, "y": "z"},
    ]


def test_float_keys_of_pandas_meet_whole_ones(tmp_path: Path) -> None:
    """A column of whole numbers in which one is missing is one of floats."""
    pq.write_table(pa.table({"id": [1.0, None, 3.0], "text": ["a", "b", "c"]}), tmp_path / "t.parquet")
    assert texts(tmp_path, "t.parquet").rows["key"].to_pylist() == ["1", None, "3"]


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_nan_is_no_label_no_group_no_key_and_no_link(tiny: Path, form: str) -> None:
    """Rows without a value in a group are bound to nobody; the same from sources and from the link table."""
    folder = tiny.parent
    names = sorted(path.name for path in (folder / "photos").iterdir())[:40]
    rows = {
        "id": list(range(40)),
        "photo": [*names[:39], NAN],
        "answer": [NAN if n % 4 == 0 else float(n % 2) for n in range(40)],
    }
    rows["person"] = [NAN if n % 2 else float(n % 8) for n in range(40)]
    if form == "parquet":
        rows["photo"] = [*names[:39], None]
        pq.write_table(pa.table(rows), folder / "links.parquet")
    else:
        lines = [json.dumps(dict(zip(rows, row, strict=True))) for row in zip(*rows.values(), strict=True)]
        (folder / "links.jsonl").write_text("\n".join(lines))
    (folder / "project.yaml").write_text(
        "name: nans\nsources:\n  - {name: photos, modality: image, files: photos}\n"
        f"align: {{table: links.{form}, columns: {{photos: photo}}, id: id, label: answer, group: [person]}}\n"
        "features:\n  image: {size: 8}\n"
    )
    project = load(folder / "project.yaml")
    lake = pipeline.open_lake(project)
    pipeline.write_manifest(lake, project)
    featurizing.process_modality(lake, project, "image")
    pipeline.write_samples(lake, project)
    samples = lake.read("samples").to_pylist()
    assert {row["label"] for row in samples} == {None, "0", "1"}
    assert all((row["label"] is None) == (int(row["sample_id"]) % 4 == 0) for row in samples)
    groups = {row["sample_id"]: json.loads(row["groups"]) for row in samples}
    assert all(groups[i] == ({} if int(i) % 2 else {"person": str(int(i) % 8)}) for i in groups)
    assert "39" not in groups  # it has no photo, not one that is called NaN
    assert {row["split"] for row in samples if int(row["sample_id"]) % 2} > {"train"}
    assert "nan" not in str(samples).lower().replace("'nans'", "")


def test_types_of_parquet_become_text(tmp_path: Path) -> None:
    columns = {
        "date": pa.array([datetime.date(2024, 1, 31)]),
        "time": pa.array([datetime.datetime(2024, 1, 31, 12)]),
        "word": pa.array(["a"]).dictionary_encode(),
        "view": pa.array(["b"], pa.string_view()),
        "truth": pa.array([True]),
        "large": pa.array([2**62]),
        "id": pa.array([b"0123456789abcdef"], pa.uuid()),
        "nothing": pa.nulls(1),
        "binary_class": pa.array([{"binary_class": 1}]),
        "bytes": pa.array([b"\xff"]),
        "deep": pa.array([[{"x": b"\xff"}]]),
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    (row,) = values(tmp_path / "t.parquet")
    assert row == {
        "date": "2024-01-31",
        "time": "2024-01-31 12:00:00.000000",
        "word": "a",
        "view": "b",
        "truth": "true",
        "large": str(2**62),
        "id": "30313233-3435-3637-3839-616263646566",
        "nothing": None,
        "binary_class": '{"binary_class": 1}',
    }
    with pytest.raises(SourceError, match="column 'bytes' holds bytes, which are no text; name another"):
        values(tmp_path / "t.parquet", "bytes")


# What is no text


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        ([[0.5, 1.5], None], "a list of 2 values"),
        ([{"a": 1}, None], "an object"),
        ([7, None], "the number 7"),
        ([True, None], "true or false"),
        ([["a", "b"], None], "a list of 2 values"),
    ],
)
def test_what_is_no_text_is_refused_in_a_column_of_text(tmp_path: Path, cells: list[Any], says: str) -> None:
    pq.write_table(pa.table({"id": ["1", "2"], "text": cells}), tmp_path / "t.parquet")
    lines = [json.dumps({"id": n, "text": cell}) for n, cell in enumerate(cells, 1)]
    (tmp_path / "t.jsonl").write_text("\n".join([*lines, '{"id": 3, "text": "fine"}']))
    for table in ("t.parquet", "t.jsonl"):
        found = {row["row"]: (row["reason"], row["message"]) for row in texts(tmp_path, table).quarantine.to_pylist()}
        assert found[1][0] == "malformed" and f"1: column 'text' holds {says}, which is no text" in found[1][1]
        assert found[2][0] == "absent"
    assert texts(tmp_path, "t.jsonl").rows["text"].to_pylist() == ["fine"]
    (tmp_path / "t.csv").write_text("id,text\n1,7\n2,[1]\n")
    assert texts(tmp_path, "t.csv").rows["text"].to_pylist() == ["7", "[1]"]


# JSON


@pytest.mark.parametrize("name", ["t.json", "t.jsonl"])
@pytest.mark.parametrize("indent", [None, 1])
def test_an_array_is_read_like_lines(tmp_path: Path, name: str, indent: int | None) -> None:
    rows = [{"id": str(n), "text": f"[{n}], {{é}}\n" * 3000} for n in range(9)]
    (tmp_path / name).write_text(json.dumps(rows, indent=indent, ensure_ascii=False))
    records = list(read_table(tmp_path / name, required=["id"]))
    assert [record.values for record in records] == rows
    assert [record.line for record in records][:2] == ([1, 1] if indent is None else [2, 6])


def test_json_of_other_forms(tmp_path: Path) -> None:
    objects = '{"id": 1}\n{"id": 2}\n'
    for text in (objects, objects.replace(" 1", "\n1"), "\n" + objects.replace("\n", "")):
        (tmp_path / "t.json").write_text(text)
        assert values(tmp_path / "t.json") == [{"id": "1"}, {"id": "2"}]
    (tmp_path / "t.json").write_text('[{"id": 1}, [2], 3, {"id": "\\u0000"}]')
    assert values(tmp_path / "t.json")[0] == {"id": "1"}
    found = [record.problem for record in read_table(tmp_path / "t.json") if record.problem]
    assert found == ["line 1 is no JSON object", "line 1 is no JSON object", "line 1 holds a NUL byte"]


LONG = "x" * 1000
ROWS = [{"id": str(n), "text": f"[{n}], {{é}}\n" * 3000} for n in range(9)]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    "beside", [{}, {"version": "1", "info": {"tags": [{"a": 1}]}, "names": ["x", "y"], "none": [], "deep": [[{}]]}]
)
def test_rows_within_an_object(tmp_path: Path, indent: int | None, beside: dict[str, Any]) -> None:
    items = [*beside.items(), ("data", ROWS)]
    for document in (dict(items), dict(reversed(items))):
        (tmp_path / "t.json").write_text(json.dumps(document, indent=indent, ensure_ascii=False))
        records = list(read_table(tmp_path / "t.json", required=["id"]))
        assert [record.values for record in records] == ROWS
    assert indent is None or [record.line for record in records][:2] == [3, 7]
    scanned = texts(tmp_path, "t.json")
    assert scanned.rows["text"].to_pylist() == [row["text"] for row in ROWS]


def test_which_of_several_lists_holds_the_rows_is_said(tmp_path: Path) -> None:
    """As in COCO's files."""
    coco = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"key": 1, "text": "a"}, 2], "categories": []}
    (tmp_path / "t.json").write_text(json.dumps(coco))
    says = "its lists 'images', 'annotations' all hold objects: say which of them are the rows, as in `rows: %s`"
    with pytest.raises(SourceError, match=says % "images"):
        values(tmp_path / "t.json")
    with pytest.raises(SourceError, match=says % "annotations"):
        values(tmp_path / "t.json", "text")
    found = texts(tmp_path, "t.json", key="key", rows="annotations")
    assert found.rows["text"].to_pylist() == ["a"]
    assert "line 1 is no JSON object" in found.quarantine["message"][0].as_py()
    for rows, says in {
        "notes": "has no key 'notes' (`rows`); it has images, annotations, categories",
        "categories": "no column 'key'",
    }.items():
        with pytest.raises(SourceError, match=re.escape(says)):
            texts(tmp_path, "t.json", key="key", rows=rows)
    (tmp_path / "t.json").write_text('{"version": 1}')
    with pytest.raises(SourceError, match=r"'version' .* is no list of objects"):
        texts(tmp_path, "t.json", rows="version")
    (tmp_path / "t.json").write_text("[1]")
    with pytest.raises(SourceError, match=r"no object with a key 'a' .*: leave `rows` out"):
        texts(tmp_path, "t.json", rows="a")


def test_an_object_with_a_list_may_be_a_row(tmp_path: Path) -> None:
    row = '{"id": "1", "text": "a", "tags": [{"b": 1}]}\n'
    for name, text in {"t.json": row, "u.json": row * 2, "t.jsonl": row, "u.jsonl": row.replace("{", "{\n", 1)}.items():
        (tmp_path / name).write_text(text)
        assert {row["text"] for row in values(tmp_path / name, "id", "text")} == {"a"}, name


@pytest.mark.parametrize("text", ['{"v": 1, "data": [{"id": 1}', '{"data": [{"id": 1}, {"id": 2}]', '{"data"'])
def test_an_object_that_is_cut_off_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(SourceError, match=r"line 1: the (array|object) .* does not end|line 1 is no valid JSON"):
        values(tmp_path / "t.json", "id")


def test_a_long_list_within_an_object_is_read_piece_by_piece(tmp_path: Path) -> None:
    with (tmp_path / "t.json").open("w") as file:
        file.write('{"skipped": [0')
        file.writelines(f',{{"a": "{LONG}"}}' for _ in range(20_000))
        file.write('], "data": [{"id": 0}')
        file.writelines(f',{{"id": {n}, "text": "{LONG}"}}' for n in range(20_000))
        file.write("]}")
    tracemalloc.start()
    assert sum(1 for _ in read_table(tmp_path / "t.json", required=["id"])) == 20_001
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 2**20  # of 40 MB


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[{"id": 1}, {"id": 2}', "line 1: the array that the file holds does not end"),
        ('[\n{"id": 1},\n{"id" 2}]', "line 3 is no valid JSON"),
        ("[" * 9999, "nested too deeply"),
        ('[{"id": %s}]' % ("9" * 5000), "a number that is too long"),
        ('[{"key": 1}]', "no column 'id'; it has key"),
    ],
)
def test_a_damaged_array_is_an_error(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(SourceError, match=says):
        values(tmp_path / "t.json", "id")


# Workbooks


def test_a_workbook_is_read_with_its_types(tmp_path: Path) -> None:
    import openpyxl

    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    sheet.append([])
    sheet.append([" id ", "text", "when", "truth", None])
    sheet.append([1.0, "a, b", datetime.datetime(2024, 1, 31), True])
    sheet.append([2, 7, datetime.datetime(2024, 1, 31, 12, 30), None])
    sheet.append([])
    sheet.append([None, "no key", datetime.date(2024, 2, 1), "#N/A"])
    sheet.append([3.5, "c", None, None, None, "beyond"])
    book.create_sheet("other").append(["not read"])
    book.save(tmp_path / "t.xlsx")
    records = list(read_table(tmp_path / "t.xlsx", required=["id", "text"]))
    assert [(r.line, *r.values.values()) for r in records if not r.problem] == [
        (3, "1", "a, b", "2024-01-31", "true"),
        (4, "2", "7", "2024-01-31T12:30:00", None),
        (6, None, "no key", "2024-02-01", None),
    ]
    assert problems(tmp_path / "t.xlsx") == {7: "line 7 has 6 cells, the header has 4"}
    assert texts(tmp_path, "t.xlsx", time="when").rows["text"].to_pylist() == ["a, b", "7", "no key"]
