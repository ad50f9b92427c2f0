"""Parts that are listed: each row of a table is one, with what its other columns say of it."""

import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from assets.findings import listed as words
from assets.formats.base import Record
from assets.keys import key_of
from assets.names import as_object, normalize
from assets.segments.base import NO_SEGMENTS, Segments
from assets.sources.base import Entry, SourceError
from assets.table_settings import TableSettings
from assets.tables import read_table, table_entries, table_files
from training.validation import Names

_SHOWN = 3  # items of many in a message


@dataclass(frozen=True, kw_only=True)
class ListedOptions(TableSettings):
    """A subclass has an option called as its `whole` is, with the columns that name it: Names, default None."""

    whole: ClassVar[str]  # what is cut, in a word: recording
    table: str | None = None  # one row a part; default: the source's own
    columns: Names = ()  # names of a table without header
    key: Names | None = None  # column that is the part's key; default: it has its item's

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.table is not None and not self.named_by:
            raise ValueError(f"table: name its column that names the {self.whole}, under `{self.whole}`")
        for name in ("columns", self.whole, "key", "delimiter", "quote", "rows", "missing"):
            if self.table is None and getattr(self, name):
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected nothing unless there is a `table`")

    @property
    def named_by(self) -> tuple[str, ...]:
        """The columns that name what is cut; several are one key."""
        return getattr(self, self.whole) or ()


class ListedSegments(Segments):
    """A row names an item, by its key or by its file, and says which part of it is meant.

    Without a `table` of its own, each item of the source is one part, and the columns of its own row say which. An item
    that no row names is unmatched.
    """

    finds = False

    @property
    def asked(self) -> Sequence[str]:
        """The columns that say which part it is."""
        raise NotImplementedError

    def cut(self, values: Mapping[str, str | None]) -> str:
        """What names the part.

        Args:
            values: of the row, and of the item's own row what this one has no column for.

        Raises:
            ValueError: there is none.
        """
        raise NotImplementedError

    @property
    def also(self) -> Sequence[str]:
        """Columns that `cut` reads where they are there."""
        return ()

    @property
    def hidden(self) -> Sequence[str]:
        """Columns that are no attributes, beside a key of one column."""
        return ()

    def entries(self, listed: Iterator[Entry], name: str, root: Path) -> Iterator[Entry]:
        if self.options.table is None:
            yield from map(self._of_own_row, listed)
            return
        there = list(listed)  # in full, since a row may name any of them
        items = [entry for entry in there if entry.reason is None]
        named = _by_name(items)
        cut, missing = set[int](), list[Entry]()
        yield from (entry for entry in there if entry.reason is not None)
        for record in self._records(root):
            found, refused = self._of_row(record, items, named)
            cut.update(found)
            missing += [refused] if refused is not None and refused.reason == "not_found" else []
            yield from [refused] if refused is not None else found.values()
        whole = self.options.whole
        if missing and not cut:
            some = words([entry.key or entry.where for entry in items]) if items else "none that can be read"
            raise SourceError(
                f"{missing[0].uri}: none of its rows names a {whole} of the source: correct segments.{whole} or "
                f"its cells. The column has {words([row.member or '' for row in missing])}; the {whole}s are {some}"
            )
        for n, entry in enumerate(items):
            if n not in cut:
                yield entry.refuse(NO_SEGMENTS, f"no row of {self.options.table} names this {whole}")

    def exists(self, root: Path) -> bool:
        table = self.options.table
        return table is None or any(file.exists() for file in table_files(table, root, self.options))

    def signature(self, root: Path) -> Sequence[Any]:
        table = self.options.table
        files = [] if table is None else table_entries(table, root, self.options)
        return [(file.uri, file.size, file.version) for file in files]

    def _records(self, root: Path) -> Iterator[Record]:
        options = self.options
        asked = [*options.named_by, *(options.key or ()), *self.asked]
        return read_table(options.table, options, asked, root=root, columns=options.columns, optional=self.also)

    def _of_row(
        self, record: Record, items: Sequence[Entry], named: Mapping[str, list[int]]
    ) -> tuple[dict[int, Entry], Entry | None]:
        """The part that a row says, by the number of its item (several may have one key), or why it is none."""
        options = self.options
        called = None if record.problem is not None else key_of(record.values, options.named_by)
        numbers = named.get(called or "", [])
        key = key_of(record.values, options.key) if options.key else called
        refused = Entry(key, record.table, called, record.line, listing=record.where)
        if record.problem is not None:
            refused.reason, refused.message = "malformed", f"{record.table}: {record.problem}"
        elif called is None:
            refused.reason = "absent"
            refused.message = f"{record.where}: column {'/'.join(options.named_by)!r} names no {options.whole}"
        elif not numbers:
            refused.reason = "not_found"
            refused.message = f"{record.where}: {called!r} is no {options.whole} of the source"
        elif len({items[n].key for n in numbers}) > 1:
            several = " and ".join(items[n].where for n in numbers[:_SHOWN])
            refused.reason = "ambiguous"
            refused.message = f"{record.where}: {called!r} fits {several}; write the key of one of them"
        else:
            try:
                return {n: self._part(record, items[n]) for n in numbers}, None
            except ValueError as error:
                refused.reason, refused.message = "malformed", f"{record.where}: {error}"
        return {}, refused

    def _part(self, record: Record, item: Entry) -> Entry:
        options, values = self.options, json.loads(item.attributes)
        cut = self.cut(values | record.values)
        own = options.key or ()
        values |= json.loads(record.attributes(*self.hidden, *(own if len(own) == 1 else ())))
        key = key_of(record.values, own) if own else item.key
        row = record.line if item.row is None else item.row  # that of the item is where some sources have its bytes
        return replace(item, key=key, row=row, cut=cut, attributes=as_object(values), listing=record.where)

    def _of_own_row(self, entry: Entry) -> Entry:
        if entry.reason is not None:
            return entry
        values = json.loads(entry.attributes)
        if not any(column in values for column in self.asked):
            *names, last = map(repr, self.asked)
            return entry.refuse(NO_SEGMENTS, f"nothing in columns {', '.join(names)} and {last} says its part")
        try:
            entry.cut = self.cut(values)
        except ValueError as error:
            entry.reason, entry.message = "malformed", f"{entry.listing or entry.where}: {error}"
        return entry


def _by_name(items: Sequence[Entry]) -> dict[str, list[int]]:
    """What a table may call items -> their numbers: by key, with the suffix of the file or without it, and, where that
    is no key of another, by the name of the file."""
    by_key: dict[str, list[int]] = {}
    by_file: dict[str, list[int]] = {}
    for n, entry in enumerate(items):
        file = entry.member if entry.member is not None else entry.uri
        for key in {entry.key, entry.key and entry.key + posixpath.splitext(file)[1]} - {None}:
            by_key.setdefault(normalize(key or ""), []).append(n)
        for name in {file, posixpath.basename(file)}:
            by_file.setdefault(normalize(name), []).append(n)
    return by_file | by_key
