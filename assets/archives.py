"""Tar and zip: members listed without extracting them, and read where they lie."""

import codecs
import contextlib
import posixpath
import stat
import struct
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from assets.remote_settings import ANYWHERE, RemoteSettings
from assets.sources.base import Entry, SourceError
from assets.storage import PIECE, Bytes, Location, is_outside, is_utf8, is_web, opened

# A member that is packed more tightly, and not small, is made to fill memory: no picture or recording is so uniform.
_BOMB_RATIO = 200
_OPEN = 64  # archives at once
_BOMB_BYTES = 16 * 2**20
_WESTERN = frozenset([*range(0x9B), *range(0xA0, 0xA6), 0xE1])  # of CP437: ASCII and letters with accents
_UTF8_NAME = 0x800  # the flag of a zip's member whose name is UTF-8 (PKWARE APPNOTE 4.4.4)


_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")


def archive_kind(name: str) -> str | None:
    """tar, zip or compressed tar, by the suffix of a file's name; null for another file."""
    lower = (name.partition("?")[0] if is_web(name) else name).lower()
    if lower.endswith(_COMPRESSED):
        return "compressed tar"
    return lower[-3:] if lower.endswith((".tar", ".zip")) else None


# What looks at the file while a tar is walked through, which over a network costs less than to come back: called with
# the name, as bytes, of each regular member, the file, and where in it how many bytes of content lie.
Visit = Callable[[bytes, BinaryIO, int, int], None]


def members(location: Location, kind: str, encoding: str = "utf-8", visit: Visit | None = None) -> list[Entry]:
    """The members of an archive; keys are their paths in it. Hidden files (.name) are no items.

    Args:
        encoding: of names that the archive does not mark as UTF-8.
        visit: of a tar.

    Raises:
        SourceError: the archive cannot be read.
    """
    if kind == "compressed tar":
        raise SourceError(f"{location}: members of a compressed tar cannot be read one by one; decompress it to .tar")
    with _parsing(location, kind):
        whole = location.entry()
        entries = list(_tar(location, encoding, visit) if kind == "tar" else _zip(location, encoding))
    # As when extracting, the last member of a name counts.
    last = {entry.key: entry for entry in entries}
    for entry in entries:
        entry.mtime, entry.etag, entry.version = whole.mtime, whole.etag, whole.version
        if last[entry.key] is not entry and entry.reason is None:
            entry.refuse("superseded", "a later member of the archive has the same name")
    return entries


@contextlib.contextmanager
def _parsing(location: Location, kind: str) -> Iterator[None]:
    """The border of the parsers, which raise nearly anything on a damaged archive: TarError, BadZipFile, IndexError,
    NotImplementedError, struct.error, OverflowError, ..."""
    try:
        yield
    except SourceError:
        raise
    except OSError as error:
        raise SourceError(f"{location}: cannot be read: {error}") from error
    except Exception as error:
        words = str(error) or type(error).__name__
        raise SourceError(f"{location}: cannot be read as {kind} ({words}); copy it again, or pack it again") from error


def _tar(location: Location, encoding: str, visit: Visit | None) -> Iterator[Entry]:
    end, found = 0, []
    with location.open() as file, tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # the library keeps every header it has read
            if archive.offset <= end:  # a negative size leads back
                raise SourceError(f"{location}: damaged tar: the header before byte {end} is wrong; pack it again")
            end = archive.offset
            if member.isdir():
                continue
            why = None if member.isreg() else "neither a regular file nor a link; leave it out of the archive"
            if member.issparse():
                why = "a sparse tar member; pack it without --sparse"
            name = member.name.encode("utf-8", "surrogateescape")
            found.append((name, member.issym() or member.islnk(), why, member.offset_data, member.size))
            if visit is not None and member.isreg() and why is None:
                visit(name, file, member.offset_data, member.size)
        # The library stops silently at a damaged header; the rest would be lost.
        file.seek(archive.offset)
        if file.read(512).strip(b"\0"):
            at = archive.offset
            raise SourceError(f"{location}: damaged tar: no valid header at byte {at}; pack it again")
    default = "utf-8" if _mostly_utf8([name for name, *_ in found]) else None
    for name, link, why, offset, size in found:
        if (entry := _member(location.uri, _decoded(name, encoding, default), link, why)) is not None:
            entry.offset, entry.size = offset, size
            yield entry


def _mostly_utf8(names: list[bytes]) -> bool:
    """Whether the few names that are not UTF-8 are slips; short ones of another encoding may look like UTF-8."""
    foreign = [name for name in names if not name.isascii()]
    return 2 * sum(is_utf8(name.decode("utf-8", "surrogateescape")) for name in foreign) >= len(foreign)


def _zip(location: Location, encoding: str) -> Iterator[Entry]:
    with location.open() as file, zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        unmarked = [info.orig_filename for info in infos if not info.flag_bits & _UTF8_NAME]
        default = _encoding_of([name.encode("cp437") for name in unmarked])
        for info in infos:
            name: str | bytes = info.filename
            if not info.flag_bits & _UTF8_NAME:
                name = _unicode_path(info) or _decoded(info.filename.encode("cp437"), encoding, default)
            if isinstance(name, str) and name.replace("\\", "/").endswith("/"):
                continue  # a folder
            link = stat.S_ISLNK(info.external_attr >> 16)
            if (entry := _member(location.uri, name, link, _why_packed(info))) is not None:
                entry.offset, entry.size = info.header_offset, info.file_size
                entry.crc = info.CRC
                if entry.reason is None and info.file_size > max(_BOMB_BYTES, _BOMB_RATIO * info.compress_size):
                    packed = f"{info.compress_size} bytes that unpack to {info.file_size}"
                    entry.refuse("too_large", f"{packed}; pack it as stored")
                yield entry


def _why_packed(info: zipfile.ZipInfo) -> str | None:
    """Why a member cannot be unpacked, if so."""
    if info.flag_bits & 1:
        return "encrypted; pack it without a password"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"packed by method {info.compress_type}; pack it as stored or deflated"
    return None


def _encoding_of(names: list[bytes]) -> str | None:
    """What names of a zip that are not marked as UTF-8 are in: UTF-8 nevertheless (macOS), or CP437, as the format
    says; null where CP437 gives more than letters of Western Europe: they are in the encoding of another country."""
    try:
        b"\n".join(names).decode("utf-8")
        return "utf-8"
    except UnicodeDecodeError:
        return "cp437" if _WESTERN.issuperset(b"".join(names)) else None


def _unicode_path(info: zipfile.ZipInfo) -> str | None:
    """The name in UTF-8 that some packers (WinRAR, Info-ZIP) write beside the other one (PKWARE APPNOTE 4.6.9)."""
    extra = info.extra
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        body, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == 0x7075 and body[:5] == b"\1" + struct.pack("<I", zlib.crc32(info.orig_filename.encode("cp437"))):
            with contextlib.suppress(UnicodeDecodeError):
                return body[5:].decode("utf-8")
    return None


def _decoded(name: bytes, encoding: str, default: str | None) -> str | bytes:
    """A member's name; as bytes where it is in no encoding that is known.

    Args:
        encoding: what the source says. UTF-8 is what it says without a word, and UTF-16 can only be meant for texts:
            then `default` counts.
    """
    if name.isascii():
        return name.decode("ascii")
    for choice in (default,) if codecs.lookup(encoding).name.startswith("utf") else (encoding, "utf-8"):
        with contextlib.suppress(UnicodeError):
            if choice is not None and is_utf8(text := name.decode(choice)):
                return text
    return name


def _member(uri: str, member: str | bytes, link: bool, unsupported: str | None) -> Entry | None:
    """A member, or why it is refused; null for a hidden one."""
    if isinstance(member, bytes):
        shown = member.decode("utf-8", "backslashreplace")
        advice = "set `encoding` to that of the names (gbk, shift_jis, cp866, cp437, ...), or pack it again"
        return Entry(shown, uri, shown).refuse("bad_name", f"the member's name is not UTF-8; {advice}")
    name = member.replace("\\", "/").removeprefix("./")  # packers on Windows write their own separator
    entry = Entry(name, uri, member)
    if is_outside(name):
        return entry.refuse("outside_root", "a path that leaves the archive; it was not opened")
    entry.key = posixpath.normpath(name) if name else ""
    if entry.key in ("", ".") or "\0" in name:
        return entry.refuse("bad_name", "a member without a name, or with a NUL byte in it; pack the archive again")
    if any(part.startswith(".") for part in entry.key.split("/")):
        return None
    if link:
        return entry.refuse("link", "a link within an archive; it was not followed. Pack the file that it names")
    if unsupported:
        return entry.refuse("unsupported", unsupported)
    return entry


class Archives:
    """The archives that members are read from, some kept open. Safe to share between threads; pickles closed."""

    def __init__(self, access: RemoteSettings = ANYWHERE) -> None:
        self._access = access
        self._opened: dict[str, Bytes] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> Any:
        return Archives, (self._access,)

    def read(self, entry: Entry) -> Iterator[bytes]:
        """The content of a member, in pieces.

        Raises:
            OSError: it cannot be read.
            ValueError: it ends before `size` bytes, or is not what its checksum says.
        """
        with self._lock:
            archive = self._opened.pop(entry.uri, None) or opened(entry.uri, self._access, entry.etag)
            self._opened[entry.uri] = archive
            if len(self._opened) > _OPEN:  # who still reads it holds it
                del self._opened[next(iter(self._opened))]
        offset = entry.offset or 0
        if not 0 <= offset < 2**63:
            raise ValueError(f"is damaged: it cannot lie at byte {offset}; pack the archive again")
        if archive_kind(entry.uri) == "tar":
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
        raise ValueError("is not where the archive says; pack it again")
    offset += 30 + name + extra
    if method == zipfile.ZIP_STORED:
        yield from archive.pieces(offset, size)
        return
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    packed = b""
    while size > 0:
        if not packed:
            packed = archive.read(offset, min(archive.piece, size + size // 1000 + 64))  # deflate hardly grows
            offset += len(packed)
        try:
            piece = inflate.decompress(packed, min(size, PIECE))
        except zlib.error as error:
            raise ValueError(f"is damaged: {error}; pack the archive again") from None
        if not piece and (inflate.eof or not packed):
            raise ValueError(f"ends {size} bytes too early; pack the archive again")
        packed, size = inflate.unconsumed_tail, size - len(piece)
        yield piece
