"""Contents of a source's files: hashed in parallel, or taken over from the last scan where nothing changed."""

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pyarrow as pa

from assets.files import Entry, Reader
from assets.settings import SourceSettings
from training.schema import MANIFEST
from training.settings import MediaLimits


class Known:
    """What the last scan found of this source."""

    def __init__(self, previous: pa.Table | None) -> None:
        names = ["uri", "member", "offset", "size", "mtime", "sha256"]
        rows = (previous if previous is not None else MANIFEST.empty_table()).select(names)
        rows = rows.set_column(4, "mtime", rows["mtime"].cast(pa.int64()))
        self.items = {(row[0], row[1]): row[2:] for row in zip(*(column.to_pylist() for column in rows), strict=True)}

    def hash_of(self, entry: Entry) -> str | None:
        """The hash as it was, if place, size and time are; else null."""
        offset, size, mtime, sha256 = self.items.get((entry.uri, entry.member), (None, None, None, None))
        same = mtime is not None and (offset, size, mtime) == (entry.offset, entry.size, entry.mtime)
        return sha256 if same else None


def fill(entries: list[Entry], known: Known, source: SourceSettings, limits: MediaLimits) -> int:
    """Puts hash (and text) into the entries, or why they are refused; returns how many hashes were taken over."""
    todo, reused = [], 0
    for entry in entries:
        if entry.reason is not None:
            continue
        if entry.size == 0:
            entry.reason, entry.message = "empty", "the file is empty (0 bytes)"
        elif entry.size > limits.max_bytes:
            allowed = f"limits.max_bytes allows {limits.max_bytes}"
            entry.reason, entry.message = "too_large", f"{entry.size} bytes, {allowed}"
        # Text files are read each time: their text depends on the encoding setting too.
        elif source.modality != "text" and (sha256 := known.hash_of(entry)):
            entry.sha256 = sha256
            reused += 1
        else:
            todo.append(entry)
    with Reader() as reader, ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 2)) as pool:
        work = partial(_read_text, reader, source.encoding) if source.modality == "text" else partial(_hash, reader)
        for _ in pool.map(partial(_guarded, work), _portions(todo)):
            pass
    return reused


def _portions(entries: list[Entry]) -> Iterable[list[Entry]]:
    return (entries[start : start + 64] for start in range(0, len(entries), 64))


def _guarded(work: Callable[[Entry], None], entries: list[Entry]) -> None:
    for entry in entries:
        try:
            work(entry)
        except UnicodeDecodeError as error:
            entry.reason = "wrong_encoding"
            entry.message = f"byte {error.start} is not {error.encoding}; set `encoding` to the file's own"
        except (OSError, ValueError) as error:
            text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            entry.reason, entry.message = "unreadable", text


def _hash(reader: Reader, entry: Entry) -> None:
    digest = hashlib.sha256()
    for chunk in reader.chunks(entry.uri, entry.member, entry.offset, entry.size, entry.crc):
        digest.update(chunk)
    entry.sha256 = digest.hexdigest()


def _read_text(reader: Reader, encoding: str, entry: Entry) -> None:
    content = reader.read(entry.uri, entry.member, entry.offset, entry.size, entry.crc)
    text = content.decode(encoding).removeprefix("\ufeff")
    if not text.strip():
        entry.reason, entry.message = "empty", "the file holds white space only"
    entry.text, entry.sha256 = text, hashlib.sha256(text.encode()).hexdigest()
