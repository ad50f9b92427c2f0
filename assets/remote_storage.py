"""Bytes behind URLs: of S3 (`assets.object_store`) and of all that fsspec has a driver for. Whatever drivers raise ends
as OSError, or FileNotFoundError."""

import contextlib
import glob
import posixpath
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, BinaryIO

from assets.object_store import SCHEMES, ObjectBytes, object_store, open_object
from assets.remote_settings import ANYWHERE, RemoteSettings
from assets.sources.base import Entry, SourceError
from assets.storage import RACY_SECONDS, Bytes, Location, is_outside

_PIECE = 8 * 2**20  # of one request
# What drivers of fsspec call the time of the last change.
_TIMES = ("mtime", "LastModified", "last_modified", "modified", "updated")


def open_remote(url: str, access: RemoteSettings) -> Bytes:
    """The file of a URL. Raises OSError if it cannot be opened."""
    with _driver():
        return ObjectBytes(url, access) if _is_object(url) else RemoteBytes(url)


def _is_object(url: str) -> bool:
    return url.partition("://")[0].lower() in SCHEMES


def _filesystem(url: str, access: RemoteSettings = ANYWHERE) -> tuple[Any, str]:
    """The file system of a URL, as fsspec has it, and the path in it. Raises SourceError, or OSError (`_driver`)."""
    import fsspec

    with _driver():
        if _is_object(url):
            return object_store(url, access)
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

    @property
    def size(self) -> int | None:
        with _driver():
            return self._files.info(self._path).get("size")

    def read(self, offset: int, size: int) -> bytes:
        with _driver():
            return self._files.cat_file(self._path, start=offset, end=offset + size)

    def close(self) -> None:
        """Nothing is kept open: every read is a request."""


class RemoteLocation(Location):
    watched = True

    def __init__(self, url: str, access: RemoteSettings = ANYWHERE) -> None:
        self.uri = self.given = url if url.endswith("://") else url.rstrip("/")
        self._access = access
        if not _is_object(url):
            _filesystem(url)  # a driver that is not there is told at once

    def __str__(self) -> str:
        return self.uri

    @contextlib.contextmanager
    def _fresh(self) -> Iterator[tuple[Any, str]]:
        """File system and path; what is asked of them is asked anew, and fails with OSError."""
        files, path = _filesystem(self.uri, self._access)
        with _driver():
            files.invalidate_cache()  # drivers remember listings as long as the process lives
            yield files, path

    def _kind(self) -> str | None:
        """file or directory; null where nothing is. A store that does not answer raises OSError: fsspec's own questions
        would say that nothing is there."""
        with self._fresh() as (files, path):
            try:
                return files.info(path)["type"]
            except FileNotFoundError:
                return None

    def exists(self) -> bool:
        return self._kind() is not None

    def is_folder(self) -> bool:
        return self._kind() == "directory"

    def is_file(self) -> bool:
        return self._kind() == "file"

    def entry(self) -> Entry:
        with self._fresh() as (files, path):
            info = files.info(path)
            if _is_object(self.uri):
                info = info | {"ETag": files.etag(path)}
            return _remote_entry(posixpath.basename(path), self.uri, files, path, info)

    def open(self) -> BinaryIO:
        with self._fresh() as (files, path):
            return open_object(self.uri, self._access) if _is_object(self.uri) else files.open(path, "rb")

    def files(self, follow_links: bool = False) -> list[Entry]:
        with self._fresh() as (files, path):
            return list(self._entries(files, path, files.find(path, detail=True)))

    def matches(self, follow_links: bool = False) -> tuple[Location, list[Entry]]:
        parts = self.uri.split("/")
        fixed = next(n for n, part in enumerate(parts) if glob.has_magic(part))
        folder = RemoteLocation("/".join(parts[:fixed]), self._access)
        with self._fresh() as (files, pattern):
            base = files._strip_protocol(folder.uri)
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
    etag = info.get("ETag") or info.get("etag")
    entry = Entry(name, uri, size=info.get("size") or 0, version=f"{changed or ''} {etag or ''}".strip())
    if changed is None or changed <= time.time() - RACY_SECONDS:  # else it may change again within the clock's tick
        entry.mtime, entry.etag = int(changed * 1_000_000) if changed is not None else None, etag
    return entry
