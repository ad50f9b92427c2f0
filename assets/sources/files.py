"""Files as items: of folders, globs, archives or one by one; and what a table or their paths say of them."""

import json
import posixpath
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from assets.archives import Archives, archive_kind
from assets.checksums import ChecksumSettings, is_sha256
from assets.file_listing import FileListing
from assets.file_names import FileNames
from assets.formats.base import Record
from assets.keys import key_of
from assets.linked_files import LinkedFiles
from assets.names import normalize
from assets.path_pattern import PathPattern
from assets.remote_settings import REMOTE
from assets.sources.base import Entry, Source, SourceError, signature_of, signature_of_rows
from assets.sources.embedded import EmbeddedSource
from assets.storage import Location, opened
from assets.table_settings import TableSettings
from assets.tables import holds_media, read_table, table_entries, table_files
from assets.time_settings import TIMED, TimeSettings
from assets.times import read_times
from training.credentials import mask
from training.validation import Names

Entries = list[Entry]
_SHOWN = 3  # names of many in a message


class Rows(ABC):
    """The rows that name files. Objects can be pickled."""

    numbered = True  # each is known by its place; false: they come in any order

    @abstractmethod
    def exist(self) -> bool: ...

    @abstractmethod
    def records(self, required: Sequence[str]) -> Iterator[Record]:
        """Each row. Args: `required`: columns that have to be there. Raises SourceError."""

    def tables(self) -> Sequence[Location]:
        """The files that hold them, which are no items of their folder."""
        return ()


class _TableRows(Rows):
    def __init__(self, root: Path, options: Any) -> None:
        self._root, self._options = root, options

    def exist(self) -> bool:
        return all(table.exists() for table in self.tables())

    def records(self, required: Sequence[str]) -> Iterator[Record]:
        options = self._options
        return read_table(options.table, options, required, root=self._root, columns=options.columns)

    def tables(self) -> Sequence[Location]:
        return table_files(self._options.table, self._root, self._options)


class FilesSource(Source):
    """Every file is an item; hidden ones (.name) are none.

    Its key is its path below the folder or in the archive, without suffix. With a table, each row names a file, and
    gives its key, time and attributes; a file that no row names keeps its path as key. With `path`, parts of its path
    are attributes, too, and may be the key.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(ChecksumSettings, TimeSettings, TableSettings):
        # `encoding` is of text files, too, and of names in archives that do not say theirs.
        # Folder, glob, tar, zip or file: a path, or a URL; or several. A folder or glob of nothing but archives stands
        # for the members of all. With a table, https://... is what the URLs in it start with.
        files: Names | None = None
        table: str | None = None  # `assets.tables.read_table`: a path, a URL, or a glob of them
        columns: Names = ()  # names of a table without header
        key: Names | None = None  # column that `align` joins on; several are one key (`assets.keys`)
        file: str | None = None  # column of the table that names the file; default: `key`
        path: str | None = None  # what parts of each file's path are: "{speaker}/{chapter}/{name}" (`PathPattern`)
        follow_links: bool = False  # true: links that lead out of the folder are followed, and not refused
        sha256: str | None = None  # column of the table with each file's checksum; without table, that of the one file

    def __init__(self, root: Path, options: Options, rows: Rows | None = None) -> None:
        """Args: `rows`: in the place of a table."""
        super().__init__(root, options)
        assert options.files is not None
        self._rows = rows if rows is not None or options.table is None else _TableRows(root, options)
        self.encoding = options.encoding
        self._files = FileListing(options.files, root, options.encoding, options.follow_links, options)
        self._key = options.key or ()
        self._pattern = None if options.path is None else PathPattern(options.path)
        self._archives = Archives(options)
        self._links: LinkedFiles | None = None
        if self._rows is not None:
            self._links = LinkedFiles.of(options.files, options.file or self._key[0], options, self._records)

    def __str__(self) -> str:
        return str(self._files)

    @classmethod
    def check(cls, modality: str, options: Options) -> None:
        if not options.files:
            raise ValueError("has no files: say where they lie")
        fields = PathPattern(options.path).fields if options.path is not None else ()
        if options.table is not None:
            if not options.key:
                raise ValueError("has a table: name the key, the column that holds the file names")
            if options.file is None and len(options.key) > 1:
                raise ValueError("has a key of several columns: name the column that holds the file names as `file`")
            return
        is_one = len(options.files) == 1 and options.sha256 is not None and is_sha256(options.sha256)
        if options.sha256 is not None and not is_one:
            raise ValueError(f"has sha256 {options.sha256!r}: without a table it is the 64 hex digits of one file")
        if options.file is not None:
            raise ValueError("has file but no table that could have such a column")
        for name in ("time", "until", "duration"):
            if getattr(options, name) not in (None, *fields):
                raise ValueError(f"has {name} but no table that could have such a column, nor a path with it")
        if missing := [column for column in options.key or () if column not in fields]:
            raise ValueError(f"has key {missing[0]!r} but no table that could have such a column, nor a path with it")
        for name in ("columns", "delimiter", "quote", "missing"):
            if getattr(options, name):
                raise ValueError(f"has {name} but no table")

    @classmethod
    def make(cls, root: Path, options: Options, modality: str, vectors: bool = False) -> Source:
        """Where `files` is nowhere and the column that should name them holds them: what reads them there."""
        source, column = cls(root, options), options.file or (options.key or ("",))[0]
        source.vectors = vectors
        if options.table is None or source._links is not None or source._files.exist():
            return source
        if not holds_media(options.table, root, column, options):
            return source
        shared = {name: getattr(options, name) for name in ("table", "key", "missing", "checksum", *TIMED, *REMOTE)}
        return EmbeddedSource(root, EmbeddedSource.Options(column=column, **shared))

    def exists(self) -> bool:
        is_there = self._links is not None or self._files.exist()
        return is_there and (self._rows is None or self._rows.exist())

    def list(self) -> Iterator[Entry]:
        if self._links is not None:
            yield from self._linked(self._links)
            return
        yield from self._unlinked(self._files.entries())

    def by_file(self, files: Sequence[Entry]) -> bool:
        has_own = self._rows is None and self.options.checksum is None and self.options.sha256 is None
        return has_own and all(archive_kind(file.uri) for file in files)

    def list_files(self, uris: Collection[str]) -> Iterator[Entry]:
        return self._unlinked(self._files.entries(uris))

    def _unlinked(self, entries: Entries) -> Iterator[Entry]:
        if self._rows is None:
            if self.options.sha256 is not None and any(entry.member for entry in entries):
                raise SourceError(
                    f"{self._files}: sha256 is of a file that is an item, not of an archive: leave it out"
                )
            for entry in entries:
                entry.expected = self.options.sha256 and self.options.sha256.lower()
                yield self._of_path(entry, posixpath.splitext(entry.key or "")[0])
        else:
            tables = {table.uri for table in self._rows.tables()}
            yield from self._named([entry for entry in entries if entry.uri not in tables])

    def open(self, entry: Entry) -> Iterator[bytes]:
        if entry.member is not None:
            yield from self._archives.read(entry)
            return
        uri = entry.uri if self._links is None else self._links.url(entry)
        file = opened(uri, self.options, entry.etag)
        try:
            yield from file.whole(entry.size)
        finally:
            file.close()

    def wholes(self) -> Iterator[Entry]:
        if self._links is None:
            yield from self._files.archives()
        yield from self._table_entries()

    def _table_entries(self) -> Entries:
        table = self.options.table
        return [] if table is None else table_entries(table, self.root, self.options)

    def changed(self, read: Mapping[str, str | int]) -> Sequence[str]:
        return self._files.changed(read)

    def files(self) -> Iterable[Entry] | None:
        if self._links is not None or (self._rows is not None and not self._rows.numbered):
            return None  # only a request, or a query, tells
        return [*self._table_entries(), *self._files.files()]

    def signature(self) -> str:
        """Of files that a table names by URL, what the table says: asking for each takes a run."""
        if self._rows is not None and not self._rows.numbered:  # nothing but the rows tells whether they are others
            return signature_of_rows(self)
        table = self._table_entries()
        files = [] if self._links is not None else self._files.signature()
        return signature_of([*((e.uri, e.size, e.version) for e in table), *files])

    def _of_path(self, entry: Entry, key: str) -> Entry:
        """The item of a file that no table tells of; `key` is its key where its path says nothing else."""
        fields = self._fields(entry)
        entry.key, entry.attributes = key_of(fields, self._key) or key, _json(fields, self._key)
        try:
            entry.time, entry.until = read_times(fields, self.options)
        except ValueError as error:
            return entry.refuse("bad_name", f"its path says no time: {error}")
        return entry

    def _fields(self, entry: Entry) -> dict[str, str]:
        """What the path of a file says; where it does not fit, the entry is refused."""
        if self._pattern is None or entry.reason is not None:
            return {}
        fields = self._pattern.read(entry.key or "")
        if fields is None:
            entry.refuse(
                "bad_name", f"its path does not fit `path` ({self._pattern}); correct it, or move the file out"
            )
        return fields or {}

    def _records(self) -> Iterator[Record]:
        """The rows, without those that `path` clashes with."""
        assert self._rows is not None
        options, fields = self.options, self._pattern.fields if self._pattern else ()
        asked = (*self._key, options.file or self._key[0], *options.time_columns, options.sha256)
        for record in self._rows.records([name for name in asked if name is not None and name not in fields]):
            if clash := [name for name in fields if name in record.values]:
                raise SourceError(
                    f"{record.table}: column {clash[0]!r} is a field of `path`, too: give the field another name"
                )
            yield record

    def _linked(self, links: LinkedFiles) -> Iterator[Entry]:
        """The rows of the table with the files that they name by URL."""
        names = FileNames([], [])
        for record, entry in links.entries():
            name = normalize(mask(record.values.get(links.column) or "")) or None
            record = replace(record, values=record.values | {links.column: name})  # what signs it is not kept
            yield self._row(record, name, [entry] if entry is not None else [], names)

    def _named(self, entries: Entries) -> Iterator[Entry]:
        """The rows of the table with the files they name, then the files that no row names."""
        column = self.options.file or self._key[0]
        names = FileNames(entries, self._files.folders())
        named: set[int] = set()
        missing: Entries = []
        for record in self._records():
            name = normalize(record.values.get(column) or "") or None
            found = names.find(name, record.table) if name is not None else []
            named.update(map(id, found))
            row = self._row(record, name, found, names)
            missing += [row] if name is not None and not found else []
            yield row
        if missing and not named:
            raise SourceError(self._nothing_found(column, missing, entries, names))
        for entry in entries:
            if id(entry) not in named:
                yield self._of_path(entry, (entry.key or "").removeprefix(names.prefix))

    def _row(self, record: Record, name: str | None, found: Entries, names: FileNames) -> Entry:
        """The item that a row of the table stands for, or why it stands for none."""
        options, where = self.options, self._files
        line, entry = record.where, replace(found[0]) if len(found) == 1 else None
        # Of a row without a place the URL of its file is found again by its number.
        row = record.line if self._links is not None or (self._rows and self._rows.numbered) else None
        if record.problem is None and entry is not None and (fields := self._fields(entry)):
            record = replace(record, values={**record.values, **fields})
        time, until, problem = record.times(options)
        expected = (record.values.get(options.sha256) or "").strip().lower() if options.sha256 else ""
        if problem is None and expected and not is_sha256(expected):
            problem = f"line {record.line}, column {options.sha256!r}: {expected!r} is no SHA-256 (64 hex digits)"
        if problem is None and entry is not None:
            entry.key, entry.row, entry.listing = key_of(record.values, self._key), row, line
            entry.time, entry.until, entry.expected = time, until, expected or None
            entry.attributes = record.attributes(*(self._key if len(self._key) == 1 else ()))
            return entry
        if problem is not None:
            reason, message = "malformed", f"{record.table}: {problem}"
        elif name is None:
            reason, message = "absent", f"{line}: column {options.file or self._key[0]!r} names no file"
        elif found:
            several = " and ".join(entry.where for entry in found[:_SHOWN])
            reason, message = "ambiguous", f"{line}: {name!r} fits {several}; write more of the path"
        elif names.is_outside(name, record.table):
            reason, message = "outside_root", f"{line}: {name!r} is no path within {where}; it was not opened"
        else:
            reason, message = "not_found", f"{line}: {name!r} is not in {where}{names.hint(name)}"
        key = key_of(record.values, self._key)
        return Entry(key, record.table, name, row, reason=reason, message=message, listing=line)

    def _nothing_found(self, column: str, rows: Entries, entries: Entries, names: FileNames) -> str:
        """That no row names a file that is there, for a person who sees nothing else."""
        has = [repr(entry.key) for entry in entries if entry.reason is None][:_SHOWN]
        asked = ", ".join(repr(row.member) for row in rows[:_SHOWN])
        there = f"there are {', '.join(has)}" if has else "there is none that can be read"
        return (
            f"{rows[0].uri}: none of the {len(rows)} files that column {column!r} names is in {self._files}: correct "
            f"them, or `files` in the project file. The column has {asked}; {there}{names.hint(rows[0].member or '')}"
        )


def _json(fields: dict[str, str], key: tuple[str, ...]) -> str:
    left = {name: value for name, value in fields.items() if key != (name,)}
    return json.dumps(left, ensure_ascii=False, sort_keys=True)
