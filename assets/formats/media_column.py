"""Media that lie in a Parquet column, as Hugging Face writes them: bytes, or structs of bytes and a name; and lists of
numbers, which are media where they are asked for."""

import bisect
import itertools
import json
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from assets.remote_settings import ANYWHERE, RemoteSettings
from assets.storage import PIECE, locate
from training.vectors import encode_vectors, text_of_cell

_LISTS = pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list
_NUMBERS = pa.types.is_floating, pa.types.is_integer
_DECODED_BYTES = 4 * 2**20  # of media decoded at once, in each thread


def holds_binary(kind: pa.DataType) -> bool:
    """Whether there are bytes in it, at any depth."""
    if isinstance(kind, pa.BaseExtensionType):
        return kind.extension_name != "arrow.uuid" and holds_binary(kind.storage_type)
    if pa.types.is_nested(kind):
        return any(holds_binary(kind.field(n).type) for n in range(kind.num_fields))
    if pa.types.is_dictionary(kind):
        return holds_binary(kind.value_type)
    tests = pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary
    return any(test(kind) for test in tests)


class MediaField(NamedTuple):
    """Where the media of a column lie in the file."""

    column: str
    content: str  # dotted path of the bytes
    name: str | None  # of what they are called; null: nothing says

    @classmethod
    def of(cls, schema: pa.Schema, column: str, vectors: bool = False) -> "MediaField | None":
        """None where the column is not there or does not hold the bytes of one medium (`vectors`: lists of numbers) a
        row."""
        kind = schema.field(column).type if column in schema.names else pa.null()
        if vectors:
            return cls(column, column, None) if holds_vectors(kind) else None
        if not pa.types.is_struct(kind):
            return cls(column, column, None) if holds_binary(kind) and not pa.types.is_nested(kind) else None
        fields = [kind.field(n) for n in range(kind.num_fields)]
        contents = [f.name for f in fields if holds_binary(f.type)]
        names = sorted((f.name != "path", f.name) for f in fields if pa.types.is_string(f.type))
        if len(contents) != 1:
            return None
        return cls(column, f"{column}.{contents[0]}", f"{column}.{names[0][1]}" if names else None)

    def batch_rows(self, metadata: pq.FileMetaData, most: int) -> int:
        """Rows whose media are worth decoding at once."""
        leaf = _leaf(metadata, self.content)
        groups = (metadata.row_group(n).column(leaf) for n in range(metadata.num_row_groups))
        total = sum(group.total_uncompressed_size for group in groups)
        return max(1, min(most, _DECODED_BYTES * metadata.num_rows // max(total, 1)))

    def has_nulls(self, metadata: pq.FileMetaData) -> bool:
        """Whether the bytes of some rows may be null, as far as the statistics tell."""
        leaf = _leaf(metadata, self.content)
        groups = (metadata.row_group(n).column(leaf).statistics for n in range(metadata.num_row_groups))
        return any(s is None or not s.has_null_count or s.null_count > 0 for s in groups)


def _leaf(metadata: pq.FileMetaData, path: str) -> int:
    paths = (metadata.schema.column(n).path for n in range(metadata.num_columns))
    return next(n for n, leaf in enumerate(paths) if leaf == path or leaf.startswith(f"{path}."))  # of a list: x.list.y


def holds_vectors(kind: pa.DataType, decimals: bool = False) -> bool:
    """Lists of numbers, or lists of these; with `decimals`, lists of whole numbers, which may be labels, are none."""
    depth = 0
    while isinstance(kind, pa.BaseExtensionType) or any(test(kind) for test in _LISTS):
        is_list = not isinstance(kind, pa.BaseExtensionType)
        kind, depth = (kind.value_type if is_list else kind.storage_type), depth + is_list
    if decimals and depth == 1 and not pa.types.is_floating(kind):
        return False
    return depth in (1, 2) and any(test(kind) for test in _NUMBERS)


def bytes_of_vectors(cell: pa.Scalar) -> bytes | None:
    """What stands for a cell of a column of vectors (`training.vectors`); None where there is none."""
    if not cell.is_valid:
        return None
    if isinstance(cell, pa.ExtensionScalar):
        if hasattr(cell, "to_numpy"):  # a tensor, which knows its shape
            return encode_vectors(cell.to_numpy()).encode()
        cell = cell.value
    values: Any = cell.values
    shape: list[int | None] = [len(cell)]
    if any(test(values.type) for test in _LISTS):
        lengths = pc.unique(pc.list_value_length(values))
        shape.append(lengths[0].as_py() if len(lengths) == 1 else None)
        values = values.flatten()
    if None in shape or values.null_count or any(test(values.type) for test in _LISTS):  # decoding says what is wrong
        return text_of_cell(json.dumps(cell.as_py(), default=str)).encode()
    return encode_vectors(values.to_numpy(zero_copy_only=False).reshape(shape)).encode()


class MediaColumn:
    """The media (or vectors) of one column of Parquet files, read by row. Several threads may share it; it pickles as
    closed."""

    def __init__(self, column: str, vectors: bool = False, access: RemoteSettings = ANYWHERE) -> None:
        self._column, self._vectors, self._access = column, vectors, access
        self._own = threading.local()  # each thread goes through the rows by itself

    def __reduce__(self) -> Any:
        return MediaColumn, (self._column, self._vectors, self._access)

    def read(self, uri: str, row: int) -> bytes:
        """The bytes in a row (from 1) of a file.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is damaged, or holds no bytes there.
        """
        rows: _Rows | None = getattr(self._own, "rows", None)
        try:
            if rows is None or rows.uri != uri:
                rows = self._own.rows = _Rows(uri, self._column, self._vectors, self._access)
            content = rows.content(row - 1)
        except pa.ArrowException as error:
            raise ValueError(f"cannot be read: {error}") from None
        if content is None:
            raise ValueError("there are no bytes in it; if it names a file, say under `files` where the files lie")
        return content


class _Rows:
    """A file whose rows are read in batches, forwards as far as they are near; memory holds one batch."""

    def __init__(self, uri: str, column: str, vectors: bool, access: RemoteSettings) -> None:
        self.uri, self._vectors = uri, vectors
        self._file = pq.ParquetFile(locate(uri, None, access).open(), buffer_size=PIECE)
        if (field := MediaField.of(self._file.schema_arrow, column, vectors)) is None:
            raise ValueError(f"column {column!r} holds no media any more; run again")
        metadata = self._file.metadata
        self._field, self._size = field, field.batch_rows(metadata, 256)
        self._ends = list(itertools.accumulate(metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)))
        self._first, self._batch = 0, pa.nulls(0)
        self._batches: Iterator[pa.RecordBatch] = iter(())

    def content(self, row: int) -> bytes | None:
        """Of a row from 0."""
        if not self._batch or row < self._first or self._group(row) > self._group(self._first) + 1:
            self._seek(row)
        while row >= self._first + len(self._batch):
            self._first += len(self._batch)
            batch = next(self._batches, None)
            if batch is None:
                raise ValueError("the table has become shorter; run again")
            self._batch = batch.column(0)
        if self._vectors:
            return bytes_of_vectors(self._batch[row - self._first])
        value = self._batch[row - self._first].as_py()
        return next(iter(value.values())) if isinstance(value, dict) else value

    def _group(self, row: int) -> int:
        return bisect.bisect_right(self._ends, row)

    def _seek(self, row: int) -> None:
        """To the start of the row group that holds the row."""
        group = self._group(row)
        self._first = self._ends[group - 1] if group else 0
        self._batch = pa.nulls(0)
        groups = range(group, len(self._ends))
        self._batches = self._file.iter_batches(self._size, groups, [self._field.content])
