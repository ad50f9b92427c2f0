"""Rows for training and evaluation: feature tables -> memory-mapped Arrow cache -> rows -> batches.

A *row* is a dict with sample_id, label, text, input_ids (tokens,), pixels (C, H, W), log_mel (F, M), mfcc (F, K) and
waveform (samples,); a modality that the sample lacks is None in all its columns. The same rows come from raw input
when a model serves, so both go through one `Collator`.

All randomness of an epoch (order, modality dropout, augmentation) is drawn from generators keyed by (seed, epoch,
sample id), never from global state, so a resumed run sees what the undisturbed one would have seen.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from training.cache import FeatureCache, needed_columns, open_table
from training.schema import MODALITIES
from training.settings import FeatureSettings

Row = dict[str, Any]
COLUMNS = ("sample_id", "label", "text", "input_ids", "pixels", "log_mel", "mfcc", "waveform")


class SampleDataset(torch.utils.data.Dataset):
    """The rows of an index (a table of `schema.DATASET`), gathered from the caches.

    A key is a row number, or (epoch, row number): the row then knows its epoch.
    """

    def __init__(self, index: pa.Table, caches: Mapping[str, FeatureCache]) -> None:
        index = index.select(["sample_id", "label", *(f"{m}_id" for m in MODALITIES)])
        self.index = index
        self._ids, self._labels = index["sample_id"].combine_chunks(), index["label"].combine_chunks()
        self.caches = dict(caches)
        self._positions = {m: cache.positions(index[f"{m}_id"]) for m, cache in self.caches.items()}

    def __len__(self) -> int:
        return self.index.num_rows

    def __getitem__(self, key: int | tuple[int, int]) -> Row:
        epoch, n = key if isinstance(key, tuple) else (0, key)
        row: Row = dict.fromkeys(COLUMNS)
        row["sample_id"], row["label"] = self._ids[n].as_py(), self._labels[n].as_py()
        for modality, cache in self.caches.items():
            if (position := self._positions[modality][n]) >= 0:
                row |= cache.read(int(position))
        row["epoch"] = epoch
        return row

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those that at least one row has."""
        return tuple(m for m in MODALITIES if m in self.caches and (self._positions[m] >= 0).any())

    @property
    def labels(self) -> list[str | None]:
        return self.index["label"].to_pylist()

    def texts(self) -> Iterator[str]:
        """The text of every row that has one, as often as it occurs."""
        if "text" in self.caches:
            positions, counts = np.unique(self._positions["text"], return_counts=True)
            for position, count in zip(positions.tolist(), counts.tolist(), strict=True):
                if position >= 0:
                    yield from itertools.repeat(self.caches["text"].read(position)["text"], count)

    def identity(self) -> str:
        """Names the rows and their labels and inputs, in order."""
        digest = hashlib.sha256()
        for column in self.index.columns:
            for chunk in column.chunks:
                digest.update(repr(chunk.to_pylist()).encode())
        return digest.hexdigest()

    def waveforms(self, ids: Sequence[str]) -> list[np.ndarray]:
        """int16 (samples,) of speech contents that were added to the cache."""
        if not ids:
            return []
        cache = self.caches["speech"]
        positions = cache.positions(pa.chunked_array([pa.array(ids, pa.string())]))
        return [cache.read(int(position))["waveform"] for position in positions]

    def take(self, rows: Sequence[int] | np.ndarray) -> "SampleDataset":
        return SampleDataset(self.index.take(pa.array(rows, pa.int64())), self.caches)


def open_samples(
    index: pa.Table,
    lake: str,
    fingerprints: Mapping[str, str],
    features: FeatureSettings,
    cache: Path,
    storage_options: Mapping[str, str] | None = None,
    noise: Sequence[str] = (),
) -> SampleDataset:
    """The rows of `index`, after adding their features to the cache.

    Args:
        fingerprints: modality -> fingerprint of the feature rows to take; other modalities are left out.
        noise: speech contents that no row has and augmentation needs (`waveforms`).
    """
    caches = {}
    for modality, fingerprint in fingerprints.items():
        ids = pc.unique(index[f"{modality}_id"]).drop_null().to_pylist()
        ids += noise if modality == "speech" else ()
        if ids:
            store = FeatureCache(cache, modality, fingerprint, needed_columns(modality, features))
            if set(ids).difference(store.ids.to_pylist()):
                store.add(open_table(lake, f"{modality}_features", storage_options=storage_options), ids)
            caches[modality] = store
    return SampleDataset(index, caches)


def generator(seed: int, epoch: int, sample_id: str) -> np.random.Generator:
    """The random generator of one sample in one epoch."""
    key = hashlib.blake2b(f"{seed}\0{epoch}\0{sample_id}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key, np.uint64)))


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
        for n in np.random.default_rng([self.seed, self.epoch]).permutation(self.rows):
            yield self.epoch, int(n)


@dataclass
class Collator:
    """Rows to a batch of tensors, with what `FusionModel.forward` takes.

    present bool (B, N) in the order of `modalities`; for each modality X the values `X` in the form of its features,
    and a mask `X_mask` where the form has one; prompt_ids and prompt_mask (B, P), padded on the left; with `targets`,
    labels: what it makes of the rows' labels.

    Args:
        modalities: those the model reads; the rest of a row is ignored.
        prompt: the modality that the language model reads itself: it needs no ids of its own.
        keep: only these are shown to the model, the others are hidden.
        targets: `Output.targets` of the model; None: no labels are made. Rows without a label are an error with it.
        modality_dropout: chance that a present modality is hidden; the last one of a row never is.
        augment: modality -> what changes its values (image pixels, or a waveform to frames) with a row's generator.
    """

    tokenizer: PreTrainedTokenizerBase
    features: FeatureSettings
    modalities: tuple[str, ...]
    prompt: str | None = "text"
    keep: frozenset[str] | None = None
    targets: Callable[[Sequence[str]], Tensor] | None = None
    modality_dropout: float = 0.0
    augment: Mapping[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = field(default_factory=dict)
    seed: int = 0
    _encoded: dict[str, list[int]] = field(default_factory=dict, repr=False)

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        shown = [self.shown(row) for row in rows]
        batch = {"present": torch.tensor([[m in s for m in self.modalities] for s in shown], dtype=torch.bool)}
        if "image" in self.modalities:
            batch["image"] = self._pixels(self._values(rows, shown, "image", "pixels"))
        if "speech" in self.modalities:
            kind = "waveform" if "speech" in self.augment else self.features.speech.kind
            batch["speech"], batch["speech_mask"] = self._frames(self._values(rows, shown, "speech", kind))
        if "text" in self.modalities:
            texts = [row["text"] if "text" in s else "" for row, s in zip(rows, shown, strict=True)]
            if self.prompt == "text":
                batch["prompt_ids"], batch["prompt_mask"] = _padded(
                    [self._encode(text)[: self.features.text.max_tokens] for text in texts], self._pad, left=True
                )
            else:
                ids = [row["input_ids"] if "text" in s else () for row, s in zip(rows, shown, strict=True)]
                batch["text"], batch["text_mask"] = _padded(ids, 0)
        if self.targets is not None:
            batch["labels"] = self.targets(_labels(rows))
        return batch

    def shown(self, row: Row) -> list[str]:
        """The modalities of the row that the model sees."""
        present = [m for m in self.modalities if self._has(row, m) and (self.keep is None or m in self.keep)]
        if self.modality_dropout == 0 or len(present) < 2:
            return present
        random = generator(self.seed, row["epoch"], row["sample_id"])
        # One draw for each modality there is, so that what a row lacks does not move the draws of the others.
        draws = dict(zip(MODALITIES, random.random(len(MODALITIES)), strict=True))
        kept = [m for m in present if draws[m] >= self.modality_dropout]
        return kept or [max(present, key=lambda m: draws[m])]

    def _values(
        self, rows: Sequence[Row], shown: Sequence[Sequence[str]], modality: str, column: str
    ) -> list[np.ndarray | None]:
        values = [row[column] if modality in s else None for row, s in zip(rows, shown, strict=True)]
        if (change := self.augment.get(modality)) is None:
            return values
        return [
            None
            if value is None
            else change(value, generator(self.seed, row["epoch"], f"{row['sample_id']} {modality}"))
            for row, value in zip(rows, values, strict=True)
        ]

    def _has(self, row: Row, modality: str) -> bool:
        if modality == "text":
            return bool(row["text"]) and (self.prompt == "text" or len(row["input_ids"]) > 0)
        value = row["pixels" if modality == "image" else self.features.speech.kind]
        return value is not None and len(value) > 0

    @property
    def _pad(self) -> int:
        return int(self.tokenizer.pad_token_id)

    def _encode(self, text: str) -> list[int]:
        """Token ids, with the special tokens that the tokenizer puts around a text by itself."""
        # Texts recur over rows and epochs. Long ones seldom do, and would fill the memory.
        if (ids := self._encoded.get(text)) is None:
            ids = self.tokenizer(text)["input_ids"] if text else []
            if len(text) < 1000 and len(self._encoded) < 50_000:
                self._encoded[text] = ids
        return ids

    def _pixels(self, pictures: Sequence[np.ndarray | None]) -> Tensor:
        settings = self.features.image
        shape = (3 if settings.color == "rgb" else 1, settings.size, settings.size)
        stacked = np.zeros((len(pictures), *shape), dtype=np.float32)
        for n, picture in enumerate(pictures):
            if picture is not None:
                stacked[n] = picture
        return torch.from_numpy(stacked).div_(255).sub_(settings.mean).div_(settings.std)

    def _frames(self, spoken: Sequence[np.ndarray | None]) -> tuple[Tensor, Tensor]:
        settings = self.features.speech
        width = settings.mels if settings.kind == "log_mel" else settings.coefficients
        lengths = [0 if frames is None else len(frames) for frames in spoken]
        padded = np.zeros((len(spoken), max(1, *lengths), width), dtype=np.float32)
        for n, frames in enumerate(spoken):
            if frames is not None:
                padded[n, : len(frames)] = frames
        return torch.from_numpy(padded), torch.arange(padded.shape[1]) < torch.tensor(lengths)[:, None]


def _labels(rows: Sequence[Row]) -> list[str]:
    for row in rows:
        if row["label"] is None:
            raise ValueError(f"sample {row['sample_id']} has no label: leave unlabelled rows out of training")
    return [row["label"] for row in rows]


def _padded(sequences: Sequence[Any], fill: int, left: bool = False) -> tuple[Tensor, Tensor]:
    """Token ids int64 (B, S) and mask bool (B, S); S is at least 1."""
    longest = max(1, *(len(sequence) for sequence in sequences))
    ids = np.full((len(sequences), longest), fill, dtype=np.int64)
    mask = np.zeros((len(sequences), longest), dtype=bool)
    for n, sequence in enumerate(sequences):
        if length := len(sequence):
            place = slice(longest - length, None) if left else slice(0, length)
            ids[n, place], mask[n, place] = sequence, True
    return torch.from_numpy(ids), torch.from_numpy(mask)
