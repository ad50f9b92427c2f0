"""Feature tables copied into memory-mapped Arrow files on the machine that trains."""

import os
import uuid
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from filelock import FileLock

from training.compressed import Compressed, unpacked
from training.compressions.base import Fit
from training.features import FeatureSettings
from training.schema import tensor

_SCAN_ROWS = 256  # rows read from a table at a time
_VIEWS = 20_000  # rows whose views are kept, about 1 kB each: making one takes longer than using it


def open_table(
    lake: str, name: str, version: int | None = None, storage_options: Mapping[str, str] | None = None
) -> ds.Dataset:
    """A Delta table of the lake, at a version or its newest, as an Arrow dataset (nothing is read yet).

    Raises:
        ValueError: there is no such table.
    """
    from deltalake import DeltaTable
    from deltalake.exceptions import TableNotFoundError

    uri = f"{lake.rstrip('/')}/{name}"
    try:
        return DeltaTable(uri, version=version, storage_options=dict(storage_options or {})).to_pyarrow_dataset()
    except TableNotFoundError as error:
        raise ValueError(f"the lake {lake} has no table {name!r}: materialize the asset of that name first") from error


def read_fit(lake: str, fingerprint: str, storage_options: Mapping[str, str] | None = None) -> Fit:
    """What the compression of the feature rows of that fingerprint has found. Raises ValueError: it is not there."""
    table = open_table(lake, "fits", storage_options=storage_options)
    rows = table.to_table(columns=["tensors"], filter=ds.field("made_with") == fingerprint)["tensors"]
    if not len(rows):
        raise ValueError(f"the lake {lake} has no fit of features {fingerprint}: materialize them, then the dataset")
    return unpacked(rows[0].as_py())


def needed_columns(modality: str, features: FeatureSettings) -> dict[str, str | None]:
    """The columns of a feature table that a model reads: the dtype of tensors, None of others. What augmentation reads
    in the place of these stands in rows of its own (`FeatureSettings.augmented`)."""
    featurizer, compressed = features.featurizer(modality), features.compressed(modality)
    read = (featurizer.read,) if compressed is None else tuple(compressed.tensors)
    stored = features.stored(modality).items()
    tensors = {name: dtype for name, dtype in stored if name in (*read, *featurizer.beside)}
    return dict.fromkeys(features.modality(modality).extra) | tensors


class FeatureCache:
    """Feature rows of one modality and fingerprint in Arrow files that are memory-mapped, not read.

    Rows are added, never changed; each addition is a file of its own that appears whole or not at all.
    """

    def __init__(
        self,
        root: Path,
        modality: str,
        fingerprint: str,
        columns: Mapping[str, str | None],
        compressed: Compressed | None = None,
        beside: "Sequence[FeatureCache]" = (),
    ) -> None:
        """
        Args:
            compressed: how one of the tensors is stored, which rows then have as it was before.
            beside: of other tensors of the same contents, which rows have too.
        """
        self.compressed = compressed
        self.beside = tuple(beside)
        self.modality = modality
        self.fingerprint = fingerprint
        self.columns = dict(columns)  # as of `needed_columns`
        self.folder = Path(root) / "-".join((modality, fingerprint, *columns))
        self._open()

    def _open(self) -> None:
        self._batches: list[pa.RecordBatch] = []
        self._read: dict[int, dict[str, Any]] = {}
        for path in sorted(self.folder.glob("*.arrow")):
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            self._batches += [reader.get_batch(n) for n in range(reader.num_record_batches)]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        self.ids = pa.chunked_array([batch["id"] for batch in self._batches], pa.string())
        self._places = [cache._found(self.ids) for cache in self.beside]

    def __getstate__(self) -> dict[str, Any]:
        names = ("modality", "fingerprint", "columns", "folder", "compressed", "beside")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:  # a worker process maps the files itself
        self.__dict__.update(state)
        self._open()

    def add(self, table: ds.Dataset, ids: Collection[str]) -> int:
        """Copies those of `ids` that are not here yet from a feature table; returns how many. Safe in many processes.

        Raises:
            ValueError: the table lacks some of them.
        """
        for cache in self.beside:
            cache.add(table, ids)
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"):
            for unfinished in self.folder.glob("*.tmp"):  # of a process that was killed: nobody else holds the lock
                unfinished.unlink()
            self._open()
            missing = set(ids).difference(self.ids.to_pylist())
            if not missing:
                return 0
            wanted = (ds.field("fingerprint") == self.fingerprint) & ds.field("id").isin(pa.array(sorted(missing)))
            shapes = [f"{name}_shape" for name, dtype in self.columns.items() if dtype is not None]
            columns = ["id", *self.columns, *shapes]
            scanner = table.scanner(
                columns, wanted, batch_size=_SCAN_ROWS, batch_readahead=1, fragment_readahead=1, use_threads=False
            )
            # Names sort in the order of addition, so that positions stay what they are.
            name = f"{len(list(self.folder.glob('*.arrow'))):06d}-{uuid.uuid4().hex[:8]}"
            temporary = self.folder / f"{name}.tmp"
            count = len(missing)
            with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, scanner.projected_schema) as writer:
                for batch in scanner.to_batches():
                    firsts = []  # a table may hold a row twice (two writers); one of them is enough
                    for n, item in enumerate(batch["id"].to_pylist()):
                        if item in missing:
                            missing.remove(item)
                            firsts.append(n)
                    if firsts:
                        writer.write_batch(batch.take(pa.array(firsts)))
            if missing:
                temporary.unlink()
                raise ValueError(
                    f"{len(missing)} of {count} {self.modality} features are not in the table {self.modality}_features "
                    f"with fingerprint {self.fingerprint} (first: {min(missing)}): materialize it, then the dataset"
                )
            os.replace(temporary, self.folder / f"{name}.arrow")
            self._open()
            return count

    def positions(self, ids: pa.ChunkedArray) -> np.ndarray:
        """Where each id lies, -1 for a null id; raises ValueError for an id that was never added."""
        positions = self._found(ids)
        unknown = (positions < 0) & pc.is_valid(ids).to_numpy()
        if unknown.any():
            item = ids[int(unknown.argmax())].as_py()
            raise ValueError(f"{self.modality} features of {item} are not in the cache {self.folder}: add them first")
        return positions

    def _found(self, ids: pa.ChunkedArray) -> np.ndarray:
        """Where each id lies, -1 where it does not."""
        indices = pc.fill_null(pc.index_in(ids, value_set=self.ids.combine_chunks(), skip_nulls=True), -1)
        return indices.to_numpy().astype(np.int64)

    def lacks(self, ids: Collection[str]) -> bool:
        """Whether one of them was not added."""
        return bool(set(ids).difference(self.ids.to_pylist())) or any(cache.lacks(ids) for cache in self.beside)

    def read(self, position: int) -> dict[str, Any]:
        """The columns of one row; tensors are read-only views of the mapped file, but one that was compressed."""
        if (row := self._read.get(position)) is None:
            row = self._read_row(position)
            if len(self._read) < _VIEWS:
                self._read[position] = row
        return row if self.compressed is None else self.compressed.restore(row)

    def _read_row(self, position: int) -> dict[str, Any]:
        n = int(np.searchsorted(self._starts, position, side="right")) - 1
        batch, at = self._batches[n], position - int(self._starts[n])
        row: dict[str, Any] = {}
        for name, dtype in self.columns.items():
            if dtype is None:
                row[name] = batch[name][at].as_py()
            else:
                stored = {name: batch[name][at].as_buffer(), f"{name}_shape": batch[f"{name}_shape"][at].as_py()}
                row[name] = tensor(stored, name, dtype)
        for cache, places in zip(self.beside, self._places, strict=True):
            row |= cache.read(int(places[position]))
        return row
