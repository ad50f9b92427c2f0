"""What all formats of tables have in common: one file as its reader gets it, and the rows that come of it."""

import codecs
import gzip
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from io import TextIOWrapper
from typing import BinaryIO, TextIO, cast

from assets.names import as_object, normalize
from assets.sources.base import SourceError
from assets.storage import Location
from assets.table_settings import TableSettings
from assets.time_settings import TimeSettings
from assets.times import read_times
from training.credentials import mask_urls

_MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"}  # first, since one begins like UTF-16's
_VECTOR = re.compile(r"\[\s*(\[|null|-?\d+[.eE])")  # how the JSON of one starts
_MARKS |= {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a table as strings; null where there is nothing. `problem` says why the row cannot be used."""

    table: str  # the file
    line: int  # where the row starts, from 1 (the header of a CSV is line 1); of Parquet the number of the row
    values: dict[str, str | None]
    problem: str | None = None

    @property
    def where(self) -> str:
        """As messages name the row."""
        return f"{self.table} line {self.line}"

    def attributes(self, *left_out: str) -> str:
        """The other columns, where they hold something, as a JSON object of names (`assets.names`)."""
        cells = {n: normalize(v) for n, v in self.values.items() if v is not None and n not in left_out}
        return as_object({n: mask_urls(v) for n, v in cells.items()})

    def times(self, settings: TimeSettings) -> tuple[datetime | None, datetime | None, str | None]:
        """When its item began and ended (`read_times`), or why the row cannot be used."""
        if self.problem is not None:
            return None, None, self.problem
        try:
            return *read_times(self.values, settings), None
        except ValueError as error:
            return None, None, f"line {self.line}, {error}"


@dataclass(frozen=True)
class Place:
    """What stands for the file of a table that lies in none, such as a database."""

    uri: str

    def __str__(self) -> str:
        return self.uri


@dataclass(frozen=True)
class TableFile:
    """One file of a table, and how it is read."""

    location: Location
    settings: TableSettings = field(default_factory=TableSettings)
    columns: tuple[str, ...] = ()  # names of a table without header
    required: tuple[str, ...] = ()
    text: str | None = None  # the column whose cells have to be text
    media: str | None = None  # the column that holds media: its cells become their names
    vectors: bool = False  # what `media` holds is lists of numbers
    optional: frozenset[str] = frozenset()  # columns that are read whatever they hold, beside those required
    known: list[str] = field(default_factory=list)  # columns of the first file of the table; filled by `check`
    key: str = ""  # its name below the folder that a glob of tables starts from, without suffix

    def __str__(self) -> str:
        return str(self.location)

    @property
    def suffix(self) -> str:
        """.csv, whether packed (.csv.gz) or not."""
        name = self.location.name.lower().removesuffix(".gz")
        return f".{name.rpartition('.')[2]}" if "." in name else ""

    def open(self) -> BinaryIO:
        """The bytes, unpacked. Raises OSError."""
        file = self.location.open()
        file.seek(0)  # some drivers give the same object each time
        return cast(BinaryIO, gzip.GzipFile(fileobj=file)) if self.location.name.lower().endswith(".gz") else file

    def open_text(self) -> TextIO:
        """The characters. Raises OSError."""
        encoding = self.encoding
        return TextIOWrapper(self.open(), encoding=encoding, newline="")

    @cached_property
    def encoding(self) -> str:
        """What the settings say; without one, what a byte order mark does."""
        encoding = self.settings.encoding
        if codecs.lookup(encoding).name != "utf-8":
            return encoding
        with self.open() as file:
            start = file.read(4)
        return next((name for mark, name in _MARKS.items() if start.startswith(mark)), "utf-8-sig")  # Excel writes one

    def reads(self, column: str) -> bool:
        """Whether a column is asked for, so that it is read whatever it holds."""
        return column in self.required or column in self.optional

    def check(self, columns: Sequence[str]) -> list[str]:
        """The names of the columns, cleaned.

        Raises:
            SourceError: two have one name, one of those required is not there, or the first file has others.
        """
        names = [normalize(name) for name in columns]
        if repeated := [name for name, count in Counter(names).items() if count > 1 and name]:
            raise SourceError(f"{self}: column {repeated[0]!r} occurs twice in the header; rename one of them")
        there = [name for name in names if name]
        if missing := [name for name in self.required if name not in there]:
            shown = ", ".join(name[:40] for name in there[:40]) or "none"
            advice = "" if set(self.required) & set(there) else "; if it has no header, name its `columns`"
            raise SourceError(f"{self}: no column {missing[0]!r}; it has {shown}{advice}")
        if self.known and set(self.known) != set(there):
            raise SourceError(
                f"{self}: its columns are {', '.join(there)}, those of the first file of this table "
                f"{', '.join(self.known)}: name files of one kind"
            )
        self.known[:] = self.known or there
        return names

    def record(self, line: int, values: dict[str, str | None]) -> Record:
        values = {n: v for n, v in values.items() if not v or v[0] != "[" or self.reads(n) or not _VECTOR.match(v)}
        missing = self.settings.missing
        if missing:
            values = {n: None if v is not None and v.strip() in missing else v for n, v in values.items()}
        return Record(self.location.uri, line, values)

    def broken(self, line: int, problem: str) -> Record:
        """A row that cannot be used."""
        return Record(self.location.uri, line, {}, problem)


def unstorable(values: Iterable[str | None]) -> str | None:
    """What no table can hold, though JSON and Parquet can spell it; None where there is nothing of it."""
    text = "".join(filter(None, values))
    if "\0" in text:
        return "a NUL byte"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "half of a surrogate pair"
    return None
