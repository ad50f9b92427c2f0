"""Parquet: typed columns, read in batches. Of a column that holds media only their names are read."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from assets.formats.arrow import is_read, names_of, records
from assets.formats.base import Record, TableFile
from assets.formats.media_column import MediaField, holds_binary
from assets.sources.base import SourceError

_ROWS = 4096


def read(table: TableFile) -> Iterator[Record]:
    if table.columns:
        raise SourceError(f"{table}: `columns` name those of a table without header, and Parquet has its own names")
    with table.open() as raw, pq.ParquetFile(raw) as file:
        fields = [f for f in file.schema_arrow if is_read(table, f)]
        table.check([f.name for f in fields])
        media = {f.name: _media(table, file, f) for f in fields if f.name == table.media or _is_media(f)}
        size = min((m.batch_rows(file.metadata, _ROWS) for m in media.values() if m.name == m.content), default=_ROWS)
        leaves = [media[f.name].name if f.name in media else f.name for f in fields]
        row = 0
        for batch in file.iter_batches(size, columns=[leaf for leaf in leaves if leaf]):
            columns = {f.name: _names(batch, media[f.name]) if f.name in media else batch[f.name] for f in fields}
            yield from records(table, columns, row)
            row += batch.num_rows


def _names(batch: pa.RecordBatch, media: MediaField) -> pa.Array:
    if media.name is None:  # neither names nor bytes had to be read
        return pa.repeat("", batch.num_rows)
    column = batch[media.column]
    return names_of(column, None if media.name == media.content else column.field(0))


def _is_media(field: pa.Field) -> bool:
    return pa.types.is_struct(field.type) and holds_binary(field.type)


def _media(table: TableFile, file: pq.ParquetFile, field: pa.Field) -> MediaField:
    """Where the column's media lie; as its name, what has to be read to tell the rows that have some."""
    vectors = table.vectors and field.name == table.media
    media = MediaField.of(file.schema_arrow, field.name, vectors)
    if media is None and vectors:
        raise SourceError(
            f"{table}: column {field.name!r} is {field.type} and holds no vectors: expected a list of numbers a row, "
            "or a list of such lists"
        )
    if media is None:
        raise SourceError(
            f"{table}: column {field.name!r} is {field.type} and holds no media: expected bytes, one medium a row; "
            "where it names files, say under `files` where they lie; lists of numbers are read with features of kind "
            "vector"
        )
    return media._replace(name=media.content) if not media.name and media.has_nulls(file.metadata) else media
