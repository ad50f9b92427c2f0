"""The contract of segments: how the items of a source are cut into parts that are contents of their own."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from assets.names import as_object
from assets.sources.base import Entry, Source, signature_of
from training import family
from training.family import Choice
from training.processor import package_versions
from training.schema import fingerprint

NO_SEGMENTS = "no_segments"  # the reason of an item that no row of a table of segments names
FOUND = r" [0-9a-f]{16}$"  # how a cut ends that names what finds the parts (`cut_name`)
# One of the parts that are found by words: what finds it, the fingerprint of the words of all, and its number.
NUMBERED = r"^(?P<all>(?P<name>\S+ [0-9a-f]{16}) [0-9a-f]{16}) (?P<number>\d+)$"


class Segments:
    """A kind of cutting (`segments` of a source).

    A part is named by its cut (`Modality.part`), and known by the bytes of its item and the cut: the same part of the
    same bytes is one content, whatever has cut it. Either what is cut is known where items are listed, and `entries`
    gives one for each part, or each item has parts that `cuts` finds in it. Objects can be pickled.

    A kind says its options as `Options`, a frozen dataclass with a default for each field, which may include a `table`
    with its `key`, as those of a source.
    """

    modality: ClassVar[str | None] = None  # of what it cuts; None: of whatever can be cut
    version: ClassVar[int] = 0  # count up when `cuts` gives others of the same content
    packages: ClassVar[tuple[str, ...]] = ()  # whose versions decide them
    located: ClassVar[tuple[str, ...]] = ()  # options that name models or files, which `identity` knows by content
    own_keys: ClassVar[bool] = False  # parts have other keys than their items
    finds: ClassVar[bool] = True  # by `cuts`; false: `entries` knows all parts

    def __init__(self, options: Any = None) -> None:
        self.options = options

    def entries(self, listed: Iterator[Entry], name: str, root: Path) -> Iterator[Entry]:
        """The entries of a source with the `cut` of each, and what cannot be cut refused.

        Args:
            listed: as the source lists them.
            name: what stands for `cuts`, which finds the parts.
            root: folder of the project file.

        Raises:
            SourceError: a table cannot be read as a whole, or fits nothing of the source.
        """
        for entry in listed:
            entry.cut = name
            yield entry

    def cuts(self, content: Any, words: Sequence[str] = ()) -> Sequence[str]:
        """The parts of a content, in order.

        Args:
            words: of each part, where `entries` has told them (`numbered`).

        Raises:
            MediaError: it has none.
        """
        raise NotImplementedError

    def identity(self) -> Any:
        """What a fingerprint knows of the `located` options: the content of their files, wherever they lie."""
        return None

    def exists(self, root: Path) -> bool:
        """Whether what it reads is there."""
        return True

    def signature(self, root: Path) -> Sequence[Any]:
        """What changes when something that it reads does."""
        return ()


def cut_name(choice: Choice, segments: Segments) -> str:
    """What the manifest has as the cut of items whose parts `cuts` finds: another one where it may find others."""
    versions = package_versions(segments.packages)
    if segments.located:
        options = {name: value for name, value in choice.options.items() if name not in segments.located}
        choice = Choice(choice.kind, options)
        versions["located"] = segments.identity()
    return f"{choice.kind} {fingerprint('segments', family.identity(choice), segments.version, versions)}"


def numbered(entry: Entry, name: str, values: Mapping[str, str], words: Sequence[str]) -> Iterator[Entry]:
    """An item for each of the parts that `cuts` finds by their words. Each keeps its own words only, as its attribute
    `text`: those of all are told together where the item is decoded (`assets.featurizing`).

    Args:
        name: what stands for `cuts`.
        values: further attributes of each.
        words: of each part, in order.
    """
    all_words = fingerprint(*words)
    for number, text in enumerate(words, 1):
        key = None if entry.key is None else f"{entry.key}/{number}"
        attributes = as_object({**values, "text": text, "number": str(number)})
        yield replace(entry, key=key, cut=f"{name} {all_words} {number}", attributes=attributes)


def found_by(cut: str) -> tuple[str, str, int | None]:
    """What stands for `cuts`, what all parts that it finds at once have in common, and the number of this one (None:
    the item is all of them)."""
    found = re.fullmatch(NUMBERED, cut)
    return (found["name"], found["all"], int(found["number"])) if found else (cut, cut, None)


def content_id(parent: str, cut: str) -> str:
    """The id of a part. Args: `parent` is the hash of the item's bytes."""
    return hashlib.sha256(f"{parent}\0{cut}".encode()).hexdigest()


def _with(entry: Entry, column: str) -> Entry:
    """With its key as a column."""
    if entry.reason is not None or entry.key is None:
        return entry
    return replace(entry, attributes=as_object({**json.loads(entry.attributes), column: entry.key}))


class CutSource(Source):
    """A source whose items are cut: it lists their parts, and reads the bytes of the whole."""

    def __init__(self, source: Source, segments: Segments, name: str) -> None:
        super().__init__(source.root, source.options)
        self._source, self._segments, self._name = source, segments, name
        self.encoding, self.vectors = source.encoding, source.vectors

    def __str__(self) -> str:
        return str(self._source)

    def exists(self) -> bool:
        return self._source.exists() and self._segments.exists(self.root)

    def list(self) -> Iterator[Entry]:
        listed = self._source.list()
        key: Sequence[str] = getattr(self.options, "key", None) or ()
        if self._segments.own_keys and len(key) == 1:  # what was the key stays a column; of several columns it is one
            listed = (_with(entry, key[0]) for entry in listed)
        yield from self._segments.entries(listed, self._name, self.root)

    def open(self, entry: Entry) -> Iterator[bytes]:
        yield from self._source.open(entry)

    def wholes(self) -> Iterable[Entry]:
        return self._source.wholes()

    def changed(self, read: Mapping[str, str | int]) -> Sequence[str]:
        return self._source.changed(read)

    def signature(self) -> str:
        return signature_of([self._name, self._source.signature(), *self._segments.signature(self.root)])
