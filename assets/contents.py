"""Contents of items: hashed in parallel or taken over from the last scan, and read again by what the manifest says."""

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, TypeVar

import pyarrow as pa

from assets.engines.base import cores
from assets.sources.base import Entry, Source
from training.catalog import MODALITIES
from training.media import too_large
from training.schema import MANIFEST
from training.settings import MediaLimits

_AT_ONCE = 64  # entries that a thread takes
_PORTION_BYTES = 16 * 2**20  # of media that are held at once, in each worker


class Contents:
    """Puts hash (and text) into a source's entries, or why they are refused; a context manager, since it has threads.

    Args:
        previous: manifest rows of the last scan of this source; what has not changed since is not read again.
        limits: what is larger than `max_bytes` is refused unread.
    """

    def __init__(self, source: Source, modality: str, limits: MediaLimits, previous: pa.Table | None = None) -> None:
        self.reused = 0  # places whose hash was taken over
        self.read: dict[str, str | int] = {}  # URI -> `Entry.version` of what was read
        self._source, self._limits = source, limits
        # Vectors are no texts: the manifest need not hold those that are read where they lie.
        self._is_text = MODALITIES.load(modality).is_text and not source.vectors
        self._previous = previous
        self._first: dict[tuple[str | int | None, ...], Entry] = {}  # by place: several entries may share one
        self._pool = ThreadPoolExecutor(min(8, cores() + 2))

    def __enter__(self) -> "Contents":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def fill(self, entries: Sequence[Entry]) -> None:
        """Fills the entries that are not refused already."""
        todo, alike = [], []
        for entry in entries:
            if entry.reason is not None:
                continue
            if entry.text is not None:
                entry.size = _take_text(entry, entry.text)
                continue
            place = entry.uri, entry.member, entry.offset, entry.expected
            if (first := self._first.setdefault(place, entry)) is not entry:
                alike.append((entry, first))
            elif not self._settled(entry):
                todo.append(entry)
        for _ in self._pool.map(self._read_all, _slices(todo)):
            pass
        for entry, first in alike:
            for name in ("reason", "message", "size", "etag", "sha256", "text"):
                setattr(entry, name, getattr(first, name))

    @cached_property
    def _known(self) -> dict[tuple[str, str | None, int | None], tuple[Any, ...]]:
        """(uri, member, offset) -> (size, mtime, etag, sha256) of the last scan; not made where tables hold texts."""
        rows = self._previous if self._previous is not None else MANIFEST.empty_table()
        columns = [rows[name].to_pylist() for name in ("uri", "member", "offset", "size")]
        columns += [rows["mtime"].cast(pa.int64()).to_pylist(), rows["etag"].to_pylist(), rows["sha256"].to_pylist()]
        return {row[:3]: row[3:] for row in zip(*columns, strict=True)}

    def _settled(self, entry: Entry) -> bool:
        """Whether the entry need not be read: refused by its size, or as it was in the last scan."""
        size, mtime, etag, sha256 = self._known.get((entry.uri, entry.member, entry.offset), (None,) * 4)
        # Not every listing tells both time and etag; what it tells must be as before, and one of them be told.
        pairs = (mtime, entry.mtime), (etag, entry.etag)
        same = [before == now for before, now in pairs if before is not None and now is not None]
        is_known = bool(same) and all(same) and entry.size in (size, -1)
        if is_known:
            entry.size = size or 0
        self._limit(entry)
        if is_known and entry.reason is None and not self._is_text:  # the text depends on the encoding setting too
            entry.sha256, entry.etag = sha256, entry.etag or etag
            self.reused += 1
            _compare(entry)
        return entry.reason is not None or entry.sha256 is not None

    def _limit(self, entry: Entry) -> None:
        """Refuses what is empty or too large."""
        if entry.size == 0:
            entry.refuse("empty", "the file is empty (0 bytes); copy it again, or remove it")
        elif entry.size > self._limits.max_bytes:
            error = too_large(f"{entry.size} bytes", "max_bytes", self._limits.max_bytes)
            entry.refuse(error.reason, error.message)

    def _read_all(self, entries: list[Entry]) -> None:
        read: Callable[[Entry], None] = self._read_text if self._is_text else self._hash
        for entry in entries:
            try:
                read(entry)
            except UnicodeDecodeError as error:
                advice = "set `encoding` to the file's own"
                entry.refuse("wrong_encoding", f"byte {error.start} is not {error.encoding}; {advice}")
            except OSError as error:
                why = error.strerror or str(error) or type(error).__name__
                entry.refuse("unreadable", f"cannot be read ({why}); make it readable: the next run tries again")
            except ValueError as error:
                entry.refuse("unreadable", str(error))

    def _hash(self, entry: Entry) -> None:
        for _ in self._pieces(entry):
            pass

    def _read_text(self, entry: Entry) -> None:
        content = b"".join(self._pieces(entry))
        if entry.reason is None:
            _take_text(entry, content.decode(self._source.encoding).removeprefix("\ufeff"))

    def _pieces(self, entry: Entry) -> Iterator[bytes]:
        """The content, which ends where the limit does; then `entry` has its hash, or says why it is refused."""
        digest, size = hashlib.sha256(), 0
        self.read[entry.uri] = entry.version
        for piece in self._source.open(entry):
            digest.update(piece)
            size += len(piece)
            yield piece
            if size > self._limits.max_bytes:
                break
        if entry.size == -1:
            entry.size = size
            self._limit(entry)
        elif size != entry.size:
            raise ValueError(f"has {size} bytes and was listed with {entry.size}; run again")
        entry.sha256 = digest.hexdigest()
        _compare(entry)


def _compare(entry: Entry) -> None:
    """Refuses what has not the checksum that it must have."""
    if entry.reason is None and entry.expected not in (None, entry.sha256):
        advice = "get the file anew, or correct what `sha256` says"
        entry.refuse("wrong_checksum", f"its SHA-256 is {entry.sha256}, expected {entry.expected}; {advice}")


def _take_text(entry: Entry, text: str) -> int:
    """Returns its size in bytes."""
    if not text or text.isspace():
        entry.refuse("empty", "the file holds white space only")
    content = text.encode()
    entry.text, entry.sha256 = text, hashlib.sha256(content).hexdigest()
    return len(content)


def _slices(entries: list[Entry]) -> Iterable[list[Entry]]:
    return (entries[start : start + _AT_ONCE] for start in range(0, len(entries), _AT_ONCE))


Rows = TypeVar("Rows", pa.RecordBatch, pa.Table, list)


def portions(rows: Rows, sizes: list[int], most: int | None = None) -> Iterator[Rows]:
    """The rows, in order, in slices of at most `most` rows and 16 MB (or one larger item) of media.

    Args:
        sizes: bytes of media that each row stands for.
    """
    start = total = 0
    for n, size in enumerate(sizes):
        if n - start == most or (n > start and total + size > _PORTION_BYTES):
            yield rows[start:n]
            start, total = n, 0
        total += size
    if sizes:
        yield rows[start:]


Outcome = TypeVar("Outcome")


def process_contents(
    batch: pa.RecordBatch, step: Callable[[pa.RecordBatch], Outcome], sources: Mapping[str, Source]
) -> Outcome:
    """An engine's unit of work: reading at the edge, unless the batch came with its `data`, then a pure step
    (`assets.processing.Step`).

    It lies here since a process imports the module: this one is light.
    """
    return step(batch if "data" in batch.schema.names else attach_data(batch, sources))


def attach_data(rows: pa.RecordBatch | pa.Table, sources: Mapping[str, Source]) -> pa.RecordBatch:
    """Manifest rows with a column `data` (large_binary) of their bytes.

    Where the bytes cannot be had, or are no longer those that were hashed, `data` is null and `data_error` says why.
    Texts get their UTF-8 bytes, as the manifest has them: the hash is that of the original, in which personal data may
    be masked.

    Args:
        sources: by name, those that have listed the rows.
    """
    names = ["source", "sha256", "key", "uri", "member", "row", "offset", "size", "text"]
    data, errors = [], []
    for name, sha256, key, uri, member, row, offset, size, text in _columns(rows, names):
        entry = Entry(key, uri, member, row, offset, size, text=text)
        error, content, source = None, None, sources.get(name)
        try:
            if text is not None:
                content = text.encode()
            elif source is not None:
                content = _joined(source.open(entry))
                if hashlib.sha256(content).hexdigest() != sha256:
                    error, content = "changed since it was listed; run again", None
            else:
                error = f"its source {name!r} is not in the project file; run again"
        except (OSError, ValueError) as failure:
            error = f"cannot be read: {failure}"
        data.append(content)
        errors.append(error)
    batch = rows.combine_chunks().to_batches()[0] if isinstance(rows, pa.Table) and rows.num_rows else rows
    fields = [*batch.schema, pa.field("data", pa.large_binary()), pa.field("data_error", pa.string())]
    columns = [batch[name] for name in batch.schema.names]
    columns = [c.combine_chunks() if isinstance(c, pa.ChunkedArray) else c for c in columns]
    return pa.record_batch([*columns, _binary(data), pa.array(errors, pa.string())], pa.schema(fields))


def _joined(pieces: Iterable[bytes]) -> bytes:
    """The pieces as one, of which none is kept: all of them at once would be as large again."""
    whole = io.BytesIO()
    for piece in pieces:
        whole.write(piece)
    return whole.getvalue()


def _binary(data: Sequence[bytes | None]) -> pa.Array:
    """As large_binary; a large content comes alone, and is not copied."""
    if len(data) != 1 or data[0] is None:
        return pa.array(data, pa.large_binary())
    offsets = pa.array([0, len(data[0])], pa.int64()).buffers()[1]
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(data[0])])


def _columns(rows: pa.RecordBatch | pa.Table, names: list[str]) -> Iterator[tuple[Any, ...]]:
    return zip(*(rows[name].to_pylist() for name in names), strict=True)
