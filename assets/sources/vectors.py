"""Vectors as items (`training.vectors`) that lie in a column of a table: a list of numbers a row, or a list of such
lists, in Parquet, JSON Lines or JSON; in CSV and spreadsheets as JSON in the cell."""

from pathlib import Path
from typing import Any

from assets.formats.base import Record
from assets.remote_settings import REMOTE
from assets.sources.base import Entry, Source
from assets.sources.embedded import EmbeddedSource
from assets.sources.table import TableSource
from assets.tables import is_parquet
from assets.time_settings import TIMED
from training.vectors import text_of_cell


class VectorsSource(TableSource):
    """Every row is an item of any modality; the other columns are its attributes."""

    holds = "vector"

    @classmethod
    def make(cls, root: Path, options: Any, modality: str, vectors: bool = True) -> Source:
        """Of Parquet the numbers are read again where they lie: a manifest that holds them would be large."""
        if not is_parquet(options.table):
            return cls(root, options)
        names = "table", "key", "column", "missing", "checksum", *TIMED, *REMOTE
        shared = {name: getattr(options, name) for name in names}
        return ParquetVectorsSource(root, EmbeddedSource.Options(**shared))

    @classmethod
    def check(cls, modality: str, options: Any) -> None:
        if options.table is None or options.column is None or not options.key:
            raise ValueError("reads vectors from a table: name the table, its column and its key")

    def _item(self, record: Record, mtime: int | None, left_out: tuple[str, ...]) -> Entry:
        entry = super()._item(record, mtime, left_out)
        if entry.text is not None:
            entry.text = text_of_cell(entry.text)
        return entry


class ParquetVectorsSource(EmbeddedSource):
    """The same of Parquet, where `EmbeddedSource` finds media."""

    vectors = True
