"""Archives and tables held, as a whole, against the checksums that the project file says of them.

That takes to read all of a file, which is done where it has changed since: the `etag` of the rows that lie in it says
what it was held against.
"""

import hashlib
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from assets.sources.base import Entry, Source, SourceError
from assets.storage import opened
from training.validation import check

is_sha256 = re.compile("[0-9a-fA-F]{64}").fullmatch
_MARK = r" ?sha256:[0-9a-f]{64}$"  # behind what the store says


@dataclass(frozen=True, kw_only=True)
class ChecksumSettings:
    # SHA-256 of the source's one archive or table; of several by the name of each: {photos.tar: 9f86d081...}
    checksum: str | Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        others: Any = super()
        others.__post_init__()
        said = [self.checksum] if isinstance(self.checksum, str) else (self.checksum or {}).values()
        for value in said:
            check(is_sha256(value) is not None, "checksum", value, "64 hex digits, or these by the name of each file")


def hold(source: Source, previous: pa.Table | None) -> dict[str, str]:
    """Reads the files that have a checksum, but for those that are as `previous` has them.

    Args:
        previous: manifest rows of the last scan.

    Returns:
        URI -> the etag of the rows that lie in it.

    Raises:
        SourceError: a file has another checksum, or none has such a name.
    """
    said = getattr(source.options, "checksum", None)
    if said is None:
        return {}
    held, marks = _held(previous), dict[str, str]()
    for whole, expected in _expected(list(source.wholes()), said, source):
        mark = f"{whole.etag or ''} sha256:{expected}".strip()
        if (whole.mtime, whole.etag) == (None, None) or (whole.uri, whole.mtime, mark) not in held:
            _compare(whole, expected, source)
        marks[whole.uri] = mark
    return marks


def without_marks(previous: pa.Table) -> pa.Table:
    """Manifest rows whose etags are again what the store has said."""
    etags = pc.replace_substring_regex(previous["etag"], _MARK, "")
    etags = pc.if_else(pc.equal(etags, ""), None, etags)
    return previous.set_column(previous.schema.get_field_index("etag"), "etag", etags)


def _held(previous: pa.Table | None) -> set[tuple[Any, ...]]:
    if previous is None:
        return set()
    marked = previous.filter(pc.match_substring_regex(previous["etag"], _MARK)).select(["uri", "mtime", "etag"])
    rows = marked.group_by(["uri", "mtime", "etag"]).aggregate([])
    return set(
        zip(rows["uri"].to_pylist(), rows["mtime"].cast(pa.int64()).to_pylist(), rows["etag"].to_pylist(), strict=True)
    )


def _expected(wholes: list[Entry], said: str | Mapping[str, str], source: Source) -> Iterator[tuple[Entry, str]]:
    names = [posixpath.basename(whole.key or whole.uri) for whole in wholes]
    if isinstance(said, str):
        if len(wholes) != 1:
            there = f"there are {len(wholes)}: say it by their names" if wholes else "there is none"
            raise SourceError(f"{source}: checksum is of one archive or table, and {there}")
        said = {names[0]: said}
    for name, digest in said.items():
        if name not in names:
            there = ", ".join(sorted(names)) or "none"
            raise SourceError(
                f"{source}: checksum names {name!r}, which is no archive or table of it: there is {there}"
            )
        yield from ((whole, digest.lower()) for whole, called in zip(wholes, names, strict=True) if called == name)


def _compare(whole: Entry, expected: str, source: Source) -> None:
    digest = hashlib.sha256()
    try:
        file = opened(whole.uri, source.options, whole.etag)
        try:
            for piece in file.whole(whole.size):
                digest.update(piece)
        finally:
            file.close()
    except (OSError, ValueError) as error:
        raise SourceError(f"{whole.uri}: cannot be held against its checksum: {error}") from None
    if digest.hexdigest() != expected:
        raise SourceError(
            f"{whole.uri}: its SHA-256 is {digest.hexdigest()}, and `checksum` says {expected}; get the file anew, or "
            "correct what is said"
        )
