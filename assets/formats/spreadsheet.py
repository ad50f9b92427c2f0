"""Excel workbooks: the first sheet, with typed cells."""

from collections.abc import Iterator
from datetime import datetime, time
from typing import Any

from assets.formats.base import Record, TableFile, unstorable
from assets.formats.values import as_text
from assets.sources.base import SourceError


def read(table: TableFile) -> Iterator[Record]:
    names = table.check(table.columns) if table.columns else None
    for line, cells in _rows(table):
        values = [_cell(cell) for cell in cells]
        while values and values[-1] is None:
            values.pop()
        if not values:
            continue
        if names is None:
            names = table.check([value or "" for value in values])
            continue
        if table.columns and tuple(values) == table.columns:
            continue  # it has a header after all
        if len(values) > len(names):
            yield table.broken(line, f"line {line} has {len(values)} cells, the header has {len(names)}")
            continue
        values += [None] * (len(names) - len(values))
        if found := unstorable(values):
            yield table.broken(line, f"line {line} holds {found}")
        else:
            yield table.record(line, {n: v for n, v in zip(names, values, strict=True) if n})
    if names is None:
        raise SourceError(f"{table}: the first sheet is empty; it has not even a header")


def _rows(table: TableFile) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Number and values of the rows of the first sheet."""
    import openpyxl

    with table.open() as file:
        try:
            book = openpyxl.load_workbook(file, read_only=True, data_only=True)
            sheet = book.worksheets[0]
            sheet.reset_dimensions()  # some programs write them wrong
            yield from enumerate(sheet.iter_rows(values_only=True), 1)
        except OSError:
            raise
        except Exception as error:  # the library lets pass what its parsers of zip and XML raise
            raise SourceError(f"{table}: cannot be read as a workbook: {error or type(error).__name__}") from None


def _cell(value: Any) -> str | None:
    """As Excel shows it; the error of a formula, such as #N/A, is no value."""
    if isinstance(value, str):
        return None if value.startswith("#") and value in _ERRORS else value
    if isinstance(value, datetime):
        return value.date().isoformat() if value.time() == time() else value.isoformat()
    return value.isoformat() if isinstance(value, time) else as_text(value)


_ERRORS = ("#NULL!", "#DIV/0!", "#VALUE!", "#REF!", "#NAME?", "#NUM!", "#N/A")
