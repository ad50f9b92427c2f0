"""Tables that people bring: CSV, JSON Lines and Parquet, read row by row in bounded memory, each with its line."""

import csv
import json
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from io import TextIOWrapper
from json.encoder import encode_basestring as quote
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from assets.names import normalize
from assets.sources.base import SourceError
from assets.storage import Location, locate

_CELL_BYTES = 64 * 2**20  # a longer cell is a quote that was never closed
_PARQUET_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a table as strings; null where there is nothing. `problem` says why the row cannot be used."""

    line: int  # where the row starts, from 1 (the header of a CSV is line 1); of a Parquet file, the number of the row
    values: dict[str, str | None]
    problem: str | None = None

    def attributes(self, *left_out: str) -> str:
        """The other columns, where they hold something, as a JSON object of names (`assets.names`)."""
        kept = sorted((name, value) for name, value in self.values.items() if value is not None)
        return "{" + ", ".join(f"{quote(n)}: {quote(normalize(value))}" for n, value in kept if n not in left_out) + "}"

    def time(self, column: str | None) -> tuple[datetime | None, str | None]:
        """What the column says (`parse_time`), or why the row cannot be used."""
        value = self.values.get(column) if column is not None else None
        if self.problem is not None or not value:
            return None, self.problem
        try:
            return parse_time(value), None
        except ValueError as error:
            return None, f"line {self.line}, column {column!r}: {error}"


def read_table(name: Path | str, encoding: str = "utf-8", required: Collection[str] = ()) -> Iterator[Record]:
    """The rows of a CSV or TSV (with header), JSON Lines or Parquet file, by its suffix.

    Numbers and times become text, lists and structs JSON; binary columns of Parquet files are left out. A row that
    cannot be used (wrong number of cells, broken JSON, NUL byte) is given with its `problem`.

    Args:
        name: path, or URL that fsspec knows.

    Raises:
        SourceError: the file is missing, damaged, in another encoding, or lacks one of the `required` columns.
    """
    readers = {".csv": _csv, ".tsv": _csv, ".jsonl": _jsonl, ".ndjson": _jsonl, ".parquet": _parquet}
    path = locate(name)
    reader = readers.get(path.suffix)
    if reader is None:
        raise SourceError(f"{path}: a table ends in one of {', '.join(readers)}")
    try:
        yield from reader(path, encoding, required)
    except FileNotFoundError:
        raise SourceError(f"{path}: no such table; correct the path in the project file") from None
    except UnicodeError as error:
        where = _undecodable_line(path, encoding)
        raise SourceError(f"{path}{where} is not {encoding} ({error}); set `encoding` to the table's own") from None
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"{path}: cannot be read: {error}") from None


def _check_columns(path: Location, columns: Collection[str], required: Collection[str]) -> None:
    repeated = [name for name, count in Counter(columns).items() if count > 1 and name]
    if repeated:
        raise SourceError(f"{path}: column {repeated[0]!r} occurs twice in the header; rename one of them")
    if missing := [name for name in required if name not in columns]:
        raise SourceError(f"{path}: no column {missing[0]!r}; it has {', '.join(columns) or 'none'}")


def _open(path: Location, encoding: str) -> TextIO:
    is_utf8 = encoding.lower().replace("_", "-") in ("utf-8", "utf8")
    # Excel writes a byte order mark
    return TextIOWrapper(path.open(), encoding="utf-8-sig" if is_utf8 else encoding, newline="")


def _csv(path: Location, encoding: str, required: Collection[str]) -> Iterator[Record]:
    csv.field_size_limit(_CELL_BYTES)  # the library's own limit of 128 kB is less than a long document
    with _open(path, encoding) as file:
        head = file.readline()
        file.seek(0)
        delimiter = "," if "," in head else max(";\t|", key=head.count) if any(c in head for c in ";\t|") else ","
        rows = csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else delimiter, strict=True)
        header: list[str] | None = None
        while True:
            start, problem, row = rows.line_num + 1, None, []
            try:
                row = next(rows)
            except StopIteration:
                break
            except csv.Error as error:
                if "unexpected end of data" in str(error) or "field larger" in str(error) or header is None:
                    raise SourceError(f"{path} line {start}: a quote opened in this row is never closed") from None
                problem = f"line {start} is no valid CSV: {error}"
            if header is None:
                header = row
                _check_columns(path, header, required)
                continue
            if not row and problem is None:
                continue
            if problem is None and len(row) != len(header):
                problem = f"line {start} has {len(row)} cells, the header has {len(header)}"
            if problem is None and "\0" in "".join(row):
                problem = f"line {start} holds a NUL byte"
            cells = [] if problem else zip(header, row, strict=True)
            yield Record(start, {name: cell for name, cell in cells if name}, problem)
        if header is None:
            raise SourceError(f"{path}: the table is empty; it has not even a header")


def _jsonl(path: Location, encoding: str, required: Collection[str]) -> Iterator[Record]:
    columns: dict[str, None] = {}
    with _open(path, encoding) as file:
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                yield Record(line, {}, f"line {line} is no valid JSON: {error.msg} (character {error.pos + 1})")
                continue
            except RecursionError:
                yield Record(line, {}, f"line {line} is nested too deeply")
                continue
            except ValueError as error:  # an integer of thousands of digits
                yield Record(line, {}, f"line {line} holds a number that is too long: {error}")
                continue
            if not isinstance(row, dict):
                yield Record(line, {}, f"line {line} is no JSON object")
                continue
            values = {name: _as_text(value) for name, value in row.items()}
            columns.update(dict.fromkeys(values))
            # Escapes can spell what UTF-8 and SQL strings cannot hold.
            if "\\u" in text and (problem := _unstorable(values)):
                yield Record(line, {}, f"line {line} holds {problem}")
            else:
                yield Record(line, values)
    _check_columns(path, list(columns), required)


def _parquet(path: Location, encoding: str, required: Collection[str]) -> Iterator[Record]:
    with path.open() as raw, pq.ParquetFile(raw) as file:
        fields = [f for f in file.schema_arrow if f.name in required or not _holds_binary(f.type)]
        _check_columns(path, [f.name for f in fields], required)
        row = 0
        for batch in file.iter_batches(_PARQUET_ROWS, columns=[f.name for f in fields]):
            columns = {name: _strings(batch[name]) for name in batch.schema.names}
            for cells in zip(*columns.values(), strict=True):
                row += 1
                values = dict(zip(columns, cells, strict=True))
                problem = _unstorable(values)
                yield Record(row, {} if problem else values, f"row {row} holds {problem}" if problem else None)


def _holds_binary(kind: pa.DataType) -> bool:
    return "binary" in str(kind)


def _strings(column: pa.Array) -> list[str | None]:
    if pa.types.is_nested(column.type):
        return [_as_text(value) for value in column.to_pylist()]
    return column.cast(pa.string()).to_pylist()


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _unstorable(values: dict[str, str | None]) -> str | None:
    text = "".join([*values, *filter(None, values.values())])
    if "\0" in text:
        return "a NUL byte"
    return "half of a surrogate pair" if any("\ud800" <= character <= "\udfff" for character in text) else None


def _undecodable_line(path: Location, encoding: str) -> str:
    """`` line N`` of the first line that is not in the encoding; nothing where lines are not bytes up to LF."""
    if encoding.lower().startswith(("utf-16", "utf_16", "utf-32", "utf_32")):
        return ""
    with path.open() as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode(encoding)
            except UnicodeError:
                return f" line {number}"
    return ""


def parse_time(value: str) -> datetime:
    """ISO 8601 (without offset: UTC), or the epoch in s, ms, us or ns, told apart by size; in UTC.

    Raises:
        ValueError: neither of them.
    """
    try:
        number = None if len(value) == 8 and value.isdigit() else Decimal(value)  # 20240131 is a date
    except InvalidOperation:
        number = None
    try:
        if number is None:
            time = datetime.fromisoformat(value.strip())
            return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
        steps = next(n for n, limit in enumerate((1e11, 1e14, 1e17, 1e20)) if abs(number) < limit)
        return _EPOCH + _MICROSECOND * int(number * 10**6 / 10 ** (3 * steps))
    except (ValueError, OverflowError, StopIteration, InvalidOperation):
        raise ValueError(f"{value!r} is no time: expected ISO 8601 or seconds since 1970") from None


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = datetime(1970, 1, 1, 0, 0, 0, 1) - datetime(1970, 1, 1)
