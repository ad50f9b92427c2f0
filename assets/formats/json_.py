"""JSON Lines, an object a line; and JSON: an array of objects, also as a value of one object, or objects one after the
other. An object that holds a transcript gives its words (`assets.formats.transcripts`)."""

import json
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple, TextIO

from assets.formats import transcripts
from assets.formats.base import Record, TableFile, unstorable
from assets.formats.values import as_text, is_vector, no_text, refused
from assets.names import normalize
from assets.sources.base import SourceError

_PIECE = 2**16  # characters read at once
_LARGEST = 2**26  # characters of one value; more is no row
_BLANK = " \t\r\n"
# NaN and Infinity, which JSON has no words for and Python writes, are no value.
_DECODER = json.JSONDecoder(parse_constant=lambda _: None)

_Item = tuple[int, Any, str | None]  # line, value, and why there is none


class _Rows(NamedTuple):
    """Where the rows of an object lie."""

    key: str
    unit: str | None = None  # of a transcript, what a row is
    per_second: int = 1  # of a transcript, what its times are counted in


def read(table: TableFile) -> Iterator[Record]:
    columns: dict[str, str] = {}  # as written, and cleaned
    with table.open_text() as file:
        start = _start(file)
    rows = _rows_of(table, start)
    if rows is not None and rows.unit is not None:
        columns |= {name: name for name in transcripts.COLUMNS}
    for line, value, problem in _items(table, start, rows):
        if problem is None and not isinstance(value, dict):
            problem = f"line {line} is no JSON object"
        if problem is not None:
            yield table.broken(line, problem)
            continue
        for name in value:
            if name not in columns:
                columns[name] = normalize(name)
        cells = {columns[name]: cell for name, cell in value.items()}
        cells = {name: cell for name, cell in cells.items() if table.reads(name) or not is_vector(cell)}
        if table.text is not None and (found := no_text(cells.get(table.text))):
            yield table.broken(line, refused(f"line {line}", table.text, found))
            continue
        values = {name: as_text(cell) for name, cell in cells.items()}
        # Escapes can spell what UTF-8 and SQL strings cannot hold.
        found = unstorable([*values, *values.values()])
        yield table.broken(line, f"line {line} holds {found}") if found else table.record(line, values)
    table.known.clear()  # an object may leave out any column
    table.check(list(dict.fromkeys(columns.values())))


def _items(table: TableFile, start: str, rows: _Rows | None) -> Iterator[_Item]:
    is_document = start.startswith("[") or start == "{" or (table.suffix == ".json" and not _is_value(start))
    with table.open_text() as file:
        if rows is not None and rows.unit is not None:
            yield from _transcribed(table, _Reader(table, file), rows.key, rows.unit, rows.per_second)
        elif rows is not None:
            yield from _rows_within(_Reader(table, file), rows.key)
        else:
            yield from _document(_Reader(table, file)) if is_document else _lines(file)


def _rows_of(table: TableFile, start: str) -> _Rows | None:
    """As the settings say, else as found; None where what lies in the file is rows."""
    rows = table.settings.rows
    is_object = start.startswith("{") and (table.suffix == ".json" or start == "{")
    if is_object and rows in (None, *transcripts.UNITS):
        return _found_rows(table, rows)
    return None if rows is None else _Rows(rows)


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


def _lines(file: TextIO) -> Iterator[_Item]:
    for line, text in enumerate(file, 1):
        if text.strip():
            try:
                yield line, _DECODER.decode(text.strip()), None
            except (ValueError, RecursionError) as error:
                yield line, None, f"line {line} {_words(error)}"


class _Reader:
    """The characters of a document, of which never more than one value and a piece are held."""

    def __init__(self, table: TableFile, file: TextIO) -> None:
        self.table, self.file, self.text, self.line = table, file, "", 1

    def next(self, skipped: str = _BLANK) -> str:
        """The next character that is not skipped; "" at the end."""
        while True:
            rest = self.text.lstrip(skipped)
            self.line, self.text = self.line + self.text[: len(self.text) - len(rest)].count("\n"), rest
            if rest or not (rest := self.file.read(_PIECE)):
                return rest[:1]
            self.text = rest

    def take(self) -> None:
        self.text = self.text[1:]

    def value(self) -> _Item:
        """The value that begins here. Raises SourceError where there is none."""
        line, text = self.line, self.text
        while True:
            try:
                value, end = _DECODER.raw_decode(text)
                if end < len(text) or not (more := self.file.read(_PIECE)):  # 12 may go on as 123
                    self.line, self.text = line + text[:end].count("\n"), text[end:]
                    return line, value, None
            except (ValueError, RecursionError) as error:
                more = self.file.read(max(_PIECE, len(text))) if isinstance(error, json.JSONDecodeError) else ""
                if not more or len(text) > _LARGEST:
                    raise self.error(f"line {line} {_words(error)}; what follows cannot be read") from None
            text += more

    def elements(self) -> Iterator[_Item]:
        """Those of the array that begins here."""
        self.take()
        while (character := self.next(_BLANK + ",")) != "]":
            if not character:
                raise self.error(f"line {self.line}: the array that the file holds does not end: it may be cut off")
            yield self.value()
        self.take()

    def members(self) -> Iterator[str]:
        """The keys of the object that begins here; at each, the caller reads the value."""
        self.take()
        while (character := self.next(_BLANK + ",")) != "}":
            if not character:
                raise self.error(f"line {self.line}: the object that the file holds does not end: it may be cut off")
            line, key, _ = self.value()
            if not isinstance(key, str) or self.next() != ":":
                raise self.error(f"line {line} is no valid JSON: no key and colon; what follows cannot be read")
            self.take()
            self.next()
            yield key
        self.take()

    def error(self, words: str) -> SourceError:
        return SourceError(f"{self.table}: {words}")


def _document(reader: _Reader) -> Iterator[_Item]:
    """The elements of arrays, and objects that may go over several lines."""
    while character := reader.next():
        if character == "[":
            yield from reader.elements()
        else:
            yield reader.value()


def _found_rows(table: TableFile, rows: str | None) -> _Rows | None:
    """The transcript, or the one list of objects, within an object that is all the file holds; None where the objects
    of the file are rows themselves, as one is that has the columns required."""
    keys, lists = [], {}  # key -> columns of the first object
    firsts: dict[str, Any] = {}  # key -> first element of a list, or what else lies there
    with table.open_text() as file:
        reader = _Reader(table, file)
        reader.next()
        for key in reader.members():
            keys.append(normalize(key))
            if not reader.text.startswith("["):
                firsts[key] = reader.value()[1]
                continue
            firsts[key] = None
            for number, (_, value, _) in enumerate(reader.elements()):
                if number == 0 and isinstance(value, dict):
                    lists[key] = [normalize(name) for name in value]
                firsts[key] = value if number == 0 else firsts[key]
        is_row = reader.next() or (table.required and set(table.required) <= set(keys))
    unit = rows or transcripts.WORDS
    if not is_row and not _have(lists, table.required) and (found := transcripts.find(firsts, unit)):
        return _Rows(found, unit, transcripts.per_second(firsts))
    if rows is not None:
        return _Rows(rows)
    if is_row or not lists:
        return None
    if len(lists) > 1:
        raise reader.error(_several(lists, table.required))
    return _Rows(next(iter(lists)))


def _have(lists: dict[str, list[str]], required: Collection[str]) -> bool:
    """Whether a list has columns as it writes them that are asked for, and that no transcript has."""
    return not set(required) <= set(transcripts.COLUMNS) and any(set(required) <= set(c) for c in lists.values())


def _several(lists: dict[str, list[str]], required: Collection[str]) -> str:
    fitting = next((key for key, columns in lists.items() if set(required) <= set(columns)), next(iter(lists)))
    named = ", ".join(map(repr, lists))
    return f"its lists {named} all hold objects: say which of them are the rows, as in `rows: {fitting}`"


def _rows_within(reader: _Reader, rows: str) -> Iterator[_Item]:
    """The objects of the list at the key `rows` of an object; what stands beside it is passed over."""
    if reader.next() != "{":
        raise reader.error(f"holds no object with a key {rows!r} (`rows`): leave `rows` out")
    seen = []
    for key in reader.members():
        seen.append(key)
        if key != rows and reader.text.startswith("["):
            for _ in reader.elements():
                pass
        elif key != rows:
            reader.value()
        elif reader.text.startswith("["):
            yield from reader.elements()
        else:
            raise reader.error(f"line {reader.line}: {rows!r} (`rows`) is no list of objects; name another key")
    if rows not in seen:
        raise reader.error(f"its object has no key {rows!r} (`rows`); it has {', '.join(k[:40] for k in seen[:40])}")


def _transcribed(table: TableFile, reader: _Reader, key: str, unit: str, per_second: int) -> Iterator[_Item]:
    """The words or segments at a key of an object, each at the line of the element in which it lies."""
    number = 0
    reader.next()
    for found in reader.members():
        if not reader.text.startswith("["):
            values: Iterator[_Item] = iter([reader.value()])
        else:
            values = reader.elements()
        for line, value, _ in values:
            for cells, problem in transcripts.stretches(value, unit, None, per_second) if found == key else ():
                number += 1
                own = {"file": table.key, "number": number}
                yield line, {**cells, **own}, f"line {line}: {problem}" if problem else None


def _words(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"is no valid JSON: {error.msg} (character {error.pos + 1})"
    if isinstance(error, RecursionError):
        return "is nested too deeply"
    return f"holds a number that is too long: {error}"  # an integer of thousands of digits
