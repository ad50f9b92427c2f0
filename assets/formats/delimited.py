"""CSV and TSV (RFC 4180, and what people make of it): a row a line, unless a quoted cell holds line breaks.

A quote that stands alone would take the following rows into its cell. So where quotes are found, the file is looked
through once to tell whether they are letters; and where they are not, rows that a cell seems to have swallowed are
refused one by one.
"""

import csv
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TextIO

from assets.formats.base import Record, TableFile
from assets.formats.dialect import HEAD, Looks, find_delimiter, lines_of, split
from assets.sources.base import SourceError
from assets.table_settings import NO_QUOTE

_CELL_BYTES = 64 * 2**20  # a longer cell is a quote that was never closed


class _Dialect(NamedTuple):
    delimiter: str
    looks: Looks
    quote: str | None = '"'  # null: quotes are letters
    is_trusted: bool = False  # the settings say so: what is quoted is one cell, whatever it looks like


class _Row(NamedTuple):
    line: int  # where it starts
    raw: list[str]  # its lines
    cells: list[str]
    problem: str | None = None
    is_doubtful: bool = False  # it may be part of a cell that was opened before


def read(table: TableFile) -> Iterator[Record]:
    csv.field_size_limit(_CELL_BYTES)  # the library's own limit of 128 kB is less than a long document
    dialect = _dialect(table)
    names = table.check(table.columns) if table.columns else None
    held: tuple[_Row, Record] | None = None  # until the next line shows that it does not belong to this row
    with table.open_text() as file:
        for row in _rows(file, dialect):
            if names is None:
                if row.problem:
                    raise SourceError(f"{table}: the header cannot be read: {row.problem}")
                names = table.check(row.cells)
                continue
            if table.columns and tuple(row.cells) == table.columns:
                continue  # it has a header after all
            short = len(names) - len(row.cells)
            if row.problem is None and short > 0 and not "".join(row.raw).strip():
                continue  # a blank line
            problem = row.problem or _misfit(row, dialect, names)
            if problem is None and short > 0 and not dialect.looks.fit(row.cells):
                problem = f"line {row.line} has {len(row.cells)} of {len(names)} cells and looks like no row"
                if held is not None and held[1].problem is None and dialect.looks.may_go_on(held[0].cells):
                    seems = f"line {held[0].line} seems to go on in line {row.line}: quote cells that hold line breaks"
                    held = held[0], table.broken(held[0].line, seems)
            if held is not None:
                yield held[1]
            cells = row.cells + [""] * short  # at the end of a row Excel leaves them out
            values: dict[str, str | None] = {} if problem else {n: c for n, c in zip(names, cells, strict=True) if n}
            held = row, table.broken(row.line, problem) if problem else table.record(row.line, values)
    if held is not None:
        yield held[1]
    if names is None:
        raise SourceError(f"{table}: the table is empty; it has not even a header")


def _misfit(row: _Row, dialect: _Dialect, names: list[str]) -> str | None:
    """Why the cells cannot be those of a row."""
    if len(row.cells) > len(names):
        found = f"line {row.line} has {len(row.cells)} cells, the header has {len(names)}"
        return f"{found}; quote cells that hold {dialect.delimiter!r}" if dialect.quote else found
    if "\0" in "".join(row.cells):
        return f"line {row.line} holds a NUL byte"
    return None


class _Lines:
    """The lines of a file, of which some can be read again; keeps those of the present row."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._again = file, deque[str]()
        self.row: list[str] = []
        self.number = 0  # of the last line read

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._file)
        self.row.append(line)
        self.number += 1
        return line

    def keep_first(self) -> None:
        """The other lines of the row are read again."""
        self._again.extendleft(reversed(self.row[1:]))
        self.number -= len(self.row) - 1
        self.row = self.row[:1]


def _rows(file: TextIO, dialect: _Dialect) -> Iterator[_Row]:
    """The rows that are not blank, the header too; each line that cannot be told to be one is refused by itself."""
    lines, opened, doubtful = _Lines(file), 0, 0
    quoting = {"quotechar": dialect.quote, "strict": True} if dialect.quote else {"quoting": csv.QUOTE_NONE}
    rows = csv.reader(lines, delimiter=dialect.delimiter, **quoting)
    while True:
        lines.row = []
        line, problem, cells, is_doubtful = lines.number + 1, None, [], False
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            problem = _words(error, line)
        raw = lines.row
        if problem is None and len(raw) > 1 and not dialect.is_trusted:
            problem = _swallowed(dialect.looks, line, raw, cells)
        if problem is not None:
            opened, doubtful = line, max(doubtful, lines.number)
            lines.keep_first()
        elif is_doubtful := line <= doubtful and not dialect.looks.is_surely_row(cells):
            problem = f"line {line} may belong to the cell that line {opened} opens with a quote"
            lines.keep_first()
        if problem is not None or cells:
            yield _Row(line, lines.row, cells, problem, is_doubtful)


def _swallowed(looks: Looks, line: int, raw: list[str], cells: list[str]) -> str | None:
    """Why a row of several lines is none."""
    is_whole = len(cells) == looks.width
    if is_whole and not looks.are_rows(raw):
        return None
    if len(cells) < looks.width and looks.fit(cells) and not looks.start_in(raw[1:]):
        return None
    found = "and each line looks like a row" if is_whole else f"which makes {len(cells)} of {looks.width} cells"
    return (
        f"line {line} opens a quote that closes in line {line + len(raw) - 1}, {found}: double a quote that is a "
        "letter, or set `quote`: none where all are"
    )


def _words(error: csv.Error, line: int) -> str:
    if "unexpected end of data" in str(error) or "field larger" in str(error):
        return f"line {line}: a quote opened in this row is never closed; double it, or set `quote`: none"
    return f"line {line} is no valid CSV: {error}"


def _dialect(table: TableFile) -> _Dialect:
    """As the settings say, else as found."""
    settings = table.settings
    with table.open_text() as file:
        head = file.read(HEAD)
        lines = lines_of(head)
        if len(head) == HEAD:
            lines = lines[:-1] or lines
        default = "\t" if table.suffix == ".tsv" else ","
        delimiter = settings.delimiter or find_delimiter(lines, table.columns, table.required, default)
        start = next((number for number, line in enumerate(lines) if line.strip()), 0)
        width = len(table.columns or split("".join(lines[start : start + 1]), delimiter))
        found = _Dialect(delimiter, Looks(lines[start + (not table.columns) :], delimiter, width))
        if settings.quote is not None:
            return found._replace(quote=None if settings.quote == NO_QUOTE else settings.quote, is_trusted=True)
        if '"' not in head and not any('"' in piece for piece in iter(lambda: file.read(HEAD), "")):
            return found._replace(quote=None)
    return found if _quotes(table, found) else found._replace(quote=None)


@dataclass
class _Survey:
    """How a file uses quotes."""

    delimiter: str
    quoted: set[int] = field(default_factory=set)  # columns with cells in quotes
    bare: set[int] = field(default_factory=set)  # columns with other cells that hold something
    needless: bool = False  # some cells in quotes hold nothing that needs them
    letters: bool = False  # some other cells hold a quote
    broken: int = 0  # rows that do not hold when quotes are read as such
    doubtful: int = 0  # of them those that may be parts of a cell

    def add(self, row: _Row) -> None:
        if row.problem is not None:
            self.broken += 1
            self.doubtful += row.is_doubtful
            return
        text, at = "".join(row.raw), 0
        if '"' not in text and len(self.bare) == len(row.cells):
            return
        for column, cell in enumerate(row.cells):
            quoted = '"' + cell.replace('"', '""') + '"'
            if text.startswith(quoted, at):
                self.quoted.add(column)
                self.needless |= not any(sign in cell for sign in f'{self.delimiter}\n\r",;')
                at += len(quoted) + 1
            else:
                if cell:
                    self.bare.add(column)
                self.letters |= '"' in cell
                at += len(cell) + 1


def _quotes(table: TableFile, dialect: _Dialect) -> bool:
    """Whether the quotes of a file that has some stand around cells, and are not letters."""
    survey, is_tsv = _Survey(dialect.delimiter), dialect.delimiter == "\t"
    with table.open_text() as file:
        rows = _rows(file, dialect)
        if not table.columns:
            next(rows, None)
        for row in rows:
            survey.add(row)
            if survey.quoted and not is_tsv:
                return True
    if survey.quoted - survey.bare:
        return True  # whole columns
    if is_tsv:
        return bool(survey.quoted) and not (survey.broken or survey.needless or survey.letters)
    return survey.doubtful > 0
