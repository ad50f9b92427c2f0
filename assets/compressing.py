"""Feature rows as the lake keeps them: compressed where the project file says so (`training.compressions`).

A compression that is fitted is so once: to the first run's contents, those of the least hashes first, so that nothing
depends on how files are called. What it found is kept (table `fits`) under the settings, and its hash is part of the
rows' fingerprint: what comes later is compressed alike, and nothing is made anew. A setting asks for another fit.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assets.lake import Lake
from assets.settings import Project
from training.compressed import Compressed, packed, unpacked
from training.compressions.base import Fit
from training.processor import Processor
from training.schema import FITS, conform, features_schema, features_table, tensor

SAMPLE = 8192  # contents that are featurized first, where a fit is to be found
_SAMPLE_BYTES = 32 * 2**20  # of their vectors, as float32, that it is found in; so much is held before it is


def fits(project: Project) -> dict[str, Fit]:
    """Modality -> what the compression of its features has found, as far as a run has come."""
    compressed = {m: one for m in project.modalities if (one := project.features.compressed(m)) and not one.is_ready}
    if not compressed:
        return {}
    lake = Lake(project.lake_uri, project.storage_options, project.memory)
    unfitted = Processor(project.features, project.limits)
    found = {m: present_fit(lake, unfitted.fingerprint(m)) for m in compressed}
    return {m: fit for m, fit in found.items() if fit is not None}


def present_fit(lake: Lake, fingerprint: str) -> Fit | None:
    """The first one that was found. Args: `fingerprint` is that of feature rows without a fit."""
    query = "SELECT tensors FROM fits WHERE fingerprint = $key ORDER BY time, made_with LIMIT 1"
    found = lake.sql(query, {"key": fingerprint})["tensors"].to_pylist()
    return unpacked(found[0]) if found else None


class Compressor:
    """Feature rows as featurizing made them (`Featurizer.tensors`) to the rows that are kept; what is not compressed
    stays as it is."""

    def __init__(self, lake: Lake, project: Project, modality: str, processor: Processor) -> None:
        self._lake, self._features, self._limits = lake, project.features, project.limits
        self._modality, self._processor = modality, processor
        self._stored = project.features.stored(modality)
        self._held: list[dict[str, Any]] = []  # until there is a fit

    def add(self, table: pa.Table) -> pa.Table:
        """The rows of this table; none while a fit is still to be found, and then those of all before, too."""
        if (compressed := self._processor.compressed[self._modality]) is None:
            return table
        held, others = (table.filter(is_it(table[compressed.name])) for is_it in (pc.is_valid, pc.is_null))
        dtypes = self._processor.featurizers[self._modality].tensors
        self._held += [
            row | {n: tensor(row, n, d) for n, d in dtypes.items() if row[n] is not None} for row in held.to_pylist()
        ]
        size = 0 if compressed.is_ready else 4 * sum(row[compressed.name].size for row in self._held)
        others = conform(others, features_schema(self._modality, self._stored))
        if compressed.is_ready or size >= _SAMPLE_BYTES or len(self._held) >= SAMPLE:
            return pa.concat_tables([others, self.rest()])
        return others

    def rest(self) -> pa.Table:
        """Those that are still held. Raises ValueError: they are too few to fit a compression to."""
        rows, self._held = self._held, []
        if not (compressed := self._processor.compressed[self._modality]) or not rows:
            return features_table(self._modality, self._stored, [])
        if not compressed.is_ready:
            self._processor = self._fitted(compressed, rows)
            compressed = self._processor.compressed[self._modality]
            assert compressed is not None
        made = compressed.compress([row[compressed.name] for row in rows])
        key = {"fingerprint": self._processor.fingerprint(self._modality)}
        listed = [row | one | key for row, one in zip(rows, made, strict=True)]
        return features_table(self._modality, self._stored, listed)

    def _fitted(self, compressed: Compressed, rows: list[dict[str, Any]]) -> Processor:
        """With a fit to these rows, or the one that another run has found first."""
        vectors, most = list[np.ndarray](), _SAMPLE_BYTES // 4
        for row in rows:
            flat = row[compressed.name].reshape(-1, row[compressed.name].shape[-1])
            vectors.append(flat[: max(1, most // flat.shape[1])].astype(np.float64))
            most -= vectors[-1].size
            if most <= 0:
                break
        try:
            fit = compressed.compression.fitted(np.concatenate(vectors))
        except ValueError as error:
            raise ValueError(f"features.{self._modality}.compression: {error}") from None
        key, made = self._processor.fingerprint(self._modality), self._with(fit).fingerprint(self._modality)
        row = {"fingerprint": key, "made_with": made, "time": datetime.now(UTC), "tensors": packed(fit)}
        self._lake.append("fits", [pa.Table.from_pylist([row], FITS)])
        return self._with(present_fit(self._lake, key) or fit)

    def _with(self, fit: Fit) -> Processor:
        return Processor(self._features, self._limits, {self._modality: fit})


def reader(project: Project, modality: str, name: str) -> tuple[list[str], Callable[[Mapping[str, Any]], np.ndarray]]:
    """The columns of a feature table that hold a tensor, and what reads it from a row of these."""
    dtypes: Mapping[str, str] = project.features.featurizer(modality).tensors
    compressed = Processor(project.features, project.limits, fits(project)).compressed[modality]
    if compressed is None or compressed.name != name:
        return [name, f"{name}_shape"], lambda row: tensor(row, name, dtypes[name])
    stored = compressed.tensors

    def read(row: Mapping[str, Any]) -> np.ndarray:
        restored: np.ndarray = compressed.restore({n: tensor(row, n, d) for n, d in stored.items()})[name]
        return restored

    return [column for n in stored for column in (n, f"{n}_shape")], read


def loss(lake: Lake, project: Project, modality: str) -> dict[str, float]:
    """What compressing the present features of a modality costs and saves, over its contents: root mean square of the
    relative errors, mean cosine, bytes a content as stored, and the ratio of the bytes before to these."""
    processor = Processor(project.features, project.limits, fits(project))
    compressed = processor.compressed[modality]
    if compressed is None or compressed.loss not in lake.schema(f"{modality}_features").names:
        return {}
    size = " + ".join(f"octet_length({name})" for name in compressed.tensors)
    query = f"""
        SELECT sqrt(avg(lost[1] ** 2)) AS error, avg(lost[2]) AS cosine, avg(size) AS bytes,
          sum(lost[3]) / sum(size) AS ratio
        FROM (SELECT DISTINCT ON (id) {compressed.loss} AS lost, {size} AS size FROM {modality}_features
          WHERE fingerprint = $key)
    """
    (row,) = lake.sql(query, {"key": processor.fingerprint(modality)}).to_pylist()
    return {} if row["bytes"] is None else {name: float(value) for name, value in row.items()}
