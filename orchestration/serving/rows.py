"""The body of a request to rows: the forms of MLflow's scoring protocol, as JSON or CSV.

    {"dataframe_records": [{"text": "a"}, ...]}    {"dataframe_split": {"columns": ["text"], "data": [["a"], ...]}}
    {"inputs": {"text": ["a", ...]}}               {"instances": [{"text": "a"}, ...]}

Nothing in a body is trusted.
"""

import csv
import difflib
import io
import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from typing import Any

Record = dict[str, Any]
# Brackets, commas and line ends of a body: each may become an object, and parsing them holds the whole process.
_MARKS = 2_000_000
_NAMES = 100  # of columns that are looked at for one that is misspelt
_ALIKE = 0.8
_SHOWN = 40  # characters of what a client sent that a message repeats


class Refused(Exception):
    """A request that is not answered: HTTP status and what to tell the client."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


def bad(message: str) -> Refused:
    return Refused(HTTPStatus.BAD_REQUEST, message)


def read_rows(body: bytes, content_type: str, columns: Sequence[str], most: int) -> list[Record]:
    """The rows of a body, each with those of `columns` that it has; other columns are left out.

    Args:
        content_type: the header's value; empty means JSON.
        most: rows that a request may have (max_rows).

    Raises:
        Refused: it cannot be understood, or asks for too much.
    """
    kind, *parameters = [part.strip().lower() for part in content_type.split(";")]
    charset = [value.strip('"') for name, _, value in (p.partition("=") for p in parameters) if name == "charset"]
    if kind not in _READERS or charset not in ([], ["utf-8"], ["utf8"]):
        raise Refused(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"the content type is {content_type[:_SHOWN]!r}, expected application/json or text/csv, in UTF-8",
        )
    records = _READERS[kind](body)
    if len(records) > most:
        raise bad(f"{len(records)} rows are over the limit of {most} (max_rows): send fewer")
    for number, record in enumerate(records):
        if not isinstance(record, dict):
            raise bad(f"row {number} is {_named(record)}, expected an object with {', '.join(columns)}")
    if slip := near_miss(
        list(itertools.islice(dict.fromkeys(itertools.chain.from_iterable(records)), _NAMES)), columns
    ):
        raise bad(slip)
    if records and not any(column in record for column in columns for record in records):
        raise bad(f"no column is one of {', '.join(columns)}: give at least one")
    rows = [{column: record[column] for column in columns if column in record} for record in records]
    for number, row in enumerate(rows):
        for column, value in row.items():
            if isinstance(value, str) and "\0" in value:
                raise bad(f"row {number}, column {column}: has a NUL character, which no text or base64 has")
    return rows


def near_miss(names: Iterable[str], columns: Sequence[str]) -> str | None:
    """That one of `names` is most likely one of the `columns`, which is not among them; None where none looks so."""
    names = list(names)
    for column in columns:
        if column not in names and (close := difflib.get_close_matches(column, names, 1, _ALIKE)):
            return f"the column {close[0][:_SHOWN]!r} is none that is read: did you mean {column!r}?"
    return None


def _named(value: Any) -> str:
    """What a value is, in JSON's words."""
    names = {type(None): "null", bool: "a boolean", str: "a string", list: "an array", dict: "an object"}
    return names.get(type(value), "a number")


def _check_marks(body: bytes, marks: bytes) -> None:
    if sum(body.count(mark) for mark in marks) > _MARKS:
        raise bad(f"the body has over {_MARKS:,} of {marks.decode()!r}: rows of text and media need fewer")


def _read_json(body: bytes) -> list[Any]:
    _check_marks(body, b"[{,")
    try:
        content = json.loads(body, object_pairs_hook=_object, parse_constant=_constant)
    except RecursionError:
        raise bad("the JSON is nested too deeply: rows need three levels") from None
    except ValueError as error:
        digits = "integer string conversion" in str(error)
        raise bad(
            "the JSON has an integer of thousands of digits" if digits else f"the body is not JSON: {error}"
        ) from None
    if not isinstance(content, dict):
        raise bad(f"the JSON is {_named(content)}, expected an object with one of {', '.join(_FORMS)}")
    given = [name for name in content if name != "params"]  # MLflow's clients may send parameters; there are none here
    if len(given) != 1 or given[0] not in _FORMS:
        there = ", ".join(repr(name[:_SHOWN]) for name in given[:5]) or "none"
        raise bad(
            f"the JSON has at its top {there}, expected exactly one of {', '.join(_FORMS)}, as in "
            '{"dataframe_records": [{"text": "..."}]}'
        )
    return _FORMS[given[0]](content[given[0]])


def _object(pairs: list[tuple[str, Any]]) -> Record:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise bad(f"the JSON has an object with the key {twice[:_SHOWN]!r} twice: which one holds?")
    return made


def _constant(name: str) -> Any:
    raise bad(f"the JSON has {name}, which is no value of JSON: use null for what is not there")


def _records(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise bad(f"the rows are {_named(value)}, expected an array of objects")
    return value


def _split(value: Any) -> list[Any]:
    if not isinstance(value, dict) or not {"columns", "data"} <= value.keys() <= {"columns", "data", "index"}:
        raise bad("dataframe_split is not an object with columns and data")
    columns, data = value["columns"], value["data"]
    if not isinstance(columns, list) or not all(isinstance(name, str) for name in columns):
        raise bad("the columns of dataframe_split are not an array of strings")
    if not isinstance(data, list):
        raise bad(f"the data of dataframe_split are {_named(data)}, expected an array of rows")
    return _table(columns, enumerate(data))


def _table(columns: Sequence[str], rows: Iterable[tuple[int, Any]]) -> list[Any]:
    if len(set(columns)) < len(columns):
        raise bad("a column is named twice")
    records = []
    for number, row in rows:
        if not isinstance(row, list) or len(row) != len(columns):
            has = f"{len(row)} values" if isinstance(row, list) else _named(row)
            raise bad(f"row {number} has {has}, expected an array of {len(columns)}, one for each column")
        records.append(dict(zip(columns, row, strict=True)))
    return records


def _inputs(value: Any) -> list[Any]:
    """An array of rows; or an object of columns, each an array, or the value of the only row."""
    if not isinstance(value, dict):
        return _records(value)
    columns = {name: column if isinstance(column, list) else [column] for name, column in value.items()}
    lengths = {len(column) for column in columns.values()}
    if len(lengths) > 1:
        raise bad(f"the columns have {', '.join(map(str, sorted(lengths)))} rows, expected as many in each")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _read_csv(body: bytes) -> list[Any]:
    """Rows below a line of names; an empty field is not there."""
    _check_marks(body, b",\n\r")
    csv.field_size_limit(2**31)  # media as base64 are long, and the body is bounded
    try:
        lines = list(csv.reader(io.StringIO(body.decode("utf-8-sig"), newline=""), strict=True))
    except (ValueError, csv.Error) as error:
        raise bad(f"the body is not CSV: {error}") from None
    lines = [line for line in lines if line]
    if not lines:
        raise bad("the CSV is empty, expected a line with the names of the columns")
    return _table(lines[0], enumerate([field or None for field in line] for line in lines[1:]))


_FORMS: dict[str, Callable[[Any], list[Any]]] = {
    "dataframe_records": _records,
    "dataframe_split": _split,
    "inputs": _inputs,
    "instances": _inputs,
}
_READERS = {"": _read_json, "application/json": _read_json, "text/csv": _read_csv}
