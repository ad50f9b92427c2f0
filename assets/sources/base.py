"""The contract of a source: it lists what exists in one silo, and gives the bytes of each item where they lie."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any


class SourceError(ValueError):
    """A source cannot be read as a whole; the message names the file and what to do."""


@dataclass(slots=True)
class Entry:
    """One item of a source; or, where `reason` says so, one thing in it that cannot be an item.

    `uri`, `member` and `offset` together say where the bytes lie: entries that agree in all three have the same bytes,
    which are read once.
    """

    key: str | None  # what `align` joins on; null: the item cannot be joined by key
    uri: str  # file, archive, table or database
    member: str | None = None  # which part of it: the path within an archive, the name of a row
    row: int | None = None  # line or row of a table, from 1
    # tar: first byte of the content; zip: first byte of the member's local header; table: rows before it
    offset: int | None = None
    size: int = 0  # bytes; of `text` it is counted for you, and -1 says that only reading the content tells
    mtime: int | None = None  # microseconds since 1970; null: not known or too fresh to rely on, so it is read again
    etag: str | None = None  # what a store calls this content; null: it does not say, or it is too fresh
    version: str | int = ""  # what tells, beside size, that the content is another, fresh or not: a time, an etag
    time: datetime | None = None  # when it was recorded, or began, with time zone
    until: datetime | None = None  # when it ended
    attributes: str = "{}"  # a JSON object of strings: what else is known of the item
    text: str | None = None  # the content itself, of a text item that need not be opened
    crc: int | None = None  # CRC-32 of the content, where the archive has it
    reason: str | None = None  # why it is refused, as a code: not_found, outside_root, ...
    message: str | None = None  # the same as a sentence that says where and what
    listing: str | None = None  # the line that lists it, as messages name it; null: named by uri and member
    expected: str | None = None  # SHA-256 that its content must have, as its table says
    cut: str | None = None  # the part of these bytes that is the item, or what finds its parts; null: all of them
    sha256: str | None = None  # of the content; put in when it has been read, by `list` where it reads it in any case

    @property
    def where(self) -> str:
        """As messages name the place of the bytes."""
        if self.member and self.listing and self.listing.startswith(f"{self.uri} "):  # a table that holds them itself
            return f"{self.listing}, {self.member}"
        return self.uri if self.member is None else f"{self.uri}: {self.member}"

    def refuse(self, reason: str, message: str) -> "Entry":
        """Says why this is no item; `message` follows the name of its place."""
        self.reason, self.message = reason, f"{self.where}: {message}"
        return self


class Source(ABC):
    """Lists one silo and reads its items.

    - `list` gives every thing that it meets exactly once, what it refuses too, and the same in the same order as long
      as nothing has changed.
    - `open` gives exactly the bytes that an entry stands for: `size` of them.
    - Nothing is unpacked or copied, and no name reaches outside the silo.
    - One object is read by several threads at once, and is pickled into worker processes: what is open stays behind.

    A kind says its settings as a frozen dataclass `Options`, each field with a default. Options called `table`, `key`
    and `column` tell `align` which columns of which table are the keys and the texts. Of a kind without a `table`, a
    property `place` of its options says in one line what it reads, without a password: two sources of one place have
    rows in common, so that a column of both is one column.
    """

    @dataclass(frozen=True)
    class Options:
        """This kind has none."""

    encoding = "utf-8"  # of text items that are opened
    vectors = False  # items that are opened are vectors, whatever the modality

    def __init__(self, root: Path, options: Any) -> None:
        """
        Args:
            root: folder of the project file, which relative paths start from.
            options: an `Options` of this kind.
        """
        self.root, self.options = root, options

    @classmethod
    def make(cls, root: Path, options: Any, modality: str, vectors: bool = False) -> "Source":
        """The source that reads what the options name; another kind where what is there asks for it.

        Args:
            modality: of its items, for kinds that read each in a way of its own.
            vectors: its items are vectors (`training.vectors`), in the place of those of the modality.
        """
        source = cls(root, options)
        source.vectors = vectors
        return source

    def __str__(self) -> str:
        """What it reads, for messages."""
        return type(self).__name__

    @classmethod
    def check(cls, modality: str, options: Any) -> None:
        """Raises ValueError if the options do not fit together or to the modality; the message follows the name."""
        return

    def exists(self) -> bool:
        """Whether there is anything to list; an `optional` source that does not exist is left out."""
        return True

    @abstractmethod
    def list(self) -> Iterator[Entry]:
        """Everything in the silo, without opening the items.

        Raises:
            SourceError: the silo cannot be read as a whole.
        """

    @abstractmethod
    def open(self, entry: Entry) -> Iterator[bytes]:
        """The bytes of an item, in pieces.

        Args:
            entry: as listed, or as the manifest has kept it: key, uri, member, row, offset, size and text.

        Raises:
            OSError: it cannot be read.
            ValueError: it is damaged.
        """

    def wholes(self) -> Iterable[Entry]:
        """The archives and tables that `checksum` can be said of (`assets.checksums`). Raises SourceError."""
        return ()

    def changed(self, read: Mapping[str, str | int]) -> Sequence[str]:
        """Which URIs do not hold what was listed any more; asked when they have been read.

        Args:
            read: URI -> `Entry.version`, as listed.
        """
        return ()

    def files(self) -> Iterable[Entry] | None:
        """The files whose sizes and times tell that `list` would give what it gave; null: nothing less tells that."""
        return None

    def by_file(self, files: Sequence[Entry]) -> bool:
        """Whether each entry of `list` lies in one of these, by its `uri`, and depends on no other one.

        Args:
            files: what `files` gives.
        """
        return False

    def list_files(self, uris: Collection[str]) -> Iterator[Entry]:
        """What `list` gives of these files, where it lists `by_file`."""
        raise NotImplementedError

    def signature(self) -> str:
        """Changes when something in the silo does; opens nothing but what it takes to list."""
        return signature_of(
            (e.key, e.uri, e.member, e.row, e.size, e.version or e.mtime, e.text, e.attributes, e.reason)
            for e in self.list()
        )


def signature_of_rows(source: Source) -> str:
    """That of what is listed, in whatever order: a query without ORDER BY has none."""
    facts = ((e.key, e.uri, e.member, e.size, e.version, e.text, e.attributes, e.reason) for e in source.list())
    return signature_of(sorted(signature_of([fact]) for fact in facts))


def signature_of(facts: Iterable[Any]) -> str:
    """16 hex digits that name a series of facts."""
    digest = hashlib.sha256()
    for fact in facts:
        digest.update(f"{fact!r}\0".encode("utf-8", "backslashreplace"))
    return digest.hexdigest()[:16]
