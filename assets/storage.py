"""Where bytes lie: on local disks, which only this module knows, or behind any URL that fsspec knows."""

import glob
import os
import posixpath
import re
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from assets.sources.base import Entry, SourceError

PIECE = 2**20  # bytes that are read at once
_REMOTE_PIECE = 8 * 2**20  # of one request
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# A file changed this shortly ago may change again within the same tick: of a coarse file system, of the kernel's clock.
_RACY_SECONDS = 2
_TICK_SECONDS = 0.05
# What drivers of fsspec call the time of the last change.
_TIMES = ("mtime", "LastModified", "last_modified", "modified", "updated")


def is_outside(name: str) -> bool:
    """Whether a file name from a table or archive is anything but a plain path below a folder."""
    absolute = name.startswith("/") or re.match(r"[A-Za-z]:[\\/]|[A-Za-z][A-Za-z0-9+.-]+:/", name)
    return bool(absolute) or "\\" in name or ".." in name.split("/")


def is_utf8(name: str) -> bool:
    return name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name)


def printable(name: str) -> str:
    """The name with what is not UTF-8 written out."""
    return name.encode("utf-8", "backslashreplace").decode()


class Location(ABC):
    """A file, a folder or a glob; `uri` names it for good, `str` as the project file does."""

    uri: str

    @property
    def suffix(self) -> str:
        """Of the file's name, in lower case: .csv"""
        return posixpath.splitext(self.uri)[1].lower()

    @abstractmethod
    def exists(self) -> bool: ...

    @abstractmethod
    def is_folder(self) -> bool: ...

    @abstractmethod
    def is_file(self) -> bool: ...

    @abstractmethod
    def entry(self) -> Entry:
        """The file as an entry, whose key is its name. Raises OSError."""

    @abstractmethod
    def open(self) -> BinaryIO:
        """The file, to read and to seek in. Raises OSError."""

    @abstractmethod
    def files(self) -> list[Entry]:
        """Every file below the folder; keys are paths within it. Hidden files and folders (.name) are no items."""

    @abstractmethod
    def matches(self) -> tuple["Location", list[Entry]]:
        """The folder that a glob starts from, and the files below it that match."""


class Bytes(ABC):
    """A file opened to be read anywhere in it, by several threads at once."""

    piece = PIECE

    @abstractmethod
    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes, fewer where the file ends. Raises OSError."""

    def pieces(self, offset: int, size: int) -> Iterator[bytes]:
        """`size` bytes in pieces. Raises OSError, and ValueError where the file ends before."""
        while size > 0:
            piece = self.read(offset, min(size, self.piece))
            if not piece:
                raise ValueError(f"ends {size} bytes too early")
            offset, size = offset + len(piece), size - len(piece)
            yield piece

    @abstractmethod
    def close(self) -> None:
        """Gives back what has been opened; also done when the object goes."""


def locate(name: str | Path, root: Path | None = None) -> Location:
    """What a path (relative to `root`) or URL names. Raises SourceError if no driver knows the URL."""
    name = str(name)
    if not _URL.match(name):
        return _LocalLocation((root or Path()) / name)
    if name.startswith(("file://", "local://")):
        from fsspec.implementations.local import LocalFileSystem

        return _LocalLocation(Path(LocalFileSystem._strip_protocol(name)))
    return _RemoteLocation(name)


def opened(uri: str) -> Bytes:
    """The file of a `uri` that was listed. Raises OSError if it cannot be opened."""
    return _RemoteBytes(uri) if _URL.match(uri) else _LocalBytes(uri)


def last_change(status: os.stat_result) -> int | None:
    """Microseconds since 1970, or null where the file may still change without its times changing.

    The later of mtime and ctime: ``cp -p`` and ``rsync -t`` set the first, nothing sets the second.
    """
    now = time.time()
    if status.st_mtime > now - _RACY_SECONDS or status.st_ctime > now - _TICK_SECONDS:
        return None
    return max(status.st_mtime_ns, status.st_ctime_ns) // 1000


class _LocalBytes(Bytes):
    def __init__(self, path: str) -> None:
        self._descriptor: int | None = None
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, offset: int, size: int) -> bytes:
        assert self._descriptor is not None, "it was closed"
        return os.pread(self._descriptor, size, offset)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    __del__ = close


class _LocalLocation(Location):
    def __init__(self, path: Path) -> None:
        self._path, self.uri = path, str(path.resolve())

    def __str__(self) -> str:
        return str(self._path)

    def exists(self) -> bool:
        return self._path.exists()

    def is_folder(self) -> bool:
        return self._path.is_dir()

    def is_file(self) -> bool:
        return self._path.is_file()

    def entry(self) -> Entry:
        return _local_entry(self._path.name, self.uri, self._path.stat())

    def open(self) -> BinaryIO:
        return self._path.open("rb")

    def matches(self) -> tuple[Location, list[Entry]]:
        parts = self._path.parts
        fixed = next(n for n, part in enumerate(parts) if glob.has_magic(part))
        folder = Path(*parts[:fixed])
        names = set(glob.glob("/".join(parts[fixed:]), root_dir=folder, recursive=True))
        # A link to a folder elsewhere is refused as one thing, whatever matches behind it.
        linked = {name[: n + 1] for name in names for n in range(len(name)) if name[n + 1 : n + 2] == "/"}
        base = _LocalLocation(folder)
        return base, [e for e in base.files() if e.key in names or (e.reason and e.key in linked)]

    def files(self) -> list[Entry]:
        base = os.path.realpath(self._path)
        entries, pending = [], [""]
        while pending:
            prefix = pending.pop()
            try:
                with os.scandir(os.path.join(base, prefix)) as listing:
                    children = [child for child in listing if not child.name.startswith(".")]
            except OSError as error:
                folder = Entry(prefix.rstrip("/"), os.path.join(base, prefix))
                entries.append(folder.refuse("unreadable", str(error)))
                continue
            for child in children:
                name = prefix + child.name
                if child.is_dir(follow_symlinks=False):
                    pending.append(name + "/")
                elif (entry := _child(name, child, base)) is not None:
                    entries.append(entry)
        return entries


def _child(name: str, child: os.DirEntry[str], base: str) -> Entry | None:
    """A file of a local folder; links are followed only to files within the folder."""
    if not is_utf8(name):
        entry = Entry(printable(name), printable(child.path))
        return entry.refuse("bad_name", "the file's name is not UTF-8; rename it")
    if child.is_symlink():
        target = os.path.realpath(child.path)
        if not (target + os.sep).startswith(base + os.sep):
            return Entry(name, child.path).refuse("outside_root", f"a link that leaves {base}; it was not opened")
        if not os.path.exists(target):
            return Entry(name, child.path).refuse("not_found", "a link to nothing")
        if os.path.isdir(target):
            return None  # its files are listed where they lie
    try:
        status = child.stat()
    except OSError as error:
        return Entry(name, child.path).refuse("unreadable", str(error))
    if not stat.S_ISREG(status.st_mode):
        return Entry(name, child.path).refuse("unsupported", "neither a file nor a folder")
    return _local_entry(name, child.path, status)


def _local_entry(name: str, uri: str, status: os.stat_result) -> Entry:
    return Entry(name, uri, size=status.st_size, mtime=last_change(status), version=status.st_mtime_ns)


def _filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:  # no such protocol, or its driver is not installed
        raise SourceError(f"{url}: cannot be opened: {error}") from None


class _RemoteBytes(Bytes):
    piece = _REMOTE_PIECE

    def __init__(self, url: str) -> None:
        self._files, self._path = _filesystem(url)

    def read(self, offset: int, size: int) -> bytes:
        return self._files.cat_file(self._path, start=offset, end=offset + size)

    def close(self) -> None:
        """Nothing is kept open: every read is a request."""


class _RemoteLocation(Location):
    def __init__(self, url: str) -> None:
        self.uri = url if url.endswith("://") else url.rstrip("/")
        _filesystem(url)

    def __str__(self) -> str:
        return self.uri

    def _fresh(self) -> tuple[Any, str]:
        files, path = _filesystem(self.uri)
        files.invalidate_cache()  # drivers remember listings as long as the process lives
        return files, path

    def exists(self) -> bool:
        files, path = self._fresh()
        return files.exists(path)

    def is_folder(self) -> bool:
        files, path = self._fresh()
        return files.isdir(path)

    def is_file(self) -> bool:
        files, path = self._fresh()
        return files.isfile(path)

    def entry(self) -> Entry:
        files, path = self._fresh()
        return _remote_entry(posixpath.basename(path), self.uri, files, path, files.info(path))

    def open(self) -> BinaryIO:
        files, path = self._fresh()
        return files.open(path, "rb")

    def files(self) -> list[Entry]:
        files, path = self._fresh()
        return list(self._entries(files, path, files.find(path, detail=True)))

    def matches(self) -> tuple[Location, list[Entry]]:
        parts = self.uri.split("/")
        fixed = next(n for n, part in enumerate(parts) if glob.has_magic(part))
        folder = _RemoteLocation("/".join(parts[:fixed]))
        files, pattern = self._fresh()
        return folder, list(folder._entries(files, _filesystem(folder.uri)[1], files.glob(pattern, detail=True)))

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
    reliable = changed is not None and changed <= time.time() - _RACY_SECONDS
    mtime = int(changed * 1_000_000) if changed is not None and reliable else None
    version = f"{changed or ''} {info.get('ETag') or info.get('etag') or ''}".strip()
    return Entry(name, uri, size=info.get("size") or 0, mtime=mtime, version=version)
