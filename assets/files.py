"""Files of a source, listed without being opened, and bytes of files and archive members read without extracting."""

import glob
import os
import posixpath
import re
import stat
import struct
import tarfile
import threading
import time
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from assets.tables import SourceError

_CHUNK = 2**20
# A file changed this shortly ago may change again within the same tick: of a coarse file system, of the kernel's clock.
_RACY_SECONDS = 2
_TICK_SECONDS = 0.05
# A member that is packed more tightly, and not small, is made to fill memory: no picture or recording is so uniform.
_BOMB_RATIO = 200
_BOMB_BYTES = 16 * 2**20


@dataclass(slots=True)
class Entry:
    """One file or archive member; `reason` and `message` say why it is refused, if it is."""

    name: str  # path within the folder or archive, with /
    uri: str
    member: str | None = None
    offset: int | None = None  # tar: of the content; zip: of the member's local header
    size: int = 0
    crc: int | None = None  # zip: CRC-32 of the content
    mtime: int | None = None  # `last_change`, of the archive for members
    reason: str | None = None
    message: str | None = None
    sha256: str | None = None
    text: str | None = None


def is_outside(name: str) -> bool:
    """Whether a file name from a table or archive is anything but a plain path below a folder."""
    absolute = name.startswith("/") or re.match(r"[A-Za-z]:[\\/]|[A-Za-z][A-Za-z0-9+.-]+:/", name)
    return bool(absolute) or "\\" in name or ".." in name.split("/")


def last_change(found: os.stat_result) -> int | None:
    """Microseconds since 1970, or null where the file may still change without its times changing.

    The later of mtime and ctime: ``cp -p`` and ``rsync -t`` set the first, nothing sets the second.
    """
    now = time.time()
    if found.st_mtime > now - _RACY_SECONDS or found.st_ctime > now - _TICK_SECONDS:
        return None
    return max(found.st_mtime_ns, found.st_ctime_ns) // 1000


def list_files(files: str, root: Path) -> tuple[str, list[Entry]]:
    """Every file below a folder, those a glob matches, the members of a tar or zip, or one file; sorted by name.

    Hidden files and folders (.name) are no items; links are followed only to files within the folder.

    Returns:
        The folder, archive or file listed, for messages; the entries.

    Raises:
        SourceError: there is no such thing, or the archive cannot be read.
    """
    path = root / files
    if path.is_dir():
        entries = _folder(path)
    elif path.is_file() and (archive := archive_kind(path)):
        entries = list(_tar(path) if archive == "tar" else _zip(path))
        _refuse_superseded(entries)
    elif path.is_file():
        found = path.stat()
        entries = [Entry(path.name, str(path.resolve()), size=found.st_size, mtime=last_change(found))]
    elif glob.has_magic(files):
        path, entries = _glob(path)
    else:
        raise SourceError(f"{path}: no such file or folder; correct `files` in the project file")
    entries.sort(key=lambda entry: entry.name)
    return str(path), entries


def archive_kind(path: Path) -> str | None:
    name = path.name.lower()
    if name.endswith((".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")):
        raise SourceError(f"{path}: members of a compressed tar cannot be read one by one; decompress it to .tar first")
    return name[-3:] if name.endswith((".tar", ".zip")) else None


def _glob(pattern: Path) -> tuple[Path, list[Entry]]:
    parts = pattern.parts
    fixed = next(n for n, part in enumerate(parts) if glob.has_magic(part))
    folder = Path(*parts[:fixed])
    names = set(glob.glob("/".join(parts[fixed:]), root_dir=folder, recursive=True))
    linked = {name[: n + 1] for name in names for n in range(len(name)) if name[n + 1 : n + 2] == "/"}
    return folder, [
        entry for entry in _folder(folder) if entry.name in names or (entry.reason and entry.name in linked)
    ]


def _folder(folder: Path) -> list[Entry]:
    base = os.path.realpath(folder)
    entries, pending = [], [""]
    while pending:
        prefix = pending.pop()
        try:
            with os.scandir(os.path.join(base, prefix)) as listing:
                children = [child for child in listing if not child.name.startswith(".")]
        except OSError as error:
            entries.append(_refused(prefix.rstrip("/"), os.path.join(base, prefix), "unreadable", str(error)))
            continue
        for child in children:
            name = prefix + child.name
            if child.is_dir(follow_symlinks=False):
                pending.append(name + "/")
            elif (entry := _file(name, child, base)) is not None:
                entries.append(entry)
    return entries


def _file(name: str, child: os.DirEntry[str], base: str) -> Entry | None:
    if not _is_utf8(name):
        return _refused(name, child.path, "bad_name", "the file's name is not UTF-8; rename it")
    if child.is_symlink():
        target = os.path.realpath(child.path)
        if not (target + os.sep).startswith(base + os.sep):
            return _refused(name, child.path, "outside_root", f"a link that leaves {base}; it was not opened")
        if not os.path.exists(target):
            return _refused(name, child.path, "not_found", "a link to nothing")
        if os.path.isdir(target):
            return None  # its files are listed where they lie
    try:
        found = child.stat()
    except OSError as error:
        return _refused(name, child.path, "unreadable", str(error))
    if not stat.S_ISREG(found.st_mode):
        return _refused(name, child.path, "unsupported", "neither a file nor a folder")
    return Entry(name, child.path, size=found.st_size, mtime=last_change(found))


def _is_utf8(name: str) -> bool:
    return name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name)


def _refused(name: str, uri: str, reason: str, message: str, member: str | None = None) -> Entry:
    if not _is_utf8(name):
        name, uri = _printable(name), _printable(uri)
        member = member and _printable(member)
    return Entry(name, uri, member, reason=reason, message=message)


def _printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def _tar(path: Path) -> Iterator[Entry]:
    uri, mtime = str(path.resolve()), last_change(path.stat())
    try:
        with tarfile.open(path, "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # the library keeps every header it has read
                if member.isdir():
                    continue
                entry = _member(uri, member.name, member.issym() or member.islnk(), member.isreg())
                if entry is not None:
                    sparse = member.issparse()
                    entry.offset, entry.size, entry.mtime = member.offset_data, member.size, mtime
                    if sparse and entry.reason is None:
                        entry.reason, entry.message = "unsupported", "a sparse tar member; pack it without --sparse"
                    yield entry
            # The library stops silently at a damaged header; the rest would be lost.
            with path.open("rb") as file:
                file.seek(archive.offset)
                if file.read(512).strip(b"\0"):
                    raise SourceError(f"{path}: damaged tar: no valid header at byte {archive.offset}; pack it again")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise SourceError(f"{path}: cannot be read as tar: {error}") from None


def _zip(path: Path) -> Iterator[Entry]:
    uri, mtime = str(path.resolve()), last_change(path.stat())
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.is_dir():
                    continue
                link = stat.S_ISLNK(info.external_attr >> 16)
                readable = info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) and not info.flag_bits & 1
                if (entry := _member(uri, info.filename, link, readable)) is not None:
                    entry.offset, entry.size, entry.mtime = info.header_offset, info.file_size, mtime
                    entry.crc = info.CRC
                    if entry.reason is None and info.file_size > max(_BOMB_BYTES, _BOMB_RATIO * info.compress_size):
                        entry.reason = "too_large"
                        entry.message = f"{info.compress_size} bytes that unpack to {info.file_size}; pack it as stored"
                    yield entry
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise SourceError(f"{path}: cannot be read as zip: {error}") from None


def _member(uri: str, member: str, link: bool, readable: bool) -> Entry | None:
    name = member.removeprefix("./")
    if not _is_utf8(member):
        return _refused(name, uri, "bad_name", "the member's name is not UTF-8; rename it", member)
    if is_outside(name):
        return _refused(name, uri, "outside_root", "a path that leaves the archive; it was not opened", member)
    name = posixpath.normpath(name)
    if any(part.startswith(".") for part in name.split("/")):
        return None
    if link:
        return _refused(name, uri, "link", "a link within an archive; it was not followed", member)
    if not readable:
        return _refused(name, uri, "unsupported", "no regular file, or encrypted or packed in an unusual way", member)
    return Entry(name, uri, member)


def _refuse_superseded(entries: list[Entry]) -> None:
    """As when extracting, the last member of a name counts."""
    last = {entry.name: entry for entry in entries}
    for entry in entries:
        if last[entry.name] is not entry and entry.reason is None:
            entry.reason, entry.message = "superseded", "a later member of the archive has the same name"


class Reader:
    """Reads files and members by position; each archive is opened once. Safe to share between threads."""

    def __init__(self) -> None:
        self._archives: dict[str, int] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> "Reader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for descriptor in self._archives.values():
            os.close(descriptor)
        self._archives.clear()

    def chunks(
        self, uri: str, member: str | None, offset: int | None, size: int, crc: int | None = None
    ) -> Iterator[bytes]:
        """The bytes of one item, in pieces.

        Raises:
            OSError: it cannot be read.
            ValueError: it ends before `size` bytes, or is not what its checksum says.
        """
        if member is None:
            descriptor = os.open(uri, os.O_RDONLY | os.O_CLOEXEC)
            try:
                yield from _pread(descriptor, 0, size)
            finally:
                os.close(descriptor)
            return
        with self._lock:
            if uri not in self._archives:
                self._archives[uri] = os.open(uri, os.O_RDONLY | os.O_CLOEXEC)
        read = _pread if uri.lower().endswith(".tar") else _pread_zip
        found = 0
        for chunk in read(self._archives[uri], offset or 0, size):
            if crc is not None:
                found = zlib.crc32(chunk, found)
            yield chunk
        if crc is not None and found != crc:
            raise ValueError("is damaged: its checksum is another; pack the archive again")

    def read(self, uri: str, member: str | None, offset: int | None, size: int, crc: int | None = None) -> bytes:
        return b"".join(self.chunks(uri, member, offset, size, crc))


def _pread(descriptor: int, offset: int, size: int) -> Iterator[bytes]:
    while size > 0:
        chunk = os.pread(descriptor, min(size, _CHUNK), offset)
        if not chunk:
            raise ValueError(f"ends {size} bytes too early")
        offset, size = offset + len(chunk), size - len(chunk)
        yield chunk


def _pread_zip(descriptor: int, offset: int, size: int) -> Iterator[bytes]:
    """A stored or deflated member, by its local header (PKWARE APPNOTE 4.3.7); never more than `size` bytes."""
    header = b"".join(_pread(descriptor, offset, 30))
    signature, method, name, extra = struct.unpack("<4s4xH16xHH", header)
    if signature != b"PK\3\4":
        raise ValueError("is not where the archive says")
    offset += 30 + name + extra
    if method == zipfile.ZIP_STORED:
        yield from _pread(descriptor, offset, size)
        return
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    packed = b""
    while size > 0:
        if not packed:
            packed = os.pread(descriptor, _CHUNK, offset)
            offset += len(packed)
        try:
            chunk = inflate.decompress(packed, min(size, _CHUNK))
        except zlib.error as error:
            raise ValueError(f"is damaged: {error}") from None
        if not chunk and (inflate.eof or not packed):
            raise ValueError(f"ends {size} bytes too early")
        packed, size = inflate.unconsumed_tail, size - len(chunk)
        yield chunk
