"""Proves that what was erased is nowhere: looks into every file for its bytes, its text and its hash.

Compressed files are looked at as what they hold: Parquet column by column, of all versions whose files are there; .gz
and .zip member by member. What was made of an item and no longer holds its bytes (weights, tensors, drawn pictures) is
not found by looking; `orchestration.erasure` names the runs and models that it is in.
"""

import base64
import gzip
import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from training.messages import one_line

_PIECE = 4 * 2**20  # bytes that are looked at together
_WHOLE = 256  # bytes; of what is longer a few stretches are looked for
_STRETCH = 96  # bytes, a multiple of 3, so that base64 of the whole has base64 of it
_STRETCHES = 5
_DISTINCT = 16  # byte values that a stretch has at least: one of zeros alone is everywhere
_SHORTEST = 8  # bytes of a text; a shorter one is a part of much else

_BINARY = pa.types.is_binary, pa.types.is_large_binary

Needles = Mapping[str, Sequence[bytes]]  # what is looked for, in words, and the forms that it may have
Copies = Mapping[int, Collection[str]]  # length -> hashes of items that have it, so that whole copies are known by them
_COPY = "the bytes of an item, by their hash"


@dataclass(frozen=True)
class Found:
    """A place that still holds something of what was erased."""

    file: str
    what: str  # "the text of item ...", "the hash of ...", "the bytes of ..."


@dataclass(frozen=True)
class Proof:
    """What was looked for, where, and what was found."""

    files: int
    bytes: int  # of these files
    found: list[Found]
    not_searched: list[str]  # what could not be looked for, or at, and why


def hash_needles(sha256: str) -> list[bytes]:
    """Forms of a hash: as text, and as it is."""
    return [sha256.encode(), bytes.fromhex(sha256)]


def text_needles(text: str) -> list[bytes]:
    """Forms of a text: in UTF-8, and as JSON writes it; of a long one a few stretches. None of one that is too short
    to be told from others."""
    if len(text.encode()) < _SHORTEST:
        return []
    if len(text) <= _WHOLE:
        parts = [text]
    else:
        size = _STRETCH // 2
        parts = [text[start : start + size] for start in _starts(len(text), size)]
    written = [[part, *(json.dumps(part, ensure_ascii=is_ascii)[1:-1] for is_ascii in (True, False))] for part in parts]
    forms = [form.encode() for listed in written for form in listed]
    return list(dict.fromkeys(forms))


def byte_needles(data: bytes) -> list[bytes]:
    """Stretches of a file that are its own, and the same in base64."""
    if len(data) <= _STRETCH:
        return [data, base64.b64encode(data)]
    starts = [start - start % 3 for start in _starts(len(data), _STRETCH)]
    stretches = [data[start : start + _STRETCH] for start in starts]
    own = [stretch for stretch in stretches if len(set(stretch)) >= _DISTINCT] or [data]
    return [form for stretch in own for form in (stretch, base64.b64encode(stretch).rstrip(b"="))]


def _starts(length: int, size: int) -> list[int]:
    return [n * (length - size) // (_STRETCHES - 1) for n in range(_STRETCHES)]


def prove(
    folders: Iterable[Path], needles: Needles, not_searched: Sequence[str] = (), copies: Copies | None = None
) -> Proof:
    """Looks for the needles in every file below the folders; and for files, and cells of Parquet, that are copies."""
    files, size, found, unread = 0, 0, list[Found](), list(not_searched)
    for path in sorted({path for folder in folders for path in folder.rglob("*") if path.is_file()}):
        files += 1
        try:
            size += path.stat().st_size
            for what in _in_file(path, needles, copies or {}):
                found.append(Found(str(path), what))
        except FileNotFoundError:  # a server that is running has just removed it
            continue
        except (
            Exception
        ) as error:  # whatever damaged, encrypted and odd files raise: what was erased is told all the same
            said = getattr(error, "strerror", None) or f"{type(error).__name__}: {one_line(str(error), 200)}"
            unread.append(f"{path} cannot be read: {said}")
    return Proof(files, size, found, unread)


def _in_file(path: Path, needles: Needles, copies: Copies) -> Iterator[str]:
    """What of it a file has, each once, as far as it can be read."""
    longest = max((len(form) for forms in needles.values() for form in forms), default=1)
    left, is_copy = dict(needles), path.stat().st_size in copies and _is_copy(path.read_bytes(), copies)
    if is_copy:
        yield _COPY
    for piece in _pieces(path, longest - 1, copies):
        if piece is None:
            if not is_copy:
                yield _COPY
            is_copy = True
            continue
        for what in [what for what, forms in left.items() if any(form in piece for form in forms)]:
            yield what
            del left[what]


def _is_copy(data: bytes, copies: Copies) -> bool:
    return len(data) in copies and hashlib.sha256(data).hexdigest() in copies[len(data)]


def _pieces(path: Path, overlap: int, copies: Copies) -> Iterator[bytes | None]:
    """What a file has, and what it holds compressed; each piece begins with the end of the one before. None: a cell is
    a copy of an item."""
    with path.open("rb") as file:
        head = file.read(4)
        file.seek(0)
        yield from _overlapping(file, overlap)
        file.seek(0)
        if head == b"PAR1":
            yield from _columns(path, copies)
        elif head[:2] == b"\x1f\x8b":
            yield from _of_gzip(file, overlap)
        elif head[:2] == b"PK" and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    with archive.open(name) as member:
                        yield from _overlapping(member, overlap)


def _overlapping(file: IO[bytes] | io.BufferedIOBase, overlap: int) -> Iterator[bytes]:
    end = b""
    while piece := file.read(_PIECE):
        yield end + piece
        end = (end + piece)[-overlap:] if overlap else b""


def _of_gzip(file: IO[bytes], overlap: int) -> Iterator[bytes]:
    try:
        with gzip.open(file) as unpacked:
            yield from _overlapping(unpacked, overlap)
    except (EOFError, zlib.error, gzip.BadGzipFile):  # damaged, or called so: looked at as it is
        return


def _columns(path: Path, copies: Copies) -> Iterator[bytes | None]:
    """The values of each column, one after the other."""
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid:  # unfinished
        return
    for batch in file.iter_batches(256):
        for column in batch.columns:
            yield from _values(column, copies)


def _values(column: pa.Array, copies: Copies) -> Iterator[bytes | None]:
    kind = column.type
    if pa.types.is_dictionary(kind):
        yield from _values(column.dictionary, copies)
    elif pa.types.is_struct(kind):
        for part in column.flatten():
            yield from _values(part, copies)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        yield from _values(column.flatten(), copies)
    elif pa.types.is_map(kind):
        yield from _values(column.keys, copies)
        yield from _values(column.items, copies)
    elif any(is_kind(kind) for is_kind in (pa.types.is_string, pa.types.is_large_string, *_BINARY)):
        values = [value for value in column.cast(pa.large_binary()).to_pylist() if value is not None]
        yield b"\0".join(values)
        yield from (None for value in values if copies and _is_copy(value, copies))
