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
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import ColumnProperties, CommitProperties, DeltaTable, WriterProperties, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError

from assets.engines.base import cores
from assets.spill import own_folder
from training.messages import one_line
from training.schema import FEATURE_TABLES, INDEX_TABLES, SCHEMA_VERSION, TABLES, conform, feature_type

# Which tensors they hold depends on the kind of features: another kind adds columns.
GROWING = FEATURE_TABLES
# Tensors do not shrink, and compressing them halves the rate; to look for equal ones, and for the least, takes as long
# as to write them.
_UNCOMPRESSED = FEATURE_TABLES
_TENSOR = ColumnProperties(dictionary_enabled=False, statistics_enabled="NONE")
# Versions of these say which rows made a model. Of other tables delta-rs deletes the log of what is older than a month.
KEPT_FOR_EVER = set(INDEX_TABLES)
_WHOLE_LOG = {"delta.enableExpiredLogCleanup": "false"}
# Servers append at any time: a file that no commit names may be about to be named.
_APPENDED = {"answers", "answer_inputs", "feedback"}
# The log would tell the least and the greatest value of each column, texts and hashes too, after the rows are erased.
_NO_STATISTICS = {"delta.dataSkippingNumIndexedCols": "0"}
BATCH_ROWS = 8192  # of a small table that are Python objects at once
_COMMIT_BYTES = 64 * 2**20  # rows are committed in portions of about this size; a crash loses at most one
_ROW_GROUP_BYTES = 64 * 2**20
_ATTEMPTS = 8  # of a commit that another run's commit is in the way of
MEMORY_LIMIT = "1GB"  # of DuckDB; what is more is spilled to disk


def open_duckdb(
    memory_limit: str = MEMORY_LIMIT, threads: int | None = None, spill: str | None = None
) -> duckdb.DuckDBPyConnection:
    """An empty in-memory DuckDB; without `threads` it uses the cores that this process may.

    Args:
        spill: folder where what does not fit in memory lies meanwhile; null: .tmp in the current one.
    """
    config: dict[str, Any] = {"memory_limit": memory_limit, "threads": threads or cores()}
    if spill is not None:
        config["temp_directory"] = str(Path(spill) / uuid.uuid4().hex)  # DuckDB makes it when it needs it
    return duckdb.connect(config=config)


@functools.cache
def _shared(process: int, memory_limit: str, threads: int, spill: str | None) -> duckdb.DuckDBPyConnection:
    """One for all queries of a process (a forked one must not use its parent's): each start takes 25 ms."""
    atexit.register(_shared.cache_clear)  # DuckDB's binding prints what is alive at the end
    return open_duckdb(memory_limit, threads, spill)


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


class Stored(NamedTuple):
    """What the log of a table says of a version."""

    id: str  # of the table, whatever its version
    version: int
    files: tuple[str, ...]


@dataclass(frozen=True)
class Lake:
    """The tables of one project under one folder or object-store prefix."""

    uri: str
    storage_options: Mapping[str, str] = field(default_factory=dict)
    memory_limit: str = MEMORY_LIMIT
    threads: int | None = None
    spill: str | None = None  # where processes have folders (`assets.spill`) for what does not fit in memory
    instead: Mapping[str, pa.Table] = field(default_factory=dict)  # what queries read in place of stored tables
    # To be read as it was (`assets.snapshots`): table -> version, and table -> SQL condition of its rows.
    versions: Mapping[str, int] = field(default_factory=dict)
    conditions: Mapping[str, str] = field(default_factory=dict)

    def table_uri(self, name: str) -> str:
        return f"{self.uri.rstrip('/')}/{name}"

    def open(self, name: str) -> DeltaTable | None:
        """The table's newest version (of a lake as it was: that one), or None where nothing was ever written."""
        if name in self.versions:
            return self.open_version(name, self.versions[name])
        uri = self.table_uri(name)
        options = dict(self.storage_options)
        return DeltaTable(uri, storage_options=options) if DeltaTable.is_deltatable(uri, options) else None

    def stored(self, name: str) -> Stored | None:
        """Of the version that `open` opens, which takes milliseconds: on a disk only where the log has grown."""
        uri = self.table_uri(name)
        if name in self.versions or "://" in uri:
            return _stored(self.open(name))
        newest = _newest_commit(uri)
        return None if newest is None else _stored_by(uri, newest)

    def schema(self, name: str) -> pa.Schema:
        """The declared columns; of a table that grows, those that it has now."""
        table = self.open(name) if name in GROWING else None
        if table is None:
            return TABLES[name]
        more = [field.name for field in table.schema().fields if field.name not in TABLES[name].names]
        return pa.schema([*TABLES[name], *(pa.field(column, feature_type(column)) for column in more)])

    def version(self, name: str) -> int | None:
        stored = self.stored(name)
        return None if stored is None else stored.version

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
        self._replace(name, _cast(name, rows), predicate, note)

    def put(
        self,
        name: str,
        connection: duckdb.DuckDBPyConnection,
        query: str,
        predicate: str | None = None,
        note: Mapping[str, str] | None = None,
    ) -> bool:
        """`replace` by the result of a query, batch by batch; rows and note that are there already stay. Returns
        whether anything was written.

        Args:
            connection: where the query runs.
        """
        there = self.open(name)
        named = [] if there is None else [field.name for field in there.schema().fields]
        if there is not None and (note is None or self.note(name) == note) and {*named} == {*TABLES[name].names}:
            kept = f"SELECT * FROM {name}" + (f" WHERE {predicate}" if predicate else "")
            with self.connect(name) as stored:
                before = _checksum(stored, kept, name)
                if name == "quarantine":  # whose messages are not stored as they were made
                    stored.register("made", _as_stored(connection, query, name))
                    is_same = before == _checksum(stored, "FROM made", name)
                else:
                    is_same = before == _checksum(connection, query, name)
                if is_same:
                    return False
        if there is None and predicate is not None and not connection.sql(f"FROM ({query}) LIMIT 1").fetchall():
            return False
        _with_patience(lambda: self._put(name, connection, query, predicate, note))
        return True

    def _put(
        self,
        name: str,
        connection: duckdb.DuckDBPyConnection,
        query: str,
        predicate: str | None,
        note: Mapping[str, str] | None,
    ) -> None:
        rows = _as_stored(connection, query, name)
        if (first := next(rows, None)) is None:
            return self._replace(name, TABLES[name].empty_table(), predicate, note)
        rows = pa.RecordBatchReader.from_batches(TABLES[name], itertools.chain([first], rows))
        self._replace(name, rows, predicate, note, first.nbytes // first.num_rows)

    def delete(self, name: str, predicate: str) -> None:
        """Removes the rows that an SQL predicate selects."""
        if self.open(name) is not None:
            # Not by delta-rs's own deletion: it writes the rest as string views, which pyarrow's filters do not know.
            self._write(name, self.schema(name).empty_table(), "overwrite", predicate)

    def create(self, name: str) -> None:
        """Makes the table, without rows, where it is not there yet: others then write it as it was made."""
        if self.open(name) is None:
            try:
                self._write(name, TABLES[name].empty_table(), "error")
            except DeltaError as error:
                if not _exists(error):
                    raise  # else another process has just made it

    def keep_log(self, name: str) -> None:
        """Older versions of the table stay readable for ever; one of older code may have been made otherwise."""
        table = self.open(name)
        if table is not None and not _WHOLE_LOG.items() <= table.metadata().configuration.items():
            table.alter.set_table_properties(_WHOLE_LOG)

    def vacuum(self, name: str, keep_versions: list[int] | None = None) -> int:
        """Deletes files that no version refers to any more; returns how many.

        Args:
            keep_versions: older versions that stay readable beside the newest.
        """
        if (table := self.open(name)) is None:
            return 0
        # Full: also files that no commit names, of writers that were killed; of others who append, old ones only.
        ways = [(0, False), (1, True)] if name in _APPENDED else [(0, True)]
        return sum(
            len(
                table.vacuum(
                    hours, dry_run=False, enforce_retention_duration=False, full=full, keep_versions=keep_versions
                )
            )
            for hours, full in ways
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

    def _replace(
        self,
        name: str,
        rows: pa.Table | pa.RecordBatchReader,
        predicate: str | None,
        note: Mapping[str, str] | None,
        row_bytes: int | None = None,
    ) -> None:
        if predicate is not None:
            self.create(name)  # what another run has written into it meanwhile stays
        self._write(name, rows, "overwrite", predicate, note, row_bytes)

    def _write(
        self,
        name: str,
        rows: pa.Table | pa.RecordBatchReader,
        mode: Any,
        predicate: str | None = None,
        note: Mapping[str, str] | None = None,
        row_bytes: int | None = None,
    ) -> None:
        """Args: `rows` that can be read only once are so, whoever else writes: see `put`."""
        assert not self.versions, "what was is read only"
        if "://" not in self.uri:
            Path(self.uri).mkdir(parents=True, exist_ok=True)
        if isinstance(rows, pa.Table):
            size = row_bytes or rows.nbytes // max(1, rows.num_rows)
            _with_patience(lambda: self._commit(name, rows, mode, predicate, note, size), mode)
        else:
            assert row_bytes is not None
            self._commit(name, rows, mode, predicate, note, row_bytes)

    def _commit(
        self,
        name: str,
        rows: pa.Table | pa.RecordBatchReader,
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
        spill = tempfile.gettempdir()
        if self.spill is not None and os.access(self.spill, os.W_OK):  # who only reads makes no folder
            spill = own_folder(os.getpid(), self.spill)
        connection = _shared(os.getpid(), self.memory_limit, self.threads or cores(), spill).cursor()
        if query is not None:
            for name in reversed(TABLES):
                query += self.conditions.get(name, "") if name in query else ""  # they name earlier tables
        self._add_views(connection, [name for name in TABLES if query is None or name in query])
        return connection

    def workspace(self, *names: str) -> duckdb.DuckDBPyConnection:
        """An in-memory DuckDB of its own with these tables as views, to make more tables in."""
        spill = None if self.spill is None else own_folder(os.getpid(), self.spill)
        connection = open_duckdb(self.memory_limit, self.threads, spill)
        self._add_views(connection, names)
        return connection

    def _add_views(self, connection: duckdb.DuckDBPyConnection, names: Iterable[str]) -> None:
        for name in names:
            if name in self.instead:
                connection.register(name, self.instead[name])
                continue
            schema, table = TABLES[name], self.stored(name)
            if table is None or not table.files:
                connection.register(name, pa.Table.from_batches([], schema))
                continue
            if "://" in self.uri:
                stored, opened = f"stored_{name}", self.open(name)
                assert opened is not None
                connection.register(stored, opened.to_pyarrow_dataset())
            else:
                # The library percent-encodes paths, and DuckDB would expand a * or ? in them.
                files = ", ".join(sql_string(glob.escape(unquote(uri.removeprefix("file://")))) for uri in table.files)
                stored = f"read_parquet([{files}], union_by_name = true)"  # columns may have been added
            # Columns that its files do not have are null: they may be older than this code.
            nothing = pa.Table.from_batches([], schema)  # an `empty_table` loads pandas, which takes half a second
            connection.register(f"declared_{name}", nothing)
            rows = f"FROM {stored} UNION ALL BY NAME FROM declared_{name}"
            rows = f"FROM ({rows}) WHERE {self.conditions[name]}" if name in self.conditions else rows
            connection.execute(f"CREATE TEMP VIEW {name} AS {rows}")

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


def _stored(table: DeltaTable | None) -> Stored | None:
    return None if table is None else Stored(str(table.metadata().id), table.version(), tuple(table.file_uris()))


def _newest_commit(folder: str) -> tuple[str, int, int] | None:
    """Name, time and inode of the newest file of a table's log, which is another one where a table was made anew; None
    where there is no table."""
    try:
        with os.scandir(Path(folder) / "_delta_log") as entries:
            newest = max((entry for entry in entries if entry.name[:20].isdigit()), key=lambda entry: entry.name)
            stat = newest.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # no folder, or no file in it
        return None
    return newest.name, stat.st_mtime_ns, stat.st_ino


@functools.lru_cache(maxsize=1024)
def _stored_by(uri: str, newest: tuple[str, int, int]) -> Stored | None:
    """Args: `newest` tells one state of the log from another."""
    return _stored(DeltaTable(uri))


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


def _with_patience(commit: Callable[[], None], mode: str = "overwrite") -> None:
    """Tries again where another run has replaced the same rows, added columns, or made the table."""
    for n in itertools.count():
        try:
            return commit()
        except DeltaError as error:
            is_met = isinstance(error, CommitFailedError) or (mode != "error" and _exists(error))
            if n == _ATTEMPTS or not is_met:
                raise
            time.sleep(random.uniform(0, 0.05 * 2**n))


def _checksum(connection: duckdb.DuckDBPyConnection, query: str, name: str) -> tuple[Any, ...]:
    """What differs where the rows of two queries do, whatever their order."""
    cells = ", ".join(map(sql_name, TABLES[name].names))
    hashed = f"SELECT hash({cells}) AS h FROM ({query})"
    return connection.sql(f"SELECT count(*), sum(h::HUGEINT), bit_xor(h) FROM ({hashed})").fetchall()[0]


def _as_stored(connection: duckdb.DuckDBPyConnection, query: str, name: str) -> pa.RecordBatchReader:
    """The result of a query batch by batch, as `_cast` has it."""
    reader = connection.sql(query).to_arrow_reader(BATCH_ROWS)
    batches = (part for batch in reader if batch.num_rows for part in _cast(name, batch).to_batches())
    return pa.RecordBatchReader.from_batches(TABLES[name], batches)


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
