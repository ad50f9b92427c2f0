"""JSON Lines, an object a line; and JSON: an array of objects, or objects one after the other."""

import json
from collections.abc import Iterator
from typing import Any, TextIO

from assets.formats.base import Record, TableFile, unstorable
from assets.formats.values import as_text, no_text, refused
from assets.names import normalize
from assets.sources.base import SourceError

_PIECE = 2**16  # characters read at once
_LARGEST = 2**26  # characters of one value; more is no row
# NaN and Infinity, which JSON has no words for and Python writes, are no value.
_DECODER = json.JSONDecoder(parse_constant=lambda _: None)


def read(table: TableFile) -> Iterator[Record]:
    columns: dict[str, str] = {}  # as written, and cleaned
    with table.open_text() as file:
        start = _start(file)
        file.seek(0)
        is_document = start.startswith("[") or start == "{" or (table.suffix == ".json" and not _is_value(start))
        for line, value, problem in _document(table, file) if is_document else _lines(file):
            if problem is None and not isinstance(value, dict):
                problem = f"line {line} is no JSON object"
            if problem is not None:
                yield table.broken(line, problem)
                continue
            for name in value:
                if name not in columns:
                    columns[name] = normalize(name)
            cells = {columns[name]: cell for name, cell in value.items()}
            if table.text is not None and (found := no_text(cells.get(table.text))):
                yield table.broken(line, refused(f"line {line}", table.text, found))
                continue
            values = {name: as_text(cell) for name, cell in cells.items()}
            # Escapes can spell what UTF-8 and SQL strings cannot hold.
            found = unstorable([*values, *values.values()])
            yield table.broken(line, f"line {line} holds {found}") if found else table.record(line, values)
    table.known.clear()  # an object may leave out any column
    table.check(list(dict.fromkeys(columns.values())))


def _start(file: TextIO) -> str:
    """The first line that is not blank, or the start of a long one."""
    while line := file.readline(_PIECE):
        if line.strip():
            return line.strip()
    return ""


def _is_value(text: str) -> bool:
    try:
        _DECODER.decode(text)
    except (ValueError, RecursionError):
        return False
    return True


def _lines(file: TextIO) -> Iterator[tuple[int, Any, str | None]]:
    """Line, value, and why there is none."""
    for line, text in enumerate(file, 1):
        if text.strip():
            try:
                yield line, _DECODER.decode(text.strip()), None
            except (ValueError, RecursionError) as error:
                yield line, None, f"line {line} {_words(error)}"


def _document(table: TableFile, file: TextIO) -> Iterator[tuple[int, Any, str | None]]:
    """The same of the elements of arrays, and of objects that go over several lines."""
    text, line, depth = "", 1, 0
    while True:
        rest = text.lstrip(" \t\r\n," if depth else " \t\r\n")
        line, text = line + text[: len(text) - len(rest)].count("\n"), rest
        if not text:
            if not (text := file.read(_PIECE)):
                break
        elif text[0] == "[" and depth == 0:
            text, depth = text[1:], 1
        elif text[0] == "]" and depth == 1:
            text, depth = text[1:], 0
        else:
            value, text, length = _value(table, file, text, line)
            yield line, value, None
            line += length
    if depth:
        raise SourceError(f"{table} line {line}: the array that the file holds does not end: it may be cut off")


def _value(table: TableFile, file: TextIO, text: str, line: int) -> tuple[Any, str, int]:
    """The value that the text starts with, the text behind it, and the lines that it goes over."""
    while True:
        try:
            value, end = _DECODER.raw_decode(text)
            if end < len(text) or not (more := file.read(_PIECE)):  # 12 may go on as 123
                return value, text[end:], text[:end].count("\n")
        except (ValueError, RecursionError) as error:
            more = file.read(max(_PIECE, len(text))) if isinstance(error, json.JSONDecodeError) else ""
            if not more or len(text) > _LARGEST:
                raise SourceError(f"{table}: line {line} {_words(error)}; what follows cannot be read") from None
        text += more


def _words(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"is no valid JSON: {error.msg} (character {error.pos + 1})"
    if isinstance(error, RecursionError):
        return "is nested too deeply"
    return f"holds a number that is too long: {error}"  # an integer of thousands of digits
