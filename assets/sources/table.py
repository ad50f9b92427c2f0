"""Texts as items: a column of a table holds them, another one their keys."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from assets.checksums import ChecksumSettings
from assets.formats.base import Record
from assets.keys import key_of
from assets.sources.base import Entry, Source, signature_of
from assets.table_settings import TableSettings
from assets.tables import read_table, table_entries, table_files
from assets.time_settings import TimeSettings
from training.catalog import MODALITIES
from training.validation import Names


class TableSource(Source):
    """Every row is an item of text; the other columns are its attributes."""

    holds = "text"  # what cells of the column hold

    @dataclass(frozen=True, kw_only=True)
    class Options(ChecksumSettings, TimeSettings, TableSettings):
        table: str | None = None  # `assets.tables.read_table`: a path, a URL that fsspec knows, or a glob of them
        columns: Names = ()  # names of a table without header
        key: Names | None = None  # column that `align` joins on; several are one key (`assets.keys`)
        column: str | None = None  # column that holds the text

    def __str__(self) -> str:
        return self.options.table

    @classmethod
    def check(cls, modality: str, options: Options) -> None:
        if options.table is None:
            raise ValueError("has neither files nor table: give one of them")
        if not MODALITIES.load(modality).is_text:
            raise ValueError(f"is {modality} and has no files: say where its media lie")
        if options.column is None or not options.key:
            raise ValueError("reads text from a table: name its column and its key")

    def exists(self) -> bool:
        return any(file.exists() for file in table_files(self.options.table, self.root, self.options))

    def list(self) -> Iterator[Entry]:
        return self.list_files(None)

    def by_file(self, files: Sequence[Entry]) -> bool:
        return self.options.checksum is None  # which is of whole tables

    def list_files(self, uris: Collection[str] | None) -> Iterator[Entry]:
        options = self.options
        required = [*options.key, options.column, *options.time_columns]
        left_out = (options.column, *(options.key if len(options.key) == 1 else ()))
        times = {file.uri: file.mtime for file in table_entries(options.table, self.root, options)}
        text = options.column if self.holds == "text" else None  # of vectors any cell will do
        more: dict[str, Any] = {"columns": options.columns, "text": text, "only": uris}
        for record in read_table(options.table, options, required, root=self.root, **more):
            yield self._item(record, times[record.table], left_out)

    def _item(self, record: Record, mtime: int | None, left_out: tuple[str, ...]) -> Entry:
        options, key = self.options, key_of(record.values, self.options.key)
        return text_entry(record, key, options.column, options, mtime, left_out, self.holds)

    def open(self, entry: Entry) -> Iterator[bytes]:
        yield (entry.text or "").encode()

    def wholes(self) -> Iterable[Entry]:
        return table_entries(self.options.table, self.root, self.options)

    def files(self) -> Iterable[Entry]:
        return self.wholes()

    def signature(self) -> str:
        return signature_of(
            (f.uri, f.size, f.version) for f in table_entries(self.options.table, self.root, self.options)
        )


def text_entry(
    record: Record,
    key: str | None,
    column: str,
    times: TimeSettings,
    mtime: int | None,
    left_out: tuple[str, ...],
    holds: str = "text",
) -> Entry:
    """The item that a row of texts is, or why it is none.

    Args:
        times: which columns say when it was recorded.
        left_out: columns that are no attributes of it.
    """
    line, text = record.where, record.values.get(column)
    entry = Entry(key, record.table, row=record.line, mtime=mtime, listing=line)
    entry.time, entry.until, problem = record.times(times)
    if problem is not None:
        entry.reason, entry.message = "malformed", f"{record.table}: {problem}"
    elif not text:
        entry.reason, entry.message = "absent", f"{line}: column {column!r} holds no {holds}"
    elif text.isspace():
        entry.reason, entry.message = "empty", f"{line}: column {column!r} holds white space only"
    else:
        entry.text, entry.attributes = text, record.attributes(*left_out)
    return entry
