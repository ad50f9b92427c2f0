"""Media that lie in a Parquet column, as Hugging Face writes them: bytes, or structs of bytes and a name."""

import bisect
import itertools
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from assets.storage import PIECE, locate

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
    def of(cls, schema: pa.Schema, column: str) -> "MediaField | None":
        """None where the column is not there or does not hold the bytes of one medium a row."""
        kind = schema.field(column).type if column in schema.names else pa.null()
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
    return next(n for n in range(metadata.num_columns) if metadata.schema.column(n).path == path)


class MediaColumn:
    """The media of one column of Parquet files, read by row. Several threads may share it; it pickles as closed."""

    def __init__(self, column: str) -> None:
        self._column = column
        self._own = threading.local()  # each thread goes through the rows by itself

    def __reduce__(self) -> Any:
        return MediaColumn, (self._column,)

    def read(self, uri: str, row: int) -> bytes:
        """The bytes in a row (from 1) of a file.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is damaged, or holds no bytes there.
        """
        rows: _Rows | None = getattr(self._own, "rows", None)
        try:
            if rows is None or rows.uri != uri:
                rows = self._own.rows = _Rows(uri, self._column)
            content = rows.content(row - 1)
        except pa.ArrowException as error:
            raise ValueError(f"cannot be read: {error}") from None
        if content is None:
            raise ValueError("there are no bytes in it; if it names a file, say under `files` where the files lie")
        return content


class _Rows:
    """A file whose rows are read in batches, forwards as far as they are near; memory holds one batch."""

    def __init__(self, uri: str, column: str) -> None:
        self.uri = uri
        self._file = pq.ParquetFile(locate(uri).open(), buffer_size=PIECE)
        if (field := MediaField.of(self._file.schema_arrow, column)) is None:
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
