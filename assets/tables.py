"""Tables that people bring, read row by row in bounded memory, each row with its file and line."""

import contextlib
import glob
import importlib
import posixpath
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path

import pyarrow as pa

from assets.formats.base import Record, TableFile
from assets.remote_settings import ANYWHERE, RemoteSettings
from assets.sources.base import Entry, SourceError
from assets.storage import Location, locate
from assets.table_settings import WHITESPACE, TableSettings

_FORMATS = {
    **dict.fromkeys((".csv", ".tsv", ".txt"), "delimited"),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "json_"),
    ".parquet": "parquet",
    **dict.fromkeys((".srt", ".vtt"), "subtitles"),
    ".textgrid": "textgrid",
    **dict.fromkeys((".ctm", ".rttm"), "scoring"),
    **dict.fromkeys((".xlsx", ".xlsm"), "spreadsheet"),
}


def table_files(name: Path | str, root: Path | None = None, access: RemoteSettings = ANYWHERE) -> list[Location]:
    """The files of a table: what a path or URL names, or all that a glob does, sorted by name."""
    return [location for _, location in _named_files(name, root, access)]


def _named_files(name: Path | str, root: Path | None, access: RemoteSettings) -> list[tuple[str, Location]]:
    """With their names below the folder that a glob starts from."""
    location = locate(name, root, access)
    if not (location.globs and glob.has_magic(str(name))) or location.is_file():
        return [(location.name, location)]
    matching = sorted(location.matches()[1], key=lambda entry: entry.uri)
    return [(entry.key or "", locate(entry.uri, None, access)) for entry in matching if entry.reason is None]


def table_entries(name: Path | str, root: Path | None = None, access: RemoteSettings = ANYWHERE) -> list[Entry]:
    """The files of a table as entries, which tell size and time of each. Raises SourceError if there is none."""
    try:
        return [location.entry() for _, location in _existing(name, root, access)]
    except FileNotFoundError:
        raise _no_such(locate(name, root)) from None


def is_parquet(name: Path | str) -> bool:
    """Whether a table is Parquet, by its suffix."""
    return _FORMATS.get(TableFile(locate(name)).suffix) == "parquet"


def holds_media(name: Path | str, root: Path, column: str, access: RemoteSettings = ANYWHERE) -> bool:
    """Whether a column of a Parquet table holds the bytes of media, one a row; false where it cannot be read."""
    import pyarrow.parquet as pq

    from assets.formats.media_column import MediaField

    try:
        with _existing(name, root, access)[0][1].open() as file:
            return MediaField.of(pq.read_schema(file), column) is not None
    except (OSError, SourceError, pa.ArrowException):
        return False


def read_table(
    name: Path | str,
    settings: TableSettings | None = None,
    required: Collection[str] = (),
    *,
    root: Path | None = None,
    columns: tuple[str, ...] = (),
    text: str | None = None,
    media: str | None = None,
    vectors: bool = False,
    optional: Collection[str] = (),
    only: Collection[str] | None = None,
) -> Iterator[Record]:
    """The rows of a CSV, TSV, JSON Lines, JSON, Parquet or Excel file, of subtitles or a transcript with times
    (`assets.formats.cues`), by its suffix; or of all files of a glob.

    The rows of a JSON file may lie within an object, as the only list of objects in it or as `settings.rows`.

    Numbers and times become text, lists and structs JSON, NaN null. Columns that are not asked for are left out where
    they hold what nobody reads as a word: bytes (of Parquet), and vectors (lists that start with a decimal or a list).
    A row that cannot be used (cells too many, broken JSON, NUL byte) is given with its `problem`.

    Args:
        name: path (relative to `root`), or URL that fsspec knows, or a glob of them.
        columns: names of a table without header.
        text: a column whose cells have to be text, not lists or numbers.
        media: a Parquet column that holds media. Its cells become what they are called: "" where nothing says.
        vectors: these are lists of numbers.
        optional: columns that are read whatever they hold, where they are there.
        only: URIs of the files whose rows are given; null: all.

    Raises:
        SourceError: a file is missing, damaged, in another encoding, or lacks one of the `required` columns.
    """
    known: list[str] = []
    for called, location in _existing(name, root, settings or ANYWHERE):
        wanted = tuple(dict.fromkeys([*required, *([text] if text else []), *([media] if media else [])]))
        asked = wanted, text, media, vectors, frozenset(optional)
        key = posixpath.splitext(called.removesuffix(".gz"))[0]
        rows = _read(TableFile(location, settings or TableSettings(), columns, *asked, known, key))
        if only is None or location.uri in only:
            yield from rows
        elif not known:
            next(rows, None)  # the others must have the columns of the first one


def _read(table: TableFile) -> Iterator[Record]:
    by_words = table.settings.delimiter == WHITESPACE
    if (kind := "words" if by_words else _FORMATS.get(table.suffix)) is None:
        raise SourceError(f"{table}: a table ends in one of {', '.join(_FORMATS)} (.gz may follow)")
    if table.media is not None and kind != "parquet":
        raise SourceError(
            f"{table}: column {table.media!r} is to hold media, which only a Parquet file can; where it names files, "
            "say under `files` where they lie"
        )
    try:
        yield from importlib.import_module(f"assets.formats.{kind}").read(table)
    except FileNotFoundError:
        raise _no_such(table) from None
    except UnicodeError as error:
        encoding = table.encoding
        advice = "set `encoding` to the table's own"
        raise SourceError(
            f"{table}{_undecodable_line(table)} is not {encoding.removesuffix('-sig')} ({error}); {advice}"
        ) from None
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise SourceError(f"{table}: cannot be read: {error}") from None


def _existing(name: Path | str, root: Path | None, access: RemoteSettings) -> list[tuple[str, Location]]:
    if not (files := _named_files(name, root, access)):
        raise _no_such(locate(name, root))
    return files


def _no_such(table: object) -> SourceError:
    return SourceError(f"{table}: no such table; correct the path in the project file")


def _undecodable_line(table: TableFile) -> str:
    """`` line N`` of the first line that is not in the encoding; nothing where lines are not bytes up to LF."""
    encoding = table.encoding
    if encoding.lower().startswith(("utf-16", "utf_16", "utf-32", "utf_32")):
        return ""
    with contextlib.suppress(OSError, EOFError, zlib.error), table.open() as file:  # it may be damaged, too
        for number, line in enumerate(file, 1):
            try:
                line.decode(encoding)
            except UnicodeError:
                return f" line {number}"
    return ""
