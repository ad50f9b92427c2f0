"""The lake: Delta tables with atomic commits, and DuckDB over them.

Every read and write of a table goes through `Lake`. DuckDB runs in memory over the tables' Parquet files; nothing is
locked and nothing can be half written: a crash leaves whole commits only.
"""

import atexit
import functools
import glob
import itertools
import os
import random
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import ColumnProperties, CommitProperties, DeltaTable, WriterProperties, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError

from assets.engines.base import cores
from training.messages import one_line
from training.schema import FEATURE_TABLES, SCHEMA_VERSION, TABLES, conform

# Which tensors they hold depends on the kind of features: another kind adds columns.
GROWING = FEATURE_TABLES
# Tensors do not shrink, and compressing them halves the rate; to look for equal ones, and for the least, takes as long
# as to write them.
_UNCOMPRESSED = FEATURE_TABLES
_TENSOR = ColumnProperties(dictionary_enabled=False, statistics_enabled="NONE")
# Versions of these say which rows made a model. Of other tables delta-rs deletes the log of what is older than a month.
KEPT_FOR_EVER = {"samples", "dataset"}
_WHOLE_LOG = {"delta.enableExpiredLogCleanup": "false"}
# The log would tell the least and the greatest value of each column, texts and hashes too, after the rows are erased.
_NO_STATISTICS = {"delta.dataSkippingNumIndexedCols": "0"}
BATCH_ROWS = 8192  # of a small table that are Python objects at once
_COMMIT_BYTES = 64 * 2**20  # rows are committed in portions of about this size; a crash loses at most one
_ROW_GROUP_BYTES = 64 * 2**20
_ATTEMPTS = 8  # of a commit that another run's commit is in the way of
_MEMORY_LIMIT = "4GB"  # of DuckDB; what is more is spilled to disk


def open_duckdb(memory_limit: str = _MEMORY_LIMIT, threads: int | None = None) -> duckdb.DuckDBPyConnection:
    """An empty in-memory DuckDB; without `threads` it uses the cores that this process may."""
    return duckdb.connect(config={"memory_limit": memory_limit, "threads": threads or cores()})


@functools.cache
def _shared(process: int, memory_limit: str, threads: int) -> duckdb.DuckDBPyConnection:
    """One for all queries of a process (a forked one must not use its parent's): each start takes 25 ms."""
    atexit.register(_shared.cache_clear)  # DuckDB's binding prints what is alive at the end
    return open_duckdb(memory_limit, threads)


def sql_string(text: str) -> str:
    """The text as a string literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


def sql_name(column: str) -> str:
    """The column as SQL, whatever it is called."""
    return '"' + column.replace('"', '""') + '"'


def in_order(rows: pa.Table, column: str) -> pa.Table:
    """The rows sorted by a column; as they are where they are sorted, since sorting takes their memory once more."""
    values, count = rows[column], max(rows.num_rows - 1, 0)
    is_sorted = pc.all(pc.less_equal(values[:count], values[1:]), skip_nulls=False, min_count=0).as_py()
    return rows if is_sorted else rows.sort_by(column)


def sql_among(column: str, values: Iterable[str]) -> str:
    """The SQL condition that the column holds one of the values; false for no values."""
    listed = ", ".join(map(sql_string, values))
    return f"{column} IN ({listed})" if listed else "false"


@dataclass(frozen=True)
class Lake:
    """The tables of one project under one folder or object-store prefix."""

    uri: str
    storage_options: Mapping[str, str] = field(default_factory=dict)
    memory_limit: str = _MEMORY_LIMIT
    threads: int | None = None
    instead: Mapping[str, pa.Table] = field(default_factory=dict)  # what queries read in place of stored tables

    def table_uri(self, name: str) -> str:
        return f"{self.uri.rstrip('/')}/{name}"

    def open(self, name: str) -> DeltaTable | None:
        """The table's newest version, or None where nothing was ever written."""
        uri = self.table_uri(name)
        options = dict(self.storage_options)
        return DeltaTable(uri, storage_options=options) if DeltaTable.is_deltatable(uri, options) else None

    def schema(self, name: str) -> pa.Schema:
        """The declared columns; of a table that grows, those that it has now."""
        table = self.open(name) if name in GROWING else None
        if table is None:
            return TABLES[name]
        more = [field.name for field in table.schema().fields if field.name not in TABLES[name].names]
        types = {column: pa.list_(pa.int32()) if column.endswith("_shape") else pa.binary() for column in more}
        return pa.schema([*TABLES[name], *(pa.field(column, kind) for column, kind in types.items())])

    def version(self, name: str) -> int | None:
        table = self.open(name)
        return None if table is None else table.version()

    def require(self, name: str) -> int:
        """The version of a table that an earlier step writes.

        Raises:
            ValueError: that step never ran.
        """
        version = self.version(name)
        if version is None:
            raise ValueError(f"there is no {name} yet: materialize it first, or run the whole project")
        return version

    def open_version(self, name: str, version: int) -> DeltaTable | None:
        """An older version, or None where it is no longer there."""
        try:
            return DeltaTable(self.table_uri(name), version=version, storage_options=dict(self.storage_options))
        except DeltaError:
            return None

    def read_version(self, name: str, version: int) -> pa.Table | None:
        """The rows of an older version, with the columns of today; None where its log or its files are gone."""
        table = self.open_version(name, version)
        try:
            return None if table is None else _cast(name, table.to_pyarrow_dataset().to_table())
        except OSError:
            return None

    def note(self, name: str, version: int | None = None) -> dict[str, str]:
        """What the newest commit (up to `version`) that carried a note said of the table (`replace(note=...)`)."""
        if (table := self.open(name)) is None:
            return {}
        read = 0
        for limit in (10, 1000, None):  # most often it is among the newest; compacting and vacuuming commit without
            commits = table.history(limit)  # of the newest: that of an older version would list the newest all the same
            for commit in commits[read:]:
                note = {k.removeprefix("triptych."): v for k, v in commit.items() if k.startswith("triptych.")}
                if note and (version is None or commit["version"] <= version):
                    return note
            read = len(commits)
        return {}

    def append(self, name: str, batches: Iterable[pa.Table | pa.RecordBatch]) -> int:
        """Commits rows in portions of bounded size; returns how many rows were written."""
        rows, pending, size = 0, [], 0
        for batch in batches:
            table = _cast(name, batch)
            pending.append(table)
            rows, size = rows + table.num_rows, size + table.nbytes
            if size >= _COMMIT_BYTES:
                self._write(name, pa.concat_tables(pending), "append")
                pending, size = [], 0
        if pending and any(table.num_rows for table in pending):
            self._write(name, pa.concat_tables(pending), "append")
        return rows

    def replace(
        self, name: str, rows: pa.Table, predicate: str | None = None, note: Mapping[str, str] | None = None
    ) -> None:
        """Puts `rows` in the place of the whole table, or of the rows that `predicate` selects, in one commit."""
        rows = _cast(name, rows)
        if predicate is not None and self.open(name) is None:
            try:
                return self._write(name, rows, "error", None, note)
            except DeltaError as error:
                if not _exists(error):
                    raise  # else another run has made it since, and what that has written stays
        self._write(name, rows, "overwrite", predicate, note)

    def delete(self, name: str, predicate: str) -> None:
        """Removes the rows that an SQL predicate selects."""
        if self.open(name) is not None:
            # Not by delta-rs's own deletion: it writes the rest as string views, which pyarrow's filters do not know.
            self._write(name, self.schema(name).empty_table(), "overwrite", predicate)

    def vacuum(self, name: str, keep_versions: list[int] | None = None) -> int:
        """Deletes files that no version refers to any more; returns how many.

        Args:
            keep_versions: older versions that stay readable beside the newest.
        """
        if (table := self.open(name)) is None:
            return 0
        return len(
            table.vacuum(0, dry_run=False, enforce_retention_duration=False, full=True, keep_versions=keep_versions)
        )

    def forget(self, name: str) -> None:
        """Deletes the log of the table's older versions, which says what was deleted; they cannot be opened then."""
        if (table := self.open(name)) is None:
            return
        table.alter.set_table_properties({"delta.logRetentionDuration": "interval 0 days"})
        table.create_checkpoint()
        table.cleanup_metadata()
        # Delta's own rule again: others may go on reading what they have opened.
        table.alter.set_table_properties({"delta.logRetentionDuration": "interval 30 days"})

    def _write(
        self,
        name: str,
        rows: pa.Table,
        mode: Any,
        predicate: str | None = None,
        note: Mapping[str, str] | None = None,
    ) -> None:
        if "://" not in self.uri:
            Path(self.uri).mkdir(parents=True, exist_ok=True)
        row_bytes = rows.nbytes // max(1, rows.num_rows)
        for n in itertools.count():
            try:
                return self._commit(name, rows, mode, predicate, note, row_bytes)
            except DeltaError as error:
                # Another run has replaced the same rows, added columns, or made the table.
                is_met = isinstance(error, CommitFailedError) or (mode != "error" and _exists(error))
                if n == _ATTEMPTS or not is_met:
                    raise
                time.sleep(random.uniform(0, 0.05 * 2**n))

    def _commit(
        self,
        name: str,
        rows: pa.Table,
        mode: Any,
        predicate: str | None,
        note: Mapping[str, str] | None,
        row_bytes: int,
    ) -> None:
        write_deltalake(
            self.table_uri(name),
            rows,
            mode=mode,
            schema_mode="merge",  # columns that an older version of this code did not have are added
            predicate=predicate,
            storage_options=dict(self.storage_options),
            configuration=_NO_STATISTICS | (_WHOLE_LOG if name in KEPT_FOR_EVER else {}),
            commit_properties=CommitProperties(
                custom_metadata={"schema_version": str(SCHEMA_VERSION)}
                | {f"triptych.{key}": value for key, value in (note or {}).items()}
            ),
            writer_properties=writer_properties(name, rows.schema, row_bytes),
        )

    def connect(self, query: str | None = None) -> duckdb.DuckDBPyConnection:
        """An in-memory DuckDB with the tables of the lake as views; absent tables are empty ones. What it makes it
        has to make TEMP: others of this process must not see it.

        Args:
            query: only the tables whose names occur in it, since opening each takes milliseconds; default: all.
        """
        connection = _shared(os.getpid(), self.memory_limit, self.threads or cores()).cursor()
        for name, schema in TABLES.items():
            if query is not None and name not in query:
                continue
            if name in self.instead:
                connection.register(name, self.instead[name])
                continue
            table = self.open(name)
            if table is None or not (uris := table.file_uris()):
                connection.register(name, schema.empty_table())
                continue
            if "://" in self.uri:
                stored = f"stored_{name}"
                connection.register(stored, table.to_pyarrow_dataset())
            else:
                # The library percent-encodes paths, and DuckDB would expand a * or ? in them.
                files = ", ".join(sql_string(glob.escape(unquote(uri.removeprefix("file://")))) for uri in uris)
                stored = f"read_parquet([{files}], union_by_name = true)"  # columns may have been added
            # Columns that its files do not have are null: they may be older than this code.
            connection.register(f"declared_{name}", schema.empty_table())
            connection.execute(f"CREATE TEMP VIEW {name} AS FROM {stored} UNION ALL BY NAME FROM declared_{name}")
        return connection

    def sql(self, query: str, parameters: Mapping[str, Any] | None = None) -> pa.Table:
        """The whole result of a query over the tables."""
        with self.connect(query) as connection:
            return connection.sql(query, params=dict(parameters or {})).to_arrow_table()

    def stream(self, query: str, parameters: Mapping[str, Any], batch_rows: int) -> Iterator[pa.RecordBatch]:
        """The result batch by batch, from a connection of its own."""
        with self.connect(query) as connection:
            yield from connection.sql(query, params=dict(parameters)).to_arrow_reader(batch_rows)

    def read(self, name: str) -> pa.Table:
        """A whole table; for the small ones (manifest, samples, dataset, quarantine)."""
        return _cast(name, self.sql(f"SELECT * FROM {name}"))


def _exists(error: DeltaError) -> bool:
    """Whether a table that was to be made is there."""
    return "already exists" in str(error)


def writer_properties(name: str, columns: pa.Schema, row_bytes: int) -> WriterProperties:
    """How the files of a table are written."""
    return WriterProperties(
        compression="UNCOMPRESSED" if name in _UNCOMPRESSED else "ZSTD",
        max_row_group_size=max(1, min(1_000_000, _ROW_GROUP_BYTES // max(1, row_bytes))),
        column_properties={f.name: _TENSOR for f in columns if pa.types.is_binary(f.type)},
    )


def _cast(name: str, rows: pa.Table | pa.RecordBatch) -> pa.Table:
    """The rows with exactly the declared columns and types; a missing column is null, an unknown one an error."""
    schema = TABLES[name]
    table = pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
    if name in GROWING:  # what made the rows has declared the other columns
        schema = pa.schema([*schema, *(field for field in table.schema if field.name not in schema.names)])
    if unknown := set(table.column_names) - set(schema.names):
        raise ValueError(f"table {name} has no columns {sorted(unknown)}; declared are {schema.names}")
    table = conform(table, schema)
    if name == "quarantine":  # whatever a file name, a key or a decoder of others put into them
        bounded = (None if message is None else one_line(message) for message in table["message"].to_pylist())
        field = schema.field("message")
        table = table.set_column(schema.names.index("message"), field, pa.array(bounded, field.type))
    return table
