"""Bytes behind any URL that fsspec knows; whatever its drivers raise ends as OSError, or FileNotFoundError."""

import contextlib
import glob
import posixpath
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, BinaryIO

from assets.sources.base import Entry, SourceError
from assets.storage import RACY_SECONDS, Bytes, Location, is_outside

_PIECE = 8 * 2**20  # of one request
# What drivers of fsspec call the time of the last change.
_TIMES = ("mtime", "LastModified", "last_modified", "modified", "updated")


def _filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it. Raises SourceError, or OSError (`_driver`)."""
    import fsspec

    with _driver():
        try:
            return fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:  # no such protocol, or its driver is not installed
            raise SourceError(f"{url}: cannot be opened: {error}") from None


@contextlib.contextmanager
def _driver() -> Iterator[None]:
    """The border of the drivers: each has exceptions of its own for no network, no right, no such bucket."""
    try:
        yield
    except (OSError, SourceError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


class RemoteBytes(Bytes):
    piece = _PIECE

    def __init__(self, url: str) -> None:
        self._files, self._path = _filesystem(url)

    def read(self, offset: int, size: int) -> bytes:
        with _driver():
            return self._files.cat_file(self._path, start=offset, end=offset + size)

    def close(self) -> None:
        """Nothing is kept open: every read is a request."""


class RemoteLocation(Location):
    def __init__(self, url: str) -> None:
        self.uri = self.given = url if url.endswith("://") else url.rstrip("/")
        _filesystem(url)

    def __str__(self) -> str:
        return self.uri

    @contextlib.contextmanager
    def _fresh(self) -> Iterator[tuple[Any, str]]:
        """File system and path; what is asked of them is asked anew, and fails with OSError."""
        files, path = _filesystem(self.uri)
        with _driver():
            files.invalidate_cache()  # drivers remember listings as long as the process lives
            yield files, path

    def exists(self) -> bool:
        with self._fresh() as (files, path):
            return files.exists(path)

    def is_folder(self) -> bool:
        with self._fresh() as (files, path):
            return files.isdir(path)

    def is_file(self) -> bool:
        with self._fresh() as (files, path):
            return files.isfile(path)

    def entry(self) -> Entry:
        with self._fresh() as (files, path):
            return _remote_entry(posixpath.basename(path), self.uri, files, path, files.info(path))

    def open(self) -> BinaryIO:
        with self._fresh() as (files, path):
            return files.open(path, "rb")

    def files(self, follow_links: bool = False) -> list[Entry]:
        with self._fresh() as (files, path):
            return list(self._entries(files, path, files.find(path, detail=True)))

    def matches(self, follow_links: bool = False) -> tuple[Location, list[Entry]]:
        parts = self.uri.split("/")
        fixed = next(n for n, part in enumerate(parts) if glob.has_magic(part))
        folder = RemoteLocation("/".join(parts[:fixed]))
        with self._fresh() as (files, pattern):
            base = _filesystem(folder.uri)[1]
            return folder, list(folder._entries(files, base, files.glob(pattern, detail=True)))

    def _entries(self, files: Any, base: str, infos: dict[str, dict[str, Any]]) -> Iterator[Entry]:
        for path, info in infos.items():
            name = path.removeprefix(base.rstrip("/") + "/")
            uri = f"{self.uri}/{name}"
            if info.get("type") == "directory" or any(part.startswith(".") for part in name.split("/")):
                continue
            if is_outside(name):
                yield Entry(name, uri).refuse("outside_root", f"a path that leaves {self}; it was not opened")
            else:
                yield _remote_entry(name, uri, files, path, info)


def _remote_entry(name: str, uri: str, files: Any, path: str, info: dict[str, Any]) -> Entry:
    changed = next((info[key] for key in _TIMES if info.get(key)), None)
    if changed is None:
        try:
            changed = files.modified(path)
        except NotImplementedError:
            changed = None  # size is all that there is to go by: it is read again
    if isinstance(changed, str):
        changed = datetime.fromisoformat(changed)
    if isinstance(changed, datetime):
        changed = (changed if changed.tzinfo else changed.replace(tzinfo=UTC)).timestamp()
    reliable = changed is not None and changed <= time.time() - RACY_SECONDS
    mtime = int(changed * 1_000_000) if changed is not None and reliable else None
    version = f"{changed or ''} {info.get('ETag') or info.get('etag') or ''}".strip()
    return Entry(name, uri, size=info.get("size") or 0, mtime=mtime, version=version)
