"""Where bytes lie: on local disks, which only this module knows, or behind a URL."""

import glob
import os
import posixpath
import re
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from assets.remote_settings import ANYWHERE, RemoteSettings
from assets.sources.base import Entry, SourceError

PIECE = 2**20  # bytes that are read at once
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# A file changed this shortly ago may change again within the same tick: of a coarse file system, of the kernel's clock.
RACY_SECONDS = 2
_TICK_SECONDS = 0.05


class PrivateAddressError(SourceError):
    """A URL leads to this machine or into a private network, and its source does not allow that."""


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
    """A file, a folder or a glob; `uri` names it for good, `str` as the project file does.

    What a disk, a network or a driver refuses ends as OSError.
    """

    uri: str
    given: str  # its full name before links in it are followed
    globs = True  # where * ? [ stand in a name, it is a glob
    watched = False  # it is looked at again when it has been read: it may have changed meanwhile, and nothing said so

    @property
    def name(self) -> str:
        """Of the file."""
        return posixpath.basename(self.uri)

    @abstractmethod
    def exists(self) -> bool: ...

    @abstractmethod
    def is_folder(self) -> bool: ...

    @abstractmethod
    def is_file(self) -> bool: ...

    @abstractmethod
    def entry(self) -> Entry:
        """The file as an entry, whose key is its name."""

    @abstractmethod
    def open(self) -> BinaryIO:
        """The file, to read and to seek in."""

    @abstractmethod
    def files(self, follow_links: bool = False) -> list[Entry]:
        """Every file below the folder; keys are paths within it. Hidden files and folders (.name) are no items.

        Args:
            follow_links: links that leave the folder are followed, too, and not refused.
        """

    @abstractmethod
    def matches(self, follow_links: bool = False) -> tuple["Location", list[Entry]]:
        """The folder that a glob starts from, and the files below it that match."""


class Bytes(ABC):
    """A file opened to be read anywhere in it, by several threads at once."""

    piece = PIECE

    @property
    @abstractmethod
    def size(self) -> int | None:
        """Of the whole file, as it is now; null where nothing tells."""

    @abstractmethod
    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes, fewer where the file ends. Raises OSError."""

    def pieces(self, offset: int, size: int) -> Iterator[bytes]:
        """`size` bytes in pieces. Raises OSError, and ValueError where the file ends before."""
        while size > 0:
            piece = self.read(offset, min(size, self.piece))
            if not piece:
                raise ValueError(f"ends {size} bytes too early; copy it again")
            offset, size = offset + len(piece), size - len(piece)
            yield piece

    def whole(self, size: int) -> Iterator[bytes]:
        """All of it, in pieces; `size` as it was listed. Raises OSError, and ValueError where it is not that long."""
        if self.size not in (None, size):
            raise ValueError(f"has {self.size} bytes and was listed with {size}; run again")
        yield from self.pieces(0, size)

    @abstractmethod
    def close(self) -> None:
        """Gives back what has been opened; also done when the object goes."""


def locate(name: str | Path, root: Path | None = None, access: RemoteSettings = ANYWHERE) -> Location:
    """What a path (relative to `root`) or URL names. Raises SourceError if no driver knows the URL."""
    name = str(name)
    if not _URL.match(name):
        return _LocalLocation((root or Path()) / name)
    if name.startswith(("file://", "local://")):
        from fsspec.implementations.local import LocalFileSystem

        return _LocalLocation(Path(LocalFileSystem._strip_protocol(name)))
    if is_web(name):
        from assets.web import WebLocation

        return WebLocation(name, access)
    from assets.remote_storage import RemoteLocation

    return RemoteLocation(name, access)


def opened(uri: str, access: RemoteSettings = ANYWHERE, etag: str | None = None) -> Bytes:
    """The file of a `uri` that was listed, with that etag if it had one. Raises OSError if it cannot be opened."""
    if not _URL.match(uri):
        return _LocalBytes(uri)
    if is_web(uri):
        from assets.web import WebBytes

        return WebBytes(uri, access, etag)
    from assets.remote_storage import open_remote

    return open_remote(uri, access)


def is_web(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))


def last_change(status: os.stat_result) -> int | None:
    """Microseconds since 1970, or null where the file may still change without its times changing.

    The later of mtime and ctime: ``cp -p`` and ``rsync -t`` set the first, nothing sets the second.
    """
    now = time.time()
    if status.st_mtime > now - RACY_SECONDS or status.st_ctime > now - _TICK_SECONDS:
        return None
    return max(status.st_mtime_ns, status.st_ctime_ns) // 1000


class _LocalBytes(Bytes):
    def __init__(self, path: str) -> None:
        self._descriptor: int | None = None
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    @property
    def size(self) -> int:
        assert self._descriptor is not None, "it was closed"
        return os.fstat(self._descriptor).st_size

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
        self._path, self.uri, self.given = path, str(path.resolve()), os.path.abspath(path)

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

    def matches(self, follow_links: bool = False) -> tuple[Location, list[Entry]]:
        parts = self._path.parts
        fixed = next(n for n, part in enumerate(parts) if glob.has_magic(part))
        folder = Path(*parts[:fixed])
        names = set(glob.glob("/".join(parts[fixed:]), root_dir=folder, recursive=True))
        # A link to a folder elsewhere is refused as one thing, whatever matches behind it.
        linked = {name[: n + 1] for name in names for n in range(len(name)) if name[n + 1 : n + 2] == "/"}
        base = _LocalLocation(folder)
        return base, [e for e in base.files(follow_links) if e.key in names or (e.reason and e.key in linked)]

    def files(self, follow_links: bool = False) -> list[Entry]:
        base = os.path.realpath(self._path)
        # A folder to list, and with it that base and the folders which links have led to on the way there: what links
        # to a file in one of them is followed, since that is listed in any case.
        entries: list[Entry] = []
        pending: list[tuple[str, tuple[str, ...]]] = [("", (base,))]
        while pending:
            prefix, entered = pending.pop()
            folder = os.path.join(base, prefix)
            try:
                with os.scandir(folder) as listing:
                    children = [child for child in listing if not child.name.startswith(".")]
            except OSError as error:
                why = f"{error}; make it readable, or move it out"
                entries.append(Entry(prefix.rstrip("/"), folder).refuse("unreadable", why))
                continue
            for child in children:
                found = _child(prefix + child.name, child, entered, follow_links)
                if isinstance(found, Entry):
                    entries.append(found)
                elif found is not None:
                    pending.append((f"{prefix}{child.name}/", found))
        return entries


def _child(
    name: str, child: os.DirEntry[str], entered: tuple[str, ...], follow_links: bool
) -> Entry | tuple[str, ...] | None:
    """A file of a local folder; of a folder, what is entered with it; None for a link to what is listed elsewhere."""
    if not is_utf8(name):
        entry = Entry(printable(name), printable(child.path))
        return entry.refuse("bad_name", "the file's name is not UTF-8; rename it")
    if child.is_symlink():
        entry, target = Entry(name, child.path), os.path.realpath(child.path)
        if any(_holds(folder, target) for folder in entered):
            if os.path.isdir(target):
                return None  # its files are listed where they lie
        elif not follow_links:
            return entry.refuse(
                "outside_root",
                "a link that leaves the folder; it was not opened. `follow_links: true` on the source reads it",
            )
        elif any(_holds(target, folder) for folder in entered):
            return entry.refuse("loop", "a link to a folder above it, which would be listed without end; remove it")
        else:
            entered = (*entered, target)
    is_folder = child.is_dir(follow_symlinks=False) or (child.is_symlink() and os.path.isdir(child.path))
    return entered if is_folder else _file(name, child)


def _holds(folder: str, path: str) -> bool:
    return (path + os.sep).startswith(folder.rstrip(os.sep) + os.sep)


def _file(name: str, child: os.DirEntry[str]) -> Entry:
    """A file of a local folder, or what a link there leads to."""
    entry = Entry(name, child.path)
    try:
        status, place = child.stat(), child.stat(follow_symlinks=False)
    except OSError as error:
        if child.is_symlink() and isinstance(error, FileNotFoundError):
            return entry.refuse("not_found", "a link to nothing; bring back what it names, or remove it")
        return entry.refuse("unreadable", f"{error}; make it readable, or move it out")
    if not stat.S_ISREG(status.st_mode):
        return entry.refuse("unsupported", "neither a file nor a folder; move it out")
    entry = _local_entry(name, child.path, status)
    if child.is_symlink():  # it may be made to lead elsewhere
        changes = entry.mtime, last_change(place)
        entry.mtime = None if None in changes else max(changes)  # type: ignore[type-var]
        entry.version = f"{entry.version} {place.st_mtime_ns}"
    return entry


def _local_entry(name: str, uri: str, status: os.stat_result) -> Entry:
    return Entry(name, uri, size=status.st_size, mtime=last_change(status), version=status.st_mtime_ns)
