"""Parquet: typed columns, read in batches. Of a column that holds media only their names are read."""

import itertools
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from assets.formats.base import Record, TableFile, unstorable
from assets.formats.media_column import MediaField, holds_binary, holds_vectors
from assets.formats.values import EXACT, as_text, no_text, refused
from assets.names import normalize
from assets.sources.base import SourceError

_ROWS = 4096


def read(table: TableFile) -> Iterator[Record]:
    if table.columns:
        raise SourceError(f"{table}: `columns` name those of a table without header, and Parquet has its own names")
    with table.open() as raw, pq.ParquetFile(raw) as file:
        fields = [f for f in file.schema_arrow if table.reads(normalize(f.name)) or not _is_no_word(f.type)]
        names = table.check([f.name for f in fields])
        media = {f.name: _media(table, file, f) for f in fields if f.name == table.media or _is_media(f)}
        size = min((m.batch_rows(file.metadata, _ROWS) for m in media.values() if m.name == m.content), default=_ROWS)
        leaves = [media[f.name].name if f.name in media else f.name for f in fields]
        row = 0
        for batch in file.iter_batches(size, columns=[leaf for leaf in leaves if leaf]):
            columns = [
                _names(batch, media[f.name]) if f.name in media else _strings(table, batch[f.name], f.name)
                for f in fields
            ]
            problems = _no_texts(table, batch, fields)
            is_sound = unstorable(itertools.chain.from_iterable(columns)) is None
            for number, cells in enumerate(zip(*columns, strict=True)):
                row += 1
                if found := problems.get(number):
                    yield table.broken(row, refused(f"row {row}", table.text or "", found))
                elif not is_sound and (found := unstorable(cells)):
                    yield table.broken(row, f"row {row} holds {found}")
                else:
                    yield table.record(row, dict(zip(names, cells, strict=True)))


def _is_no_word(kind: pa.DataType) -> bool:
    """Bytes and vectors."""
    return holds_binary(kind) or holds_vectors(kind, decimals=True)


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


def _names(batch: pa.RecordBatch, media: MediaField) -> list[str | None]:
    """What the media of a batch are called: "" where nothing says, null where there is none."""
    if media.name is None:
        return [""] * batch.num_rows
    column = batch[media.column]
    names = [""] * batch.num_rows if media.name == media.content else column.field(0).to_pylist()
    return [name or "" if valid else None for name, valid in zip(names, column.is_valid().to_pylist(), strict=True)]


def _strings(table: TableFile, column: pa.Array, name: str) -> list[str | None]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_floating(column.type):
        return _numbers(column)
    if not pa.types.is_nested(column.type) and not isinstance(column.type, pa.BaseExtensionType):
        try:
            return column.cast(pa.string()).to_pylist()
        except pa.ArrowException:
            if holds_binary(column.type):
                raise SourceError(f"{table}: column {name!r} holds bytes, which are no text; name another") from None
    return [as_text(value) for value in column.to_pylist()]


def _numbers(column: pa.Array) -> list[str | None]:
    """As `as_text` writes them."""
    if pa.types.is_float16(column.type):
        column = column.cast(pa.float32())
    column = pc.if_else(pc.is_finite(column), column, None)
    wide = column.cast(pa.float64())
    whole = pc.and_(pc.equal(pc.floor(wide), wide), pc.less(pc.abs(wide), EXACT))
    integers = pc.if_else(whole, wide, 0).cast(pa.int64()).cast(pa.string())
    return pc.if_else(whole, integers, column.cast(pa.string())).to_pylist()


def _no_texts(table: TableFile, batch: pa.RecordBatch, fields: list[pa.Field]) -> dict[int, str]:
    """What the rows hold that should have text and have none, by their place in the batch."""
    field = next((f for f in fields if normalize(f.name) == table.text), None)
    if field is None or holds_binary(field.type):
        return {}
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)):
        return {}
    found = enumerate(no_text(value) for value in batch[field.name].to_pylist())
    return {number: words for number, words in found if words is not None}
