"""Rows of a query to a SQL database: they hold texts, or the bytes of media, or name files."""

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, cast

from assets.checksums import ChecksumSettings
from assets.databases import Database, DatabaseUrl
from assets.formats.base import Place, Record, TableFile, unstorable
from assets.formats.values import as_text, is_vector, no_text, refused
from assets.keys import key_of
from assets.remote_settings import REMOTE, RemoteSettings
from assets.sources.base import Entry, Source, SourceError, signature_of_rows
from assets.sources.files import FilesSource, Rows
from assets.sources.table import text_entry
from assets.storage import Location
from assets.table_settings import TableSettings
from assets.time_settings import TIMED, TimeSettings
from training.catalog import MODALITIES
from training.messages import one_line
from training.validation import Names, Strings, Word
from training.vectors import text_of_cell

_SHARED = "files", "key", "file", "missing", "checksum", *TIMED, *REMOTE
_BYTES = bytes, bytearray, memoryview
_ROWS, _MEDIA = 1000, 16  # rows that are held at once, without and with media in them


class SqlSource(Source):
    """Every row of the query is an item; the other columns are its attributes.

    The query is run anew each time, row by row. Media are hashed as they pass, and read again, one by one, where there
    is something to be done with them: by the columns that name a row. What has the hash of before is not done again.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(ChecksumSettings, TimeSettings, RemoteSettings):
        # Of the database; one with a password lies in a variable of the environment: {env: NAME}.
        url: Annotated[DatabaseUrl, Word("url")] = field(default_factory=DatabaseUrl)
        query: str | None = None  # SELECT ...
        column: str | None = None  # column that holds the text, or the bytes of media
        key: Names | None = None  # column that `align` joins on; several are one key (`assets.keys`)
        id: Names | None = None  # columns that tell each row with media from all others; default: `key`
        files: Names | None = None  # where the files lie that the rows name, as `kind: files` has it
        file: str | None = None  # column that names the file; default: `key`
        missing: Strings = ()  # cells that mean: no value, such as NA

        @property
        def place(self) -> str:
            return f"{self.url}: {' '.join((self.query or '').split())}"

    @classmethod
    def make(cls, root: Path, options: Options, modality: str, vectors: bool = False) -> Source:
        if options.files is not None:  # which the rows name, as those of a table do
            shared = {name: getattr(options, name) for name in _SHARED}
            source = FilesSource(root, FilesSource.Options(**shared), _Query(root, options))
            source.vectors = vectors
            return source
        return cls(root, options, MODALITIES.load(modality).is_text, vectors)

    def __init__(self, root: Path, options: Options, is_text: bool, vectors: bool = False) -> None:
        super().__init__(root, options)
        self.vectors = vectors
        self._is_text, self._rows = is_text, _Query(root, options)

    def __str__(self) -> str:
        return one_line(self.options.place)

    @classmethod
    def check(cls, modality: str, options: Options) -> None:
        options.url.check()
        if not options.query or not options.key:
            raise ValueError("needs a query, SELECT ..., and as key the name of one of its columns")
        if (options.column is None) == (options.files is None):
            held = "texts" if MODALITIES.load(modality).is_text else "bytes of its media"
            raise ValueError(
                f"needs the column with the {held}; or, where its rows name files, `files`: where they lie"
            )
        if options.files is None and options.file is not None:
            raise ValueError("has a column of file names but no files: say where they lie")
        if options.files is not None and options.file is None and len(options.key) > 1:
            raise ValueError("has a key of several columns: name the column that holds the file names as `file`")

    def exists(self) -> bool:
        return self._rows.exist()

    def list(self) -> Iterator[Entry]:
        options, seen = self.options, set()
        named = options.id or options.key
        left_out = (options.column, *(options.key if len(options.key) == 1 else ()))
        as_media = self.vectors or not self._is_text
        for record, cells in self._rows.cells([options.column, *named], media=as_media):
            key = key_of(record.values, options.key)
            if self.vectors:
                record = replace(record, values=record.values | {options.column: _vectors(cells[options.column])})
                entry = text_entry(record, key, options.column, options, None, left_out, "vector")
                entry.row = None
                yield entry
                continue
            member = json.dumps([_plain(cells.get(name)) for name in named], ensure_ascii=False)
            if self._is_text:
                entry = text_entry(record, key, options.column, options, None, left_out)
                entry.row = None  # rows of a query have no place of their own
                yield entry
                continue
            entry = self._medium(record, key, member, cells.get(options.column), left_out)
            if entry.reason is None and any(cells[n] is None or isinstance(cells[n], _BYTES) for n in named):
                entry.refuse(
                    "malformed", f"{', '.join(named)} holds nothing, or bytes: name as `id` what tells its row"
                )
            if entry.reason is None and hash(member) in seen:
                entry.refuse(
                    "ambiguous", f"another row has the same {', '.join(named)}: say by `id` what tells them apart"
                )
            seen.add(hash(member))
            yield entry

    def _medium(self, record: Record, key: str | None, member: str, value: Any, left_out: tuple[str, ...]) -> Entry:
        entry = Entry(key, record.table, member)
        entry.time, entry.until, problem = record.times(self.options)
        if problem is not None:
            entry.refuse("malformed", problem)
        elif value is None:
            entry.refuse("absent", f"column {self.options.column!r} holds nothing")
        elif not isinstance(value, _BYTES):
            found = no_text(value) or "text"
            raise SourceError(
                f"{record.where}: column {self.options.column!r} holds {found} and no bytes of media; where it names "
                "files, say under `files` where they lie, and it as `file`"
            )
        else:
            entry.size, entry.sha256 = len(value), hashlib.sha256(value).hexdigest()
            entry.version, entry.attributes = entry.sha256, record.attributes(*left_out)
        return entry

    def open(self, entry: Entry) -> Iterator[bytes]:
        if entry.text is not None:
            yield entry.text.encode()
            return
        named = self.options.id or self.options.key
        yield self._rows.medium(self.options.column, dict(zip(named, json.loads(entry.member or "[]"), strict=True)))

    def signature(self) -> str:
        return signature_of_rows(self)


class _Query(Rows):
    """The rows of a source's query."""

    numbered = False

    def __init__(self, root: Path, options: SqlSource.Options) -> None:
        assert options.query is not None
        self._options, self._text, self._database = options, options.query, Database(options.url, root)

    def exist(self) -> bool:
        return self._database.exists()

    def records(self, required: Sequence[str]) -> Iterator[Record]:
        return (record for record, _ in self.cells(required))

    def cells(self, required: Sequence[str], media: bool = False) -> Iterator[tuple[Record, dict[str, Any]]]:
        """Each row as words, and as what the database gives. Args: `media`: the column holds some."""
        options, columns = self._options, list[str]()
        table: TableFile | None = None
        text = None if media else options.column
        required = [*dict.fromkeys([*required, *(options.key or ()), *options.time_columns])]
        for line, (names, row) in enumerate(self._database.rows(self._text, _MEDIA if media else _ROWS), 1):
            if table is None:
                place = cast(Location, Place(self._database.place))
                table = TableFile(place, TableSettings(missing=options.missing), required=tuple(required), text=text)
                columns = table.check(names)
            cells = dict(zip(columns, row, strict=True))
            words = {n: as_text(_plain(v)) for n, v in cells.items() if not isinstance(v, _BYTES) and not is_vector(v)}
            if text is not None and isinstance(cells[text], _BYTES):
                raise SourceError(f"{table} line {line}: column {text!r} holds bytes, which are no text; name another")
            if text is not None and (found := no_text(cells[text])) is not None:
                yield table.broken(line, refused(f"line {line}", text, found)), cells
            elif (found := unstorable(words.values())) is not None:
                yield table.broken(line, f"line {line} holds {found}"), cells
            else:
                yield table.record(line, words), cells

    def medium(self, column: str, named: dict[str, Any]) -> bytes:
        value = self._database.cell(self._text, column, named)
        if not isinstance(value, _BYTES):
            raise ValueError("there are no bytes in it any more; run again")
        return bytes(value)


def _vectors(value: Any) -> str | None:
    """As tables keep vectors (`training.vectors`): of an array of the database, JSON in a text, or a NumPy file."""
    if value is None or isinstance(value, str):
        return value and text_of_cell(value)
    if isinstance(value, _BYTES):
        return base64.b64encode(value).decode()
    return text_of_cell(json.dumps(value, default=float))


def _plain(value: Any) -> Any:
    """As JSON has it: what it has no word for (UUID, Decimal, a time) is text."""
    return value if value is None or isinstance(value, str | int | float | list | dict) else str(value)
