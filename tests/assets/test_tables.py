"""Tables as people write them: every row comes as its own, or is refused and counted; never a row within another."""

import csv
import gzip
import io
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assets.formats.base import Record
from assets.scan import scan
from assets.settings import AlignSettings
from assets.source_settings import SourceSettings
from assets.sources.base import SourceError
from assets.table_settings import TableSettings
from assets.tables import read_table
from orchestration.inspection import check
from orchestration.project import load

REVIEWS = [[str(1001 + n), f"plain words {n}", ["cat", "dog", "bird"][n % 3]] for n in range(12)]


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def reviews(delimiter: str = ",", changes: dict[int, str] | None = None) -> str:
    """A table of REVIEWS, in which some texts are others, as they stand in the file."""
    rows = [[key, (changes or {}).get(n, text), label] for n, (key, text, label) in enumerate(REVIEWS)]
    return "".join(delimiter.join(row) + "\n" for row in [["article", "review", "category"], *rows])


def read(path: Path, *required: str, **settings: Any) -> list[Record]:
    more = {name: settings.pop(name) for name in ("columns", "text") if name in settings}
    return list(read_table(path, TableSettings(**settings), required, **more))


def rows(records: list[Record]) -> list[tuple[str | None, ...]]:
    return [tuple(record.values.values()) for record in records if record.problem is None]


def problems(records: list[Record]) -> dict[int, str]:
    return {record.line: record.problem for record in records if record.problem is not None}


# Quotes


@pytest.mark.parametrize(("name", "delimiter"), [("t.tsv", "\t"), ("t.csv", ","), ("t.csv", ";"), ("t.txt", "\t")])
@pytest.mark.parametrize(
    "changes",
    [
        {3: '"Where to', 8: 'he said so"'},  # they close each other: five rows between
        {3: '"Where to', 9: '"Where to'},
        {3: '"Where to'},
        {11: '"Where to'},
        {3: 'so"', 4: '"Where to', 5: '5" wide', 8: 'a "word" in it'},
    ],
)
def test_quotes_that_are_letters_take_no_row_into_another(tmp_path: Path, name: str, delimiter: str, changes) -> None:
    read_rows = rows(read(write(tmp_path / name, reviews(delimiter, changes))))
    assert read_rows == [(key, changes.get(n, text), label) for n, (key, text, label) in enumerate(REVIEWS)]


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
@pytest.mark.parametrize("changes", [{3: '"Where to', 8: 'he said so"'}, {3: '"Where to'}, {5: '"a" b'}])
def test_a_stray_quote_among_quoted_cells_refuses_rows_one_by_one(tmp_path: Path, name: str, changes) -> None:
    quoted = {1: '"two, of ""them"""', 10: '"two\nlines, with more\nof it"'}
    delimiter = "\t" if name == "t.tsv" else ","
    text = reviews(delimiter, {**quoted, **changes})
    if name == "t.tsv":  # whole columns say that quotes are no letters
        text = "\n".join(f'"{line[:4]}"{line[4:]}' if line[:4].isdigit() else line for line in text.splitlines()) + "\n"
    records = read(write(tmp_path / name, text))
    taken, refused = rows(records), problems(records)
    assert len(taken) + len(refused) == 12 and refused
    expected = {key: label for key, _, label in REVIEWS}
    assert all(expected[key] == label for key, _, label in taken)
    texts = {key: text for key, text, _ in taken}
    assert texts["1002"] == 'two, of "them"' and texts["1011"] == "two\nlines, with more\nof it"
    assert all(f"line {line}" in problem for line, problem in refused.items())


def test_quoted_texts_with_line_breaks_and_delimiters_are_read(tmp_path: Path) -> None:
    changes = {
        1: '"I liked it, really\nbut not, all of it"',
        2: '"Pros:\n2, light\n\nCons:\nnone, at all"',
        4: '"He said ""no"", and left\r\nthe room, at once"',
        7: '"ends with a line break\n"',
        8: '""',
    }
    plain = {n: text.strip('"').replace('""', '"') for n, text in changes.items()}
    records = read(write(tmp_path / "t.csv", reviews(changes=changes)))
    assert rows(records) == [(key, plain.get(n, text), label) for n, (key, text, label) in enumerate(REVIEWS)]
    assert [record.line for record in records][:4] == [2, 3, 5, 10]


def test_a_line_break_that_is_not_quoted_is_seen(tmp_path: Path) -> None:
    """In the middle of a row, and at its end, where the first part is a whole row."""
    text = reviews("\t", {3: "cut\nin two"}).replace("1007\tplain words 6\tbird", "1007\tplain words 6\tbird")
    records = read(write(tmp_path / "t.tsv", text))
    assert len(rows(records)) == 11 and problems(records).keys() == {5, 6}
    assert "line 5 seems to go on in line 6: quote cells that hold line breaks" in problems(records)[5]
    last = "".join(f"{key}\t{label}\t{text}\n" for key, text, label in REVIEWS).replace("words 6", "words 6\nand more")
    records = read(write(tmp_path / "u.tsv", "article\tcategory\treview\n" + last))
    assert len(rows(records)) == 11 and problems(records).keys() == {8, 9}


def test_a_tsv_that_is_quoted_throughout_is_read_as_such(tmp_path: Path) -> None:
    cells = [["id", "text"], ["1", 'say "so"\tnow'], ["2", "two\nlines"], ["3", "plain"]]
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
        with (tmp_path / "t.tsv").open("w", newline="") as file:
            csv.writer(file, dialect="excel-tab", quoting=quoting).writerows(cells)
        assert rows(read(tmp_path / "t.tsv")) == [tuple(row) for row in cells[1:]]


def test_settings_decide_over_what_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", 'id;text\n1;\'a;b\'\n2;"c"\n3;"d\n4;e"\n')
    assert rows(read(path, quote="'")) == [("1", "a;b"), ("2", '"c"'), ("3", '"d'), ("4", 'e"')]
    assert rows(read(path, quote='"')) == [("1", "'a"), ("2", "c"), ("3", "d\n4;e")][1:]  # row 1 has a cell too many
    assert rows(read(path, quote="none"))[0] == ("2", '"c"')
    assert rows(read(path, delimiter="|", columns=("line",)))[1] == ("1;'a;b'",)
    with pytest.raises(ValueError, match="quote is 'xx', expected one character, or none"):
        TableSettings(quote="xx")
    with pytest.raises(ValueError, match="delimiter is ',,', expected one character"):
        TableSettings(delimiter=",,")


@given(
    st.lists(st.lists(st.text('ab"\n\r,;\t é', max_size=6), min_size=2, max_size=2), max_size=6),
    st.sampled_from(["excel", "excel-tab", "unix"]),
)
def test_what_the_csv_module_writes_comes_back(tmp_path_factory, cells: list[list[str]], dialect: str) -> None:
    """With a key that tells rows from lines of text."""
    table = [[str(n), "a", "b"] for n in range(100)] + [[str(n), *row] for n, row in enumerate(cells)]
    text = io.StringIO()
    csv.writer(text, dialect).writerows([["key", "a", "b"], *table])
    suffix = "tsv" if dialect == "excel-tab" else "csv"
    path = tmp_path_factory.mktemp("t") / f"t.{suffix}"
    path.write_bytes(text.getvalue().encode())
    records = read(path)
    if suffix == "csv":
        assert not problems(records) and rows(records) == [tuple(row) for row in table]
    else:  # where only some cells are quoted, and needlessly, a quote is a letter
        assert len(records) >= len(table)


@given(st.lists(st.text('ab"\n,', max_size=9), min_size=1, max_size=9))
def test_no_line_is_uncounted(tmp_path_factory, texts: list[str]) -> None:
    """Whatever stands in a file, each of its lines is a row, part of a quoted cell of one, or refused."""
    path = tmp_path_factory.mktemp("t") / "t.csv"
    lines = [f"{1000 + n},{text},x" for n, text in enumerate(texts)]
    path.write_bytes("\n".join(["key,text,label", *lines, ""]).encode())
    covered = 0
    for record in read(path):
        whole = re.search(r"line (\d+) seems to go on in line (\d+)", record.problem or "")  # refused as one
        breaks = sum(value.count("\n") for value in record.values.values() if value)
        covered += int(whole[2]) - int(whole[1]) if whole else 1 + breaks
    written = "\n".join(lines).split("\n")
    blank = sum(not line for line in written)
    assert len(written) - blank <= covered <= len(written)


# Delimiters, headers, cells


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("id;price;note\n1;3,5;a, b\n2;4,5;c\n", ("1", "3,5", "a, b")),
        ("id;name, first;price\n1;Bo;3,5\n2;Al;4,5\n", ("1", "Bo", "3,5")),
        ("id|text|x\n1|a, b; c|y\n2|d|z\n", ("1", "a, b; c", "y")),
        ("id\ttext\n1\ta, b\n2\tc, d\n", ("1", "a, b")),
        ("\n\nid,text\n1,x\n2,y\n", ("1", "x")),
    ],
)
def test_the_delimiter_is_found(tmp_path: Path, text: str, expected: tuple[str, ...]) -> None:
    assert rows(read(write(tmp_path / "t.csv", text)))[0] == expected


def test_columns_that_are_asked_for_tell_the_delimiter(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "id,a;text,b\n1,1;x,y\n2,2;z,w\n")
    assert [*read(path, "text,b")[0].values] == ["id,a", "text,b"]


def test_a_table_without_header(tmp_path: Path) -> None:
    """As LJSpeech has it: quotes are letters there."""
    path = write(tmp_path / "metadata.csv", 'LJ-1|He said "so|so\nLJ-2|"Well" he|well\n')
    columns = ("file", "raw", "text")
    assert rows(read(path, "text", columns=columns)) == [("LJ-1", 'He said "so', "so"), ("LJ-2", '"Well" he', "well")]
    with pytest.raises(SourceError, match=r"no column 'text'; it has LJ-1.*if it has no header, name its `columns`"):
        read(path, "text")
    named = write(tmp_path / "named.csv", "file|raw|text\n" + path.read_text())
    assert len(read(named, columns=columns)) == 2  # it has the header after all
    records = read(path, columns=("file", "raw"))
    assert problems(records)[1] == "line 1 has 3 cells, the header has 2"


def test_lines_of_words(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b'u1 s1  SAID  "SO \r\n\nu2\ts2 ONCE\nu3 s3\nu4 s4 \0\n')
    settings = TableSettings(delimiter="whitespace")
    rows = list(read_table(tmp_path / "text", settings, columns=("id", "speaker", "words")))
    assert [(row.line, *row.values.values()) for row in rows] == [
        (1, "u1", "s1", 'SAID  "SO'),
        (3, "u2", "s2", "ONCE"),
        (4, "u3", "s3", ""),
        (5,),
    ]
    assert rows[-1].problem == "line 5 holds a NUL byte"
    with pytest.raises(SourceError, match="name the `columns` of the table"):
        list(read_table(tmp_path / "text", settings))


def test_a_packed_table_that_is_damaged_and_in_another_encoding(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(b"id,text\n" + "1,grün\n".encode("latin-1") * 9))
    content[-5] ^= 1  # its checksum
    (tmp_path / "t.csv.gz").write_bytes(content)
    with pytest.raises(SourceError, match=r"t\.csv\.gz"):
        list(read_table(tmp_path / "t.csv.gz"))


def test_cells_left_out_at_the_end_are_empty_and_more_than_the_header_has_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "id,text,note\n1,a,x\n2,b\n3,c,y,z\n4\n   \n,,\n5,d,w\n")
    records = read(path)
    assert rows(records) == [("1", "a", "x"), ("2", "b", ""), ("4", "", ""), ("", "", ""), ("5", "d", "w")]
    assert problems(records) == {4: "line 4 has 4 cells, the header has 3"}


def test_names_of_columns_are_cleaned(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "\ufeff id ,\u00a0text\u00a0\n1,a\n")
    assert read(path, "id", "text")[0].values == {"id": "1", "text": "a"}
    path = write(tmp_path / "t.jsonl", '{" id": 1, "text ": "a"}\n')
    assert read(path, "id", "text")[0].values == {"id": "1", "text": "a"}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
def test_a_byte_order_mark_tells_the_encoding(tmp_path: Path, encoding: str) -> None:
    mark = "\ufeff" if encoding.endswith(("le", "be")) else ""
    path = write(tmp_path / "t.csv", mark + 'id,text\n1,grün\n2,"a, b"\n', encoding)
    assert rows(read(path, "id")) == [("1", "grün"), ("2", "a, b")]


def test_what_counts_as_missing_is_said_and_nothing_else_is(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "id,a,b\nNA,n/a,nan\n-999, NA ,x\n")
    assert rows(read(path)) == [("NA", "n/a", "nan"), ("-999", " NA ", "x")]
    assert rows(read(path, missing=("NA", "-999"))) == [(None, "n/a", "nan"), (None, None, "x")]
    settings = SourceSettings.of(name="s", modality="text", table="t.csv", key="id", column="b", missing=[-999, "x"])
    assert settings.options.missing == ("-999", "x")
    assert SourceSettings.of(
        name="s", modality="text", table="t", key="i", column="b", missing="NA"
    ).options.missing == ("NA",)


# Packed, and in several files


def test_packed_tables_are_read_in_place(tmp_path: Path) -> None:
    for name, text in {
        "a.csv.gz": "id,text\n1,x\n",
        "a.tsv.gz": "id\ttext\n1\tx\n",
        "a.jsonl.gz": '{"id":1,"text":"x"}',
    }.items():
        (tmp_path / name).write_bytes(gzip.compress(text.encode()))
        assert rows(read(tmp_path / name, "id")) == [("1", "x")]
    for damage in (b"no gzip", gzip.compress(b"id,text\n1,x\n" * 9999)[:-20]):
        (tmp_path / "a.csv.gz").write_bytes(damage)
        with pytest.raises(SourceError, match=r"a\.csv\.gz: cannot be read"):
            read(tmp_path / "a.csv.gz")


def test_a_glob_is_one_table_whose_rows_name_their_file(tmp_path: Path) -> None:
    for n, text in enumerate(["id,text\n1,a\n2,b\n", "text,id\nc,3\n,4,5\n"]):
        write(tmp_path / f"part-{n}.csv", text)
    fields: dict[str, Any] = {"modality": "text", "table": "part-*.csv", "key": "id", "column": "text"}
    settings = SourceSettings.of(name="s", **fields)
    listed = scan(settings, tmp_path)
    assert dict(zip(listed.rows["key"].to_pylist(), listed.rows["text"].to_pylist(), strict=True)) == {
        "1": "a",
        "2": "b",
        "3": "c",
    }
    assert sorted(Path(uri).name for uri in listed.rows["uri"].to_pylist()) == [
        "part-0.csv",
        "part-0.csv",
        "part-1.csv",
    ]
    (refused,) = listed.quarantine.to_pylist()
    assert refused["message"] == f"{tmp_path}/part-1.csv: line 3 has 3 cells, the header has 2"
    before = settings.make(tmp_path).signature()
    write(tmp_path / "part-2.csv", "id,text,more\n6,d,e\n")
    assert settings.make(tmp_path).signature() != before
    with pytest.raises(
        SourceError, match=r"part-2.csv: its columns are id, text, more, those of the first file.*id, text:"
    ):
        scan(settings, tmp_path)
    with pytest.raises(SourceError, match=r"none-\*\.csv: no such table"):
        scan(SourceSettings.of(name="s", **fields | {"table": "none-*.csv"}), tmp_path)


def test_a_list_under_align_columns_names_those_of_a_table_without_header() -> None:
    settings = AlignSettings(table="links.csv", columns=("id", "photo"))
    assert settings.header == ("id", "photo") and settings.key_columns == {}
    assert AlignSettings(table="links.csv", columns={"photos": "photo"}).key_columns == {"photos": "photo"}


def test_that_all_rows_are_malformed_is_said_and_not_that_a_column_lacks(tmp_path: Path) -> None:
    header, *lines = reviews().splitlines()
    write(tmp_path / "t.csv", "\n".join([header, *(f"{line}," for line in lines)]))
    (tmp_path / "project.yaml").write_text(
        "name: malformed\nsources:\n  - {name: reviews, modality: text, table: t.csv, column: review, key: article}\n"
        "align: {label: category}\n"
    )
    checked = check(load(tmp_path / "project.yaml"))
    assert checked.refused == {"malformed": 12} and checked.problem is not None
    assert "12 of 12 items are refused (12 malformed), such as" in checked.problem
    assert "t.csv: line 2 has 4 cells, the header has 3" in checked.problem
    assert "no table has a column" not in checked.problem


def test_escapes_that_are_not_ours_refuse_their_row_alone(tmp_path: Path) -> None:
    """Backslashes before quotes, as Spark and MySQL write them."""
    changes = {2: r'"say \"so\", now"', 5: r'"ends with \""', 8: '"quoted, well"', 10: r'"a \", b"'}
    records = read(write(tmp_path / "t.csv", reviews(changes=changes)))
    assert len(records) == 12 and {key for key, *_ in rows(records)} >= {"1001", "1002", "1004", "1005", "1007", "1009"}
    assert {line - 2 for line in problems(records)} <= {2, 5, 10}
    expected = {key: (changes.get(n, text).strip('"'), label) for n, (key, text, label) in enumerate(REVIEWS)}
    assert all(expected[key or ""] == (text, label) for key, text, label in rows(records))


@pytest.mark.parametrize("name", ["t.parquet", "t.jsonl", "t.csv"])
def test_vectors_are_read_where_they_are_asked_for_only(name: str, tmp_path: Path):
    rows = [{"id": n, "face": [[0.5, n], [1.5, n]], "voice": [-2.5e-7, 1.0], "tags": [1, n]} for n in range(2)]
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    elif name.endswith("jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with (tmp_path / name).open("w", newline="") as file:
            cells = [[json.dumps(value) for value in row.values()] for row in rows]
            csv.writer(file).writerows([rows[0].keys(), *cells])
    assert [set(record.values) for record in read_table(tmp_path / name)] == [{"id", "tags"}] * 2
    asked = [record.values for record in read_table(tmp_path / name, required=["face"], optional=["voice", "gone"])]
    assert [json.loads(values["face"]) for values in asked] == [row["face"] for row in rows]
    assert all(json.loads(values["voice"]) == rows[0]["voice"] for values in asked)
