"""Texts as items: a column of a table holds them, another one their keys."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from assets.keys import key_of
from assets.settings import check_encoding
from assets.sources.base import Entry, Source, signature_of
from assets.storage import locate
from assets.tables import Record, read_table
from training.catalog import MODALITIES
from training.validation import Names


class TableSource(Source):
    """Every row is an item of text; the other columns are its attributes."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        table: str | None = None  # CSV, TSV, JSON Lines or Parquet: a path, or a URL that fsspec knows
        key: Names | None = None  # column that `align` joins on; several are one key (`assets.keys`)
        column: str | None = None  # column that holds the text
        time: str | None = None  # column that says when it was recorded: ISO 8601, or epoch in s, ms, us or ns
        encoding: str = "utf-8"

        def __post_init__(self) -> None:
            check_encoding(self.encoding)

    def __init__(self, root: Path, options: Options) -> None:
        super().__init__(root, options)
        assert options.table is not None
        self._table = locate(options.table, root)
        self._key = options.key or ()

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
        return self._table.exists()

    def list(self) -> Iterator[Entry]:
        options = self.options
        required = [*self._key, options.column, *([options.time] if options.time else [])]
        table = None
        for record in read_table(self._table.uri, options.encoding, required):
            table = table or self._table.entry()
            yield self._item(record, table.mtime)

    def _item(self, record: Record, mtime: int | None) -> Entry:
        options, uri = self.options, self._table.uri
        line, text = f"{uri} line {record.line}", record.values.get(options.column)
        entry = Entry(key_of(record.values, self._key), uri, row=record.line, mtime=mtime, listing=line)
        entry.time, problem = record.time(options.time)
        if problem is not None:
            entry.reason, entry.message = "malformed", f"{uri}: {problem}"
        elif not text:
            entry.reason, entry.message = "absent", f"{line}: column {options.column!r} holds no text"
        elif not text.strip():
            entry.reason, entry.message = "empty", f"{line}: column {options.column!r} holds white space only"
        else:
            left_out = (options.column, *(self._key if len(self._key) == 1 else ()))
            entry.text, entry.attributes = text, record.attributes(*left_out)
        return entry

    def open(self, entry: Entry) -> Iterator[bytes]:
        yield (entry.text or "").encode()

    def signature(self) -> str:
        table = self._table.entry()
        return signature_of([(table.uri, table.size, table.version)])
