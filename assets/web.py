"""Files behind http(s): asked for by HEAD, read by GET, and gone on with (Range, If-Range) where that breaks off."""

import contextlib
import posixpath
import re
import tempfile
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any, BinaryIO, NamedTuple, cast
from urllib.parse import unquote, urlsplit

from assets import web_requests
from assets.range_file import RangeFile
from assets.remote_settings import RemoteSettings
from assets.sources.base import Entry, SourceError
from assets.storage import PIECE, RACY_SECONDS, Bytes, Location
from assets.web_requests import BrokenOffError, asked
from training.credentials import mask

_READ = 2**16  # bytes; what had come of such a part is lost where it breaks off
_GONE = (404, 410)
_NO_HEAD = (400, 401, 403, 405, 501)  # of servers, or signed URLs, that know GET alone
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


def _refusal(status: int, reason: str | None) -> OSError:
    return OSError(f"the server answers {status} {reason or ''}".rstrip())


class _Facts(NamedTuple):
    size: int | None  # None: it does not say
    etag: str | None
    modified: float | None  # seconds since 1970
    ranges: bool  # it gives parts
    fresh: bool  # it may change again within the clock's tick

    @classmethod
    def of(cls, headers: Any, size: int | None) -> "_Facts":
        modified, now = _time(headers.get("Last-Modified")), _time(headers.get("Date")) or time.time()
        fresh = modified is not None and modified > now - RACY_SECONDS
        return cls(size, headers.get("ETag"), modified, headers.get("Accept-Ranges") == "bytes", fresh)


def _time(text: str | None) -> float | None:
    with contextlib.suppress(TypeError, ValueError):
        return parsedate_to_datetime(text or "").timestamp()
    return None


class WebLocation(Location):
    """One file: a web server lists none. What it says of it is asked once."""

    globs = False

    def __init__(self, url: str, access: RemoteSettings) -> None:
        self._url, self._access = url, access
        self.uri = self.given = mask(url)

    def __str__(self) -> str:
        return self.uri

    @property
    def name(self) -> str:
        return unquote(posixpath.basename(urlsplit(self._url).path))

    @cached_property
    def _facts(self) -> _Facts | None:
        with asked("HEAD", self._url, self._access) as answer:
            if answer.status in _GONE:
                return None
            if answer.status == 200:
                return _Facts.of(answer.headers, _length(answer) or None)  # some say 0 that do not count
            if answer.status not in _NO_HEAD:
                raise _refusal(answer.status, answer.reason)
        with asked("GET", self._url, self._access, Range="bytes=0-0") as answer:
            if answer.status in _GONE:
                return None
            if answer.status not in (200, 206):
                raise _refusal(answer.status, answer.reason)
            part = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
            is_part = answer.status == 206
            size = int(part[3]) if part else None if is_part else _length(answer)
            return _Facts.of(answer.headers, size)._replace(ranges=is_part)

    def exists(self) -> bool:
        return self._facts is not None

    is_file = exists

    def is_folder(self) -> bool:
        return False

    def entry(self) -> Entry:
        if (facts := self._facts) is None:
            raise FileNotFoundError(f"{self}: no such file")
        version = f"{facts.modified or ''} {facts.etag or ''}".strip()
        entry = Entry(self.name or self.uri, self.uri, size=-1 if facts.size is None else facts.size, version=version)
        if not facts.fresh:
            entry.etag, entry.mtime = facts.etag, None if facts.modified is None else int(facts.modified * 1_000_000)
        return entry

    def open(self) -> BinaryIO:
        """Its parts as they are asked for, where the server gives parts; else all of it, in a file for the time."""
        if (facts := self._facts) is None:
            raise FileNotFoundError(f"{self}: no such file")
        content = WebBytes(self._url, self._access, facts.etag)
        by_parts = self.name.lower().endswith((".tar", ".zip", ".parquet"))
        if facts.size is not None and (facts.ranges or (by_parts and self._gives_parts())):
            return RangeFile.open(content, facts.size)
        if by_parts:
            raise OSError("its server gives no parts of files (Range), which are needed here: download it first")
        file = tempfile.SpooledTemporaryFile(16 * PIECE)  # noqa: SIM115
        try:
            for piece in content.whole(-1 if facts.size is None else facts.size):
                file.write(piece)
        except ValueError as error:
            raise OSError(str(error)) from None
        file.seek(0)
        return cast(BinaryIO, file)

    def _gives_parts(self) -> bool:
        """Of a server that does not say so."""
        with asked("GET", self._url, self._access, Range="bytes=0-0") as answer:
            return answer.status == 206

    def files(self, follow_links: bool = False) -> list[Entry]:
        raise SourceError(f"{self}: a web server does not list its files; name each, an archive, or a table of URLs")

    def matches(self, follow_links: bool = False) -> tuple[Location, list[Entry]]:
        raise SourceError(f"{self}: a web server does not list its files: no glob")


def _length(answer: Any) -> int | None:
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


class WebBytes(Bytes):
    """A file behind http(s), which stays the one that it was at the first answer, or (`etag`) when it was listed."""

    piece = 8 * PIECE

    def __init__(self, url: str, access: RemoteSettings, etag: str | None = None) -> None:
        self._url, self._access = url, access
        self._etag, self._modified = etag, None

    @property
    def size(self) -> int | None:
        return None  # every answer tells, and is held against what is expected

    def read(self, offset: int, size: int) -> bytes:
        return b"".join(self._parts(offset, offset + size))

    def pieces(self, offset: int, size: int) -> Iterator[bytes]:
        left = size
        for piece in self._parts(offset, offset + size):
            left -= len(piece)
            yield piece
        if left:
            raise ValueError(f"ends {left} bytes too early; run again")

    def whole(self, size: int) -> Iterator[bytes]:
        yield from self._parts(0, None, None if size == -1 else size)

    def close(self) -> None:
        """Nothing is kept open but connections, which others use, too."""

    def _parts(self, offset: int, end: int | None, expected: int | None = None) -> Iterator[bytes]:
        """From a byte up to another, or to where the file ends.

        Args:
            end: null: all of it is wanted, `expected` bytes where that is known.
        """
        failures = 0
        while end is None or offset < end:
            try:
                with self._answered(offset, end) as (answer, at, total):
                    if end is None and expected is not None and total not in (None, expected):
                        raise ValueError(f"has {total} bytes and was listed with {expected}; run again")
                    for piece in answer.stream(_READ, decode_content=False):
                        skipped = min(len(piece), offset - at)  # a server without Range starts over
                        at += len(piece)
                        if part := piece[skipped : None if end is None else len(piece) - max(0, at - end)]:
                            offset, failures = offset + len(part), 0
                            yield part
                        if end is not None and offset >= end:
                            return
                if total is None or offset >= total:
                    if end is None and expected is not None and offset != expected:
                        raise ValueError(f"has {offset} bytes and was listed with {expected}; run again")
                    return
                raise BrokenOffError(f"its server stopped at byte {offset} of {total}")
            except BrokenOffError:
                if failures == web_requests.FAILURES:
                    raise
                time.sleep(web_requests.BACKOFF_SECONDS * 2**failures)
                failures += 1

    @contextlib.contextmanager
    def _answered(self, offset: int, end: int | None) -> Iterator[tuple[Any, int, int | None]]:
        """An answer, the byte that it starts with, and how many bytes the file has (null: it comes in chunks)."""
        headers = {}
        if offset or end is not None:
            headers["Range"] = f"bytes={offset}-{'' if end is None else end - 1}"
            strong = self._etag if self._etag and not self._etag.startswith("W/") else self._modified
            headers |= {"If-Range": strong} if offset and strong else {}
        with asked("GET", self._url, self._access, **headers) as answer:
            if answer.status in _GONE:
                raise FileNotFoundError("is not there any more")
            if answer.status == 416:
                raise ValueError(f"has become shorter than {offset} bytes; run again")
            if answer.status not in (200, 206):
                raise _refusal(answer.status, answer.reason)
            self._hold(answer.headers)
            if (packed := answer.headers.get("Content-Encoding", "identity")) != "identity":
                raise ValueError(
                    f"its server packs it (Content-Encoding: {packed}), though asked not to: download it first"
                )
            if answer.status == 206:
                part = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
                if part is None or int(part[1]) != offset:
                    raise ValueError("its server gave another part than the one asked for")
                yield answer, offset, int(part[3])
            elif end is not None and offset:
                raise ValueError("its server gives no parts of files (Range), which are needed here: download it first")
            else:
                total = _length(answer)
                if total is None and not answer.chunked:
                    raise ValueError("its server does not say how long it is, so nobody can tell whether it is whole")
                yield answer, 0, total

    def _hold(self, headers: Any) -> None:
        """Raises ValueError if this is not the file that it was."""
        etag, modified = headers.get("ETag"), headers.get("Last-Modified")
        moved = modified and self._modified and modified != self._modified  # a part may come without the second
        if moved or (self._etag or etag) != etag:
            raise ValueError("changed while it was read; run again")
        self._etag, self._modified = etag, modified or self._modified
