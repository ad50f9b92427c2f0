"""Rows of Arrow as records: typed columns as the words that other tables have in their place."""

import itertools
from collections.abc import Iterator, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from assets.formats.base import Record, TableFile, unstorable
from assets.formats.media_column import holds_binary, holds_vectors
from assets.formats.values import EXACT, as_text, no_text, refused
from assets.names import normalize
from assets.sources.base import SourceError


def is_read(table: TableFile, field: pa.Field) -> bool:
    """Whether a column is asked for, or holds what can be read as words: neither bytes nor vectors."""
    return table.reads(normalize(field.name)) or not (
        holds_binary(field.type) or holds_vectors(field.type, decimals=True)
    )


def records(table: TableFile, columns: Mapping[str, pa.Array], row: int) -> Iterator[Record]:
    """The rows of a batch.

    Args:
        columns: those that are read (`is_read`), by name; of media what they are called (`names_of`).
        row: rows before the batch.

    Raises:
        SourceError: a column that is asked for holds bytes.
    """
    names = [normalize(name) for name in columns]
    cells = [_strings(table, column, name) for name, column in columns.items()]
    problems = _no_texts(table, dict(zip(names, columns.values(), strict=True)))
    is_sound = unstorable(itertools.chain.from_iterable(cells)) is None
    for number, values in enumerate(zip(*cells, strict=True)):
        line = row + number + 1
        if found := problems.get(number):
            yield table.broken(line, refused(f"row {line}", table.text or "", found))
        elif not is_sound and (found := unstorable(values)):
            yield table.broken(line, f"row {line} holds {found}")
        else:
            yield table.record(line, dict(zip(names, values, strict=True)))


def names_of(media: pa.Array, names: pa.Array | None) -> pa.Array:
    """What media are called: "" where nothing says, null where there is none."""
    called = pc.fill_null(names, "") if names is not None else pa.repeat("", len(media))
    return pc.if_else(media.is_valid(), called, None)


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


def _no_texts(table: TableFile, columns: Mapping[str, pa.Array]) -> dict[int, str]:
    """What the rows hold that should have text and have none, by their place in the batch."""
    column = columns.get(table.text or "")
    if column is None or holds_binary(column.type):
        return {}
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)):
        return {}
    found = enumerate(no_text(value) for value in column.to_pylist())
    return {number: words for number, words in found if words is not None}
