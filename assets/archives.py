"""Tar and zip: members listed without extracting them, and read where they lie."""

import posixpath
import stat
import struct
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

from assets.sources.base import Entry, SourceError
from assets.storage import PIECE, Bytes, Location, is_outside, is_utf8, opened, printable

# A member that is packed more tightly, and not small, is made to fill memory: no picture or recording is so uniform.
_BOMB_RATIO = 200
_BOMB_BYTES = 16 * 2**20


def archive_kind(name: str) -> str | None:
    """tar or zip, by the suffix of a file's name; null for another file.

    Raises:
        SourceError: it is a compressed tar.
    """
    lower = name.lower()
    if lower.endswith((".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")):
        raise SourceError(f"{name}: members of a compressed tar cannot be read one by one; decompress it to .tar first")
    return lower[-3:] if lower.endswith((".tar", ".zip")) else None


def members(location: Location, kind: str) -> list[Entry]:
    """The members of an archive; keys are their paths in it. Hidden files (.name) are no items.

    Raises:
        SourceError: the archive cannot be read.
    """
    entries = list(_tar(location) if kind == "tar" else _zip(location))
    # As when extracting, the last member of a name counts.
    last = {entry.key: entry for entry in entries}
    for entry in entries:
        if last[entry.key] is not entry and entry.reason is None:
            entry.refuse("superseded", "a later member of the archive has the same name")
    return entries


def _tar(location: Location) -> Iterator[Entry]:
    try:
        whole = location.entry()
        with location.open() as file, tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # the library keeps every header it has read
                if member.isdir():
                    continue
                entry = _member(location.uri, member.name, member.issym() or member.islnk(), member.isreg())
                if entry is not None:
                    sparse = member.issparse()
                    entry.offset, entry.size, entry.mtime = member.offset_data, member.size, whole.mtime
                    if sparse and entry.reason is None:
                        entry.refuse("unsupported", "a sparse tar member; pack it without --sparse")
                    yield entry
            # The library stops silently at a damaged header; the rest would be lost.
            file.seek(archive.offset)
            if file.read(512).strip(b"\0"):
                at = archive.offset
                raise SourceError(f"{location}: damaged tar: no valid header at byte {at}; pack it again")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise SourceError(f"{location}: cannot be read as tar: {error}") from None


def _zip(location: Location) -> Iterator[Entry]:
    try:
        whole = location.entry()
        with location.open() as file, zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                if info.is_dir():
                    continue
                link = stat.S_ISLNK(info.external_attr >> 16)
                readable = info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) and not info.flag_bits & 1
                if (entry := _member(location.uri, info.filename, link, readable)) is not None:
                    entry.offset, entry.size, entry.mtime = info.header_offset, info.file_size, whole.mtime
                    entry.crc = info.CRC
                    if entry.reason is None and info.file_size > max(_BOMB_BYTES, _BOMB_RATIO * info.compress_size):
                        packed = f"{info.compress_size} bytes that unpack to {info.file_size}"
                        entry.refuse("too_large", f"{packed}; pack it as stored")
                    yield entry
    except SourceError:
        raise
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise SourceError(f"{location}: cannot be read as zip: {error}") from None


def _member(uri: str, member: str, link: bool, readable: bool) -> Entry | None:
    name = member.removeprefix("./")
    if not is_utf8(member):
        entry = Entry(printable(name), uri, printable(member))
        return entry.refuse("bad_name", "the member's name is not UTF-8; rename it")
    entry = Entry(name, uri, member)
    if is_outside(name):
        return entry.refuse("outside_root", "a path that leaves the archive; it was not opened")
    entry.key = posixpath.normpath(name)
    if any(part.startswith(".") for part in entry.key.split("/")):
        return None
    if link:
        return entry.refuse("link", "a link within an archive; it was not followed")
    if not readable:
        return entry.refuse("unsupported", "no regular file, or encrypted or packed in an unusual way")
    return entry


class Archives:
    """The archives that members are read from, each opened once. Safe to share between threads; pickles as closed."""

    def __init__(self) -> None:
        self._opened: dict[str, Bytes] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> Any:
        return Archives, ()

    def read(self, entry: Entry) -> Iterator[bytes]:
        """The content of a member, in pieces.

        Raises:
            OSError: it cannot be read.
            ValueError: it ends before `size` bytes, or is not what its checksum says.
        """
        with self._lock:
            if entry.uri not in self._opened:
                self._opened[entry.uri] = opened(entry.uri)
        archive, offset = self._opened[entry.uri], entry.offset or 0
        if entry.uri.lower().endswith(".tar"):
            yield from archive.pieces(offset, entry.size)
            return
        checksum = 0
        for piece in _unzipped(archive, offset, entry.size):
            if entry.crc is not None:
                checksum = zlib.crc32(piece, checksum)
            yield piece
        if entry.crc is not None and checksum != entry.crc:
            raise ValueError("is damaged: its checksum is another; pack the archive again")


def _unzipped(archive: Bytes, offset: int, size: int) -> Iterator[bytes]:
    """A stored or deflated member, by its local header (PKWARE APPNOTE 4.3.7); never more than `size` bytes."""
    header = b"".join(archive.pieces(offset, 30))
    signature, method, name, extra = struct.unpack("<4s4xH16xHH", header)
    if signature != b"PK\3\4":
        raise ValueError("is not where the archive says")
    offset += 30 + name + extra
    if method == zipfile.ZIP_STORED:
        yield from archive.pieces(offset, size)
        return
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    packed = b""
    while size > 0:
        if not packed:
            packed = archive.read(offset, archive.piece)
            offset += len(packed)
        try:
            piece = inflate.decompress(packed, min(size, PIECE))
        except zlib.error as error:
            raise ValueError(f"is damaged: {error}") from None
        if not piece and (inflate.eof or not packed):
            raise ValueError(f"ends {size} bytes too early")
        packed, size = inflate.unconsumed_tail, size - len(piece)
        yield piece
