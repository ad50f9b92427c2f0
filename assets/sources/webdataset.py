"""WebDataset shards: in a tar, the members of one name before the first dot are one sample, one for each suffix.

https://github.com/webdataset/webdataset#the-webdataset-format
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from assets.archives import Archives
from assets.checksums import ChecksumSettings
from assets.file_listing import FileListing
from assets.formats.base import unstorable
from assets.formats.values import as_text, is_vector
from assets.keys import key_of
from assets.names import as_object, normalize
from assets.path_pattern import PathPattern
from assets.remote_settings import RemoteSettings
from assets.sources.base import Entry, Source, SourceError, signature_of
from assets.table_settings import check_encoding
from assets.time_settings import TimeSettings
from assets.times import read_times
from training.catalog import MODALITIES
from training.validation import Names
from training.vectors import text_of_cell

KEY, SHARD = "__key__", "__shard__"  # the first as WebDataset calls it
OBJECTS = frozenset({"json", "jsn"})  # suffixes whose values are columns
# Suffixes that WebDataset reads as a word or a number: each is a column of that name.
WORDS = frozenset({"cls", "cls2", "class", "count", "id", "index", "inx", "text", "transcript", "txt"})
_COLUMNS = OBJECTS | WORDS
_LARGEST = 2**20  # bytes of a member that is read as columns; a label is no book
_NAME = re.compile(r"((?:.*/)?[^/.]+)\.([^/]*)", re.DOTALL)

Entries = list[Entry]
Sample = dict[str, Entries]  # suffix, in lower case -> members, of which the last one counts


def sample_of(member: str) -> tuple[str, str] | None:
    """The sample that a member belongs to, and its suffix there in lower case; null where its name has none."""
    match = _NAME.fullmatch(member)
    return (match[1], match[2].lower()) if match else None


class WebdatasetSource(Source):
    """Every sample gives one item: its member of the modality, or the text in one of its columns.

    The other members of a sample that hold words (`.cls`, `.txt`, ...) or an object (`.json`) are its attributes, and
    so are `__key__`, its name, and `__shard__`, the path of its tar without suffix. Both together are its key:
    WebDataset knows samples by their tar, and many data sets count anew in each.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(ChecksumSettings, TimeSettings, RemoteSettings):
        files: Names | None = None  # the tars: folder, glob, path, URL; or several
        member: Names | None = None  # suffix of the item in its sample: jpg, or seg.png; or several that it may have
        column: str | None = None  # of text: the column that holds it, such as txt, or a name in .json
        key: Names | None = None  # column that `align` joins on; several are one key. Default: shard and name
        path: str | None = None  # what parts of each shard's path are: "{split}-*" (`PathPattern`)
        encoding: str = "utf-8"  # of texts, labels and the names of members
        follow_links: bool = False  # true: links that lead out of the folder are followed, and not refused

        def __post_init__(self) -> None:
            super().__post_init__()
            check_encoding(self.encoding)

        @property
        def place(self) -> str:
            return ", ".join(self.files or ())

    def __init__(self, root: Path, options: Options) -> None:
        super().__init__(root, options)
        assert options.files is not None
        self.encoding = options.encoding
        self._own = frozenset(suffix.lower().lstrip(".") for suffix in options.member or ())
        self._files = FileListing(options.files, root, options.encoding, options.follow_links, options)
        self._pattern = None if options.path is None else PathPattern(options.path)
        self._archives = Archives(options)

    def __str__(self) -> str:
        return str(self._files)

    @classmethod
    def check(cls, modality: str, options: Options) -> None:
        if not options.files:
            raise ValueError("has no files: say where the shards lie")
        is_text = MODALITIES.load(modality).is_text
        if (options.member is None) == (options.column is None):
            column = ", or a `column` that holds the text" if is_text else ""
            raise ValueError(f"needs the suffix of its items in each sample as `member`, such as jpg or wav{column}")
        if options.path is not None:
            PathPattern(options.path)

    @classmethod
    def make(cls, root: Path, options: Options, modality: str, vectors: bool = False) -> Source:
        if options.column is not None and not (vectors or MODALITIES.load(modality).is_text):
            raise SourceError(
                f"{', '.join(options.files or ())}: {modality} lies in no column: name its suffix as `member`, such as "
                f"jpg or wav; vectors lie in one where features.{modality} are of kind vector"
            )
        return super().make(root, options, modality, vectors)

    def exists(self) -> bool:
        return self._files.exist()

    def files(self) -> Iterable[Entry]:
        return self._files.files()

    def by_file(self, files: Sequence[Entry]) -> bool:
        return self.options.checksum is None and self.options.key != (KEY,)  # which must be of one shard only

    def list(self) -> Iterator[Entry]:
        return self.list_files(None)

    def list_files(self, uris: Collection[str] | None) -> Iterator[Entry]:
        held: dict[int, bytes] = {}  # offset -> content of what one shard has as columns
        seen: dict[str, str] = {}  # key -> its shard, where samples are known by their name alone

        def visit(name: bytes, file: BinaryIO, offset: int, size: int) -> None:
            suffix = name.rpartition(b"/")[2].partition(b".")[2].lower().decode("ascii", "replace")
            if suffix in _COLUMNS - self._own and size <= _LARGEST:
                file.seek(offset)
                held[offset] = file.read(size)

        for shard, members in self._files.shards(visit, uris):
            name = (shard.key or "").removesuffix(".tar")
            fields = {} if self._pattern is None else self._pattern.read(name)
            if shard.reason is None and fields is None:
                shard.refuse("bad_name", f"its path does not fit `path` ({self._pattern}); correct it, or move it out")
            if shard.reason is not None:
                yield shard
                continue
            for entry in self._items(shard, members, {**(fields or {}), SHARD: name}, held):
                if self.options.key == (KEY,) and entry.key is not None and entry.reason is None:
                    first = seen.setdefault(entry.key, shard.uri)
                    if first != shard.uri:
                        entry.refuse("ambiguous", f"{first} has a sample {entry.key!r}, too: leave out `key: {KEY}`")
                yield entry
            held.clear()

    def _items(self, shard: Entry, members: Entries, fields: dict[str, str], held: dict[int, bytes]) -> Iterator[Entry]:
        """What one shard holds. Members of suffixes that nobody asked for are passed over, as WebDataset does."""
        samples: dict[str, Sample] = {}
        for entry in members:
            if entry.reason in ("bad_name", "outside_root"):
                yield entry  # nobody can say what it is
            elif (found := sample_of(entry.key or "")) is not None:
                samples.setdefault(found[0], {}).setdefault(found[1], []).append(entry)
        for name, sample in samples.items():
            own = [entry for suffix, entries in sample.items() if suffix in self._own for entry in entries]
            for entry in (entry for entry in own if entry.reason == "superseded"):
                entry.key = None  # the sample has another
                yield entry
            own = [entry for entry in own if entry.reason != "superseded"]
            names = [entry.key or "" for entry in own]
            item = own[0] if own else Entry(None, shard.uri, name, mtime=shard.mtime)
            columns, problem = self._read(sample, held)
            columns |= fields | {KEY: name}
            item.key = key_of(columns, self.options.key) if self.options.key else f"{fields[SHARD]}/{name}"
            if item.reason is None:
                self._complete(item, columns, problem, names)
            left_out = {self.options.column, *(self.options.key if len(self.options.key or ()) == 1 else ())}
            item.attributes = as_object({n: normalize(v) for n, v in columns.items() if n not in left_out})
            yield item

    def _complete(self, item: Entry, columns: dict[str, str], problem: str | None, own: Sequence[str]) -> None:
        """Puts time and text into an item, or why it is refused. Args: `own`: the members that could be it."""
        column = self.options.column
        if problem is not None:
            item.refuse("malformed", problem)
        elif len(own) > 1:
            item.refuse("ambiguous", f"its sample has {' and '.join(own)}: say by `member` which of them is meant")
        elif column is None and not own:
            item.refuse("absent", f"the sample has no .{', .'.join(sorted(self._own))}")
        elif column is not None and not columns.get(column):
            item.refuse("absent", f"the sample has no {column!r}; it has {', '.join(sorted(columns))}")
        elif column is not None:
            item.text = text_of_cell(columns[column]) if self.vectors else columns[column]
        try:
            item.time, item.until = read_times(columns, self.options)
        except ValueError as error:
            if item.reason is None:
                item.refuse("malformed", str(error))

    def _read(self, sample: Sample, held: dict[int, bytes]) -> tuple[dict[str, str], str | None]:
        """The columns that the members of a sample give, or why one of them cannot be read."""
        columns: dict[str, str | None] = {}
        vectors = self.options.column if self.vectors else None
        for suffix, entries in sorted(
            sample.items(), key=lambda member: member[0] in WORDS
        ):  # a member's own name wins
            entry = entries[-1]
            if suffix in self._own or suffix not in _COLUMNS:
                continue
            if entry.reason is not None:
                return {}, f"its {entry.message}"
            if (content := held.get(entry.offset or 0)) is None:
                continue  # too large for a column
            try:
                text = content.decode(self.encoding if suffix in WORDS else "utf-8").removeprefix("\ufeff")
                columns |= {suffix: text.strip()} if suffix in WORDS else _object(text, vectors)
            except UnicodeDecodeError as error:
                advice = "set `encoding` to its own" if suffix in WORDS else "JSON has to be"
                return {}, f"its {entry.key} is not {error.encoding} at byte {error.start}; {advice}"
            except (ValueError, RecursionError) as error:
                return {}, f"its {entry.key} is no JSON object ({error}); correct it"
        if (found := unstorable([*columns, *columns.values()])) is not None:
            return {}, f"its columns hold {found}; take it out"
        return {normalize(name): value for name, value in columns.items() if value}, None

    def open(self, entry: Entry) -> Iterator[bytes]:
        return iter([entry.text.encode()]) if entry.text is not None else self._archives.read(entry)

    def wholes(self) -> Entries:
        return self._files.archives()

    def changed(self, read: Mapping[str, str | int]) -> Sequence[str]:
        return self._files.changed(read)

    def signature(self) -> str:
        return signature_of(self._files.signature())


def _object(text: str, vectors: str | None) -> dict[str, str | None]:
    """The values of a JSON object as words, of vectors those of that name. Raises ValueError where it is none."""
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError(f"it is a {type(values).__name__}")
    return {name: as_text(value) for name, value in values.items() if name == vectors or not is_vector(value)}
