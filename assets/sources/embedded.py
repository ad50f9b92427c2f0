"""Media as items that lie in a column of a Parquet table, as Hugging Face writes them: bytes, or structs with them."""

import posixpath
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assets.checksums import ChecksumSettings
from assets.formats.base import Record
from assets.formats.media_column import MediaColumn
from assets.keys import key_of
from assets.remote_settings import REMOTE, RemoteSettings
from assets.sources.base import Entry, Source, signature_of
from assets.table_settings import TableSettings
from assets.tables import read_table, table_entries, table_files
from assets.time_settings import TimeSettings
from training.catalog import MODALITIES
from training.validation import Names, Strings


class EmbeddedSource(Source):
    """Every row is an item; the other columns are its attributes.

    Media are bytes, or (`vectors`) lists of numbers, whose bytes are what `training.vectors` makes of them.

    The bytes are read where they lie, a batch of rows at a time. Where the column is the key too, this is the name that
    the media have in it, without suffix.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(ChecksumSettings, TimeSettings, RemoteSettings):
        table: str | None = None  # Parquet: a path, a URL that fsspec knows, or a glob of them
        key: Names | None = None  # column that `align` joins on; several are one key (`assets.keys`)
        column: str | None = None  # column that holds the media
        missing: Strings = ()  # cells that mean: no value, such as NA

    def __init__(self, root: Path, options: Options) -> None:
        super().__init__(root, options)
        assert options.column is not None
        self._media = MediaColumn(options.column, self.vectors, options)

    def __str__(self) -> str:
        return self.options.table

    @classmethod
    def check(cls, modality: str, options: Options) -> None:
        if options.table is None or options.column is None:
            raise ValueError(
                f"is {modality} and has no files: say where its media lie, or name a Parquet table and the column that "
                "holds them"
            )
        if MODALITIES.load(modality).is_text:
            raise ValueError("is text, which is read as kind: table")
        if not options.key:
            raise ValueError("reads media from a table: name its key")

    def exists(self) -> bool:
        return any(file.exists() for file in table_files(self.options.table, self.root, self.options))

    def list(self) -> Iterator[Entry]:
        return self.list_files(None)

    def by_file(self, files: Sequence[Entry]) -> bool:
        return self.options.checksum is None  # which is of whole tables

    def list_files(self, uris: Collection[str] | None) -> Iterator[Entry]:
        options = self.options
        required = [*options.key, *options.time_columns]
        settings = TableSettings(missing=options.missing, **{name: getattr(options, name) for name in REMOTE})
        files = {file.uri: file for file in table_entries(options.table, self.root, options)}
        more: dict[str, Any] = {"media": options.column, "vectors": self.vectors, "only": uris}
        for record in read_table(options.table, settings, required, root=self.root, **more):
            yield self._item(record, files[record.table])

    def _item(self, record: Record, file: Entry) -> Entry:
        options, line = self.options, record.where
        name = record.values.get(options.column)
        named = {options.column: posixpath.splitext(name or "")[0]}
        key = key_of(record.values | named, options.key)
        member = posixpath.join(options.column, name or "").rstrip("/")
        entry = Entry(key, record.table, member, record.line, record.line - 1, -1, file.mtime, listing=line)
        entry.etag = file.etag
        entry.time, entry.until, problem = record.times(options)
        if problem is not None:
            entry.reason, entry.message = "malformed", f"{record.table}: {problem}"
        elif name is None:
            entry.reason, entry.message = "absent", f"{line}: column {options.column!r} holds nothing"
        else:
            entry.attributes = record.attributes(options.column, *(options.key if len(options.key) == 1 else ()))
        return entry

    def open(self, entry: Entry) -> Iterator[bytes]:
        assert entry.row is not None
        yield self._media.read(entry.uri, entry.row)

    def wholes(self) -> Iterable[Entry]:
        return table_entries(self.options.table, self.root, self.options)

    def files(self) -> Iterable[Entry]:
        return self.wholes()

    def signature(self) -> str:
        return signature_of(
            (f.uri, f.size, f.version) for f in table_entries(self.options.table, self.root, self.options)
        )
