"""Files as items: of a folder, a glob, a tar or a zip, or one file; and what a table says of them."""

import glob
import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from assets.archives import Archives, archive_kind, members
from assets.settings import check_encoding
from assets.sources.base import Entry, Source, SourceError, signature_of
from assets.storage import is_outside, locate, opened
from assets.tables import Record, read_table

Entries = list[Entry]


class FilesSource(Source):
    """Every file is an item; hidden ones (.name) are none.

    Its key is its path below the folder or in the archive, without suffix. With a table, each row names a file, and
    gives its key, time and attributes; a file that no row names keeps its path as key.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options:
        files: str | None = None  # folder, glob, tar, zip or file: a path, or a URL that fsspec knows
        table: str | None = None  # CSV, TSV, JSON Lines or Parquet, likewise
        key: str | None = None  # column of the table that `align` joins on
        file: str | None = None  # column of the table that names the file; default: `key`
        time: str | None = None  # column that says when it was recorded: ISO 8601, or epoch in s, ms, us or ns
        encoding: str = "utf-8"  # of the table and of text files

        def __post_init__(self) -> None:
            check_encoding(self.encoding)

    def __init__(self, root: Path, options: Options) -> None:
        super().__init__(root, options)
        assert options.files is not None
        self.encoding = options.encoding
        self._files = locate(options.files, root)
        self._table = None if options.table is None else locate(options.table, root)
        self._archives = Archives()

    def __str__(self) -> str:
        return self.options.files

    @classmethod
    def check(cls, modality: str, options: Options) -> None:
        if options.files is None:
            raise ValueError("has no files: say where they lie")
        if options.table is not None and options.key is None:
            raise ValueError("has a table: name the key, the column that holds the file names")
        for name in ("key", "file", "time"):
            if options.table is None and getattr(options, name) is not None:
                raise ValueError(f"has {name} but no table that could have such a column")

    def exists(self) -> bool:
        named = [self._files] if not glob.has_magic(self.options.files) else []
        return all(location.exists() for location in (*named, *([self._table] if self._table else [])))

    def list(self) -> Iterator[Entry]:
        where, entries = self._everything()
        if self._table is None:
            for entry in entries:
                entry.key = posixpath.splitext(entry.key or "")[0]
                yield entry
        else:
            table = self._table.uri  # no item of the folder it lies in
            yield from self._named(table, where, [entry for entry in entries if entry.uri != table])

    def open(self, entry: Entry) -> Iterator[bytes]:
        if entry.member is not None:
            yield from self._archives.read(entry)
            return
        file = opened(entry.uri)
        try:
            yield from file.pieces(0, entry.size)
        finally:
            file.close()

    def signature(self) -> str:
        whole = self._files.is_file()  # one file, or an archive, which need not be listed
        entries = [self._files.entry()] if whole else self._everything()[1]
        tables = [] if self._table is None else [self._table.entry()]
        return signature_of((e.uri, e.size, e.reason or e.version) for e in (*tables, *entries))

    def _everything(self) -> tuple[str, Entries]:
        """The folder, archive or file listed, for messages; the files, sorted by name, which is their key for now."""
        location = self._files
        if location.is_folder():
            entries = location.files()
        elif location.is_file():
            kind = archive_kind(str(location))
            entries = members(location, kind) if kind else [location.entry()]
        elif glob.has_magic(self.options.files):
            location, entries = location.matches()
        else:
            raise SourceError(f"{location}: no such file or folder; correct `files` in the project file")
        return str(location), sorted(entries, key=lambda entry: entry.key or "")

    def _named(self, table: str, where: str, entries: Entries) -> Iterator[Entry]:
        """The rows of the table with the files they name, then the files that no row names."""
        options = self.options
        required = [name for name in (options.key, options.file, options.time) if name is not None]
        by_name = {entry.key: entry for entry in entries if entry.reason != "superseded"}
        prefixes, prefix = _shared_folders(by_name.values()), ""
        rows_of: set[str] = set()
        for record in read_table(table, options.encoding, required):
            name, entry = record.values.get(options.file or options.key) or None, None
            if name is not None and not is_outside(name):
                path = posixpath.normpath(name)
                prefix = next((p for p in prefixes if p + path in by_name), prefix)
                entry = by_name.get(prefix + path)
                if entry is not None:
                    rows_of.add(prefix + path)
            yield self._row(record, table, name, entry, where)
        for entry in entries:
            if entry.key not in rows_of or entry.reason == "superseded":
                entry.key = (entry.key or "").removeprefix(prefix)
                yield entry

    def _row(self, record: Record, table: str, name: str | None, entry: Entry | None, where: str) -> Entry:
        """The item that a row of the table stands for, or why it stands for none."""
        options = self.options
        key, line = record.values.get(options.key) or None, f"{table} line {record.line}"
        time, problem = record.time(options.time)
        if problem is None and entry is not None:
            attributes = record.attributes(options.key)
            return replace(entry, key=key, row=record.line, time=time, attributes=attributes, listing=line)
        reason, message = "not_found", f"{line}: {name!r} is not in {where}"
        if problem is not None:
            reason, message = "malformed", f"{table}: {problem}"
        elif name is None:
            reason, message = "absent", f"{line}: column {options.file or options.key!r} names no file"
        elif is_outside(name):
            reason, message = "outside_root", f"{line}: {name!r} is no path within {where}; it was not opened"
        return Entry(key, table, name, record.line, reason=reason, message=message, listing=line)


def _shared_folders(entries: Iterable[Entry]) -> list[str]:
    """Prefixes that a table may leave out of its names: nothing, then the folders that all files share."""
    folders = {posixpath.dirname(entry.key or "") for entry in entries if entry.reason is None}
    folder = posixpath.commonpath(folders) if folders else ""
    parts = folder.split("/") if folder else []
    return ["", *("/".join(parts[:n]) + "/" for n in range(1, len(parts) + 1))]
