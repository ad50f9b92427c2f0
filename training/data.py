"""Rows for training and evaluation: feature tables -> memory-mapped Arrow cache -> rows (-> batches: `collator`).

A *row* is a dict with sample_id, label, epoch, and for each modality a dict of its features' columns (tensors, and of a
text the text), or None where the sample lacks it; where it has several contents of a modality X, `X_more` is the list
of the further ones, and where these have views, `X_views` names that of each; where the prompt names columns of the
samples, these as `columns`, a dict of strings. The same rows come from raw input when a model serves (`Processor`), so
both go through one `Collator`.

Order and pairing of an epoch are drawn from generators keyed by (seed, epoch, sample id), never from global state, so a
resumed run sees what the undisturbed one would have seen.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from training.cache import FeatureCache, needed_columns, open_table, read_fit
from training.codecs.options import Source
from training.features import FeatureSettings
from training.likeness import likenesses
from training.outputs.base import Look, Output
from training.pairing import Pairing
from training.processor import Row
from training.schema import MODALITIES

_NOTHING = dict.fromkeys(MODALITIES)


class SampleDataset(torch.utils.data.Dataset):
    """The rows of an index (a table of `schema.DATASET`), gathered from the caches.

    A key is a row number, or (epoch, row number): the row then knows its epoch, and has that epoch's contents where
    the dataset is `paired`.
    """

    def __init__(
        self,
        index: pa.Table,
        caches: Mapping[str, FeatureCache],
        columns: Sequence[str] = (),
        pairing: Pairing | None = None,
    ) -> None:
        """Args: `columns` are those of the samples' attributes that rows have."""
        attributes = [named_columns(cell, columns) for cell in index["attributes"].to_pylist()] if columns else []
        names = (f"{m}_{part}" for part in ("id", "pool") for m in MODALITIES)
        further = [f"{m}_{part}" for part in ("more", "views") for m in MODALITIES if _has(index, f"{m}_{part}")]
        index = index.select(["sample_id", "label", *names, *further])
        if columns:
            index = index.append_column("attributes", pa.array(map(json.dumps, attributes), pa.string()))
        self.index, self.columns, self._attributes, self._pairing = index, tuple(columns), attributes, pairing
        self._ids, self._labels = index["sample_id"].combine_chunks(), index["label"].combine_chunks()
        self.caches = dict(caches)
        self._positions = {m: cache.positions(index[f"{m}_id"]) for m, cache in self.caches.items()}
        some = {m: cache for m, cache in self.caches.items() if f"{m}_more" in further}
        self._further = {m: _Further(index[f"{m}_more"], cache) for m, cache in some.items()}
        self._views = {m: index[f"{m}_views"].combine_chunks() for m in self.caches if f"{m}_views" in further}

    def __len__(self) -> int:
        return self.index.num_rows

    def __getitem__(self, key: int | tuple[int, int]) -> Row:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> list[Row]:
        """The rows of a batch, which take less time together than one by one."""
        epochs, numbers = zip(*(key if isinstance(key, tuple) else (0, key) for key in keys), strict=True)
        lenders = {} if self._pairing is None else self._pairing.lenders(epochs, numbers)
        rows: list[Row] = [
            {**_NOTHING, "sample_id": self._ids[n].as_py(), "label": self._labels[n].as_py(), "epoch": epoch}
            for epoch, n in zip(epochs, numbers, strict=True)
        ]
        for modality, cache in self.caches.items():
            positions = self._positions[modality][lenders.get(modality, list(numbers))]
            for row, position in zip(rows, positions.tolist(), strict=True):
                if position >= 0:
                    row[modality] = cache.read(position)
        for modality, listed in self._further.items():
            for row, n in zip(rows, numbers, strict=True):
                if len(positions := listed.positions(n)):
                    row[f"{modality}_more"] = [self.caches[modality].read(int(position)) for position in positions]
        for modality, views in self._views.items():
            for row, n in zip(rows, numbers, strict=True):
                if row[modality] is not None:
                    row[f"{modality}_views"] = views[n].as_py()
        if self.columns:
            for row, n in zip(rows, numbers, strict=True):
                row["columns"] = self._attributes[n]
        return rows

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those that at least one row has."""
        return tuple(m for m in MODALITIES if m in self.caches and (self._positions[m] >= 0).any())

    def counts(self, modalities: Sequence[str]) -> list[int]:
        """Of each row how many contents it has of the one of these modalities that it has most of, at least 1."""
        further = [listed.counts for m, listed in self._further.items() if m in modalities]
        return list(np.max([np.zeros(len(self), np.int64), *further], axis=0) + 1)

    @property
    def labels(self) -> list[str | None]:
        return self.index["label"].to_pylist()

    def column(self, name: str) -> list[str]:
        """What each row says of a column, one of `columns`; "" where nothing."""
        return [values[name] for values in self._attributes]

    def texts(self) -> Iterator[str]:
        """Every text and value of a column of every row, as often as it occurs."""
        yield from (value for values in self._attributes for value in values.values())
        for modality, cache in self.caches.items():
            if "text" not in cache.columns:
                continue
            listed = self._further.get(modality)
            further = [] if listed is None else [listed.every]
            positions, counts = np.unique(np.concatenate([self._positions[modality], *further]), return_counts=True)
            for position, count in zip(positions.tolist(), counts.tolist(), strict=True):
                if position >= 0:
                    yield from itertools.repeat(cache.read(position)["text"], count)

    def identity(self) -> str:
        """Names the rows, their labels and inputs, and what may stand in for these, in order."""
        digest = hashlib.sha256()
        for column in self.index.columns:
            for chunk in column.chunks:
                digest.update(repr(chunk.to_pylist()).encode())
        return digest.hexdigest()

    def tensors(self, modality: str, name: str, ids: Sequence[str]) -> list[np.ndarray]:
        """One tensor of contents that were added to the cache."""
        if not ids:
            return []
        cache = self.caches[modality]
        positions = cache.positions(pa.chunked_array([pa.array(ids, pa.string())]))
        return [cache.read(int(position))[name] for position in positions]

    def asking(self, output: Output) -> "SampleDataset":
        """The rows that training reads: `Output.questions`."""
        return SampleDataset(output.questions(self.index), self.caches, self.columns) if output.answers_with else self

    def look(self, features: FeatureSettings) -> Look:
        """What the contents that are in the caches look like."""

        def look(modality: str, ids: Sequence[str]) -> tuple[np.ndarray, Source]:
            source = Source.of(features, modality)
            return likenesses(self.tensors(modality, source.tensor, ids), source), source

        return look

    def take(self, rows: Sequence[int] | np.ndarray) -> "SampleDataset":
        return SampleDataset(self.index.take(pa.array(rows, pa.int64())), self.caches, self.columns)

    def and_more(self, others: "SampleDataset") -> "SampleDataset":
        """The rows of both. Args: `others` of the same caches, opened later: they know all that had been added."""
        index = pa.concat_tables([self.index, others.index], promote_options="permissive")
        return SampleDataset(index, {**self.caches, **others.caches}, self.columns)

    def paired(self, seed: int) -> "SampleDataset":
        """As training reads the rows: where `align.pairing` asks for it, each epoch draws their contents anew."""
        return SampleDataset(self.index, self.caches, self.columns, Pairing(self.index, seed))


def _has(index: pa.Table, name: str) -> bool:
    """Whether a row has anything in that column."""
    return name in index.column_names and index[name].null_count < len(index)


class _Further:
    """How many further contents each row has, and where they lie in a cache."""

    def __init__(self, more: pa.ChunkedArray, cache: FeatureCache) -> None:
        self.counts = pc.fill_null(pc.list_value_length(more), 0).to_numpy()
        self._ends = np.cumsum(self.counts)
        self.every = cache.positions(pc.list_flatten(more))

    def positions(self, row: int) -> np.ndarray:
        return self.every[self._ends[row - 1] if row else 0 : self._ends[row]]


def named_columns(attributes: str | None, columns: Sequence[str]) -> dict[str, str]:
    """Of a JSON object, the values of these columns; "" where it has none."""
    values = json.loads(attributes or "{}") if columns else {}
    return {name: str(values.get(name) or "") for name in columns}


def open_samples(
    index: pa.Table,
    lake: str,
    fingerprints: Mapping[str, str],
    features: FeatureSettings,
    cache: Path,
    storage_options: Mapping[str, str] | None = None,
    noise: Mapping[str, Sequence[str]] | None = None,
    columns: Sequence[str] = (),
    augmented: Mapping[str, str] | None = None,
) -> SampleDataset:
    """The rows of `index`, after adding their features to the cache.

    Args:
        fingerprints: modality -> fingerprint of the feature rows to take; other modalities are left out.
        noise: modality -> contents that no row has and augmentation needs (`tensors`).
        columns: of the samples' attributes, those that rows have.
        augmented: modality -> fingerprint of the feature rows that only augmentation reads, which rows then have, too.
    """
    caches = {}
    for modality, fingerprint in fingerprints.items():
        ids = pc.unique(index[f"{modality}_id"]).drop_null().to_pylist()
        if _has(index, f"{modality}_more"):
            ids += pc.unique(pc.list_flatten(index[f"{modality}_more"])).to_pylist()
        ids += (noise or {}).get(modality, ())
        if ids:
            compressed = features.compressed(modality)
            if compressed is not None and not compressed.is_ready:
                compressed = features.compressed(modality, read_fit(lake, fingerprint, storage_options))
            beside = []
            if (key := (augmented or {}).get(modality)) is not None:
                beside.append(FeatureCache(cache, modality, key, features.augmented(modality)))
            read = needed_columns(modality, features)
            store = FeatureCache(cache, modality, fingerprint, read, compressed, beside)
            if store.lacks(ids):
                store.add(open_table(lake, f"{modality}_features", storage_options=storage_options), ids)
            caches[modality] = store
    return SampleDataset(index, caches, columns)


class EpochSampler(torch.utils.data.Sampler):
    """Keys (epoch, row number) in an order that depends on (seed, epoch) alone."""

    def __init__(self, rows: int, seed: int) -> None:
        self.rows = rows
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[tuple[int, int]]:
        random = np.random.default_rng([self.seed, self.epoch])
        for n in random.permutation(self.rows):
            yield self.epoch, int(n)
