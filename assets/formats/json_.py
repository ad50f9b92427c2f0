"""JSON Lines, an object a line; and JSON: an array of objects, also as a value of one object, or objects one after the
other."""

import json
from collections.abc import Collection, Iterator
from typing import Any, TextIO

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


def read(table: TableFile) -> Iterator[Record]:
    columns: dict[str, str] = {}  # as written, and cleaned
    for line, value, problem in _items(table):
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


def _items(table: TableFile) -> Iterator[_Item]:
    with table.open_text() as file:
        start = _start(file)
    rows = table.settings.rows
    if rows is None and start.startswith("{") and (table.suffix == ".json" or start == "{"):
        rows = _found_rows(table)
    is_document = start.startswith("[") or start == "{" or (table.suffix == ".json" and not _is_value(start))
    with table.open_text() as file:
        if rows is not None:
            yield from _rows_within(_Reader(table, file), rows)
        else:
            yield from _document(_Reader(table, file)) if is_document else _lines(file)


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


def _found_rows(table: TableFile) -> str | None:
    """The key of the one list of objects within an object that is all the file holds; None where the objects of the
    file are rows themselves, as one is that has the columns required."""
    keys, lists = [], {}  # key -> columns of the first object
    with table.open_text() as file:
        reader = _Reader(table, file)
        reader.next()
        for key in reader.members():
            keys.append(normalize(key))
            if not reader.text.startswith("["):
                reader.value()
                continue
            for number, (_, value, _) in enumerate(reader.elements()):
                if number == 0 and isinstance(value, dict):
                    lists[key] = [normalize(name) for name in value]
        if reader.next() or not lists or (table.required and set(table.required) <= set(keys)):
            return None
    if len(lists) > 1:
        raise reader.error(_several(lists, table.required))
    return next(iter(lists))


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


def _words(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"is no valid JSON: {error.msg} (character {error.pos + 1})"
    if isinstance(error, RecursionError):
        return "is nested too deeply"
    return f"holds a number that is too long: {error}"  # an integer of thousands of digits
