"""Embeddings: what a frozen pretrained encoder makes of a content, as N tokens (`training.pretrained`).

Shapes: B rows, N tokens, D width of the encoder.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from training import pretrained
from training.device import chosen_device
from training.featurizers.base import FeatureShape
from training.featurizers.processed import (
    ModelFeaturizer,
    OfImage,
    OfSpeech,
    OfText,
    PaddedOptions,
    ProcessedImageOptions,
    ProcessedOptions,
)
from training.validation import check

if TYPE_CHECKING:
    from torch import Tensor

_FEEDING = 2  # threads; on an H200 beside 16 cores ViT-base gets as many pictures a second of 1 as of 2 and 4


@dataclass(frozen=True, kw_only=True)
class EmbeddingOptions(ProcessedOptions):
    tokens: int = 4  # of a content: means over as many stretches, or cells of a picture
    layer: int = -1  # of the encoder's hidden states; -1: its own end
    batch_size: int = 16  # inputs that go through the encoder at once

    def __post_init__(self) -> None:
        check(self.tokens >= 1, "tokens", self.tokens, "at least 1")
        check(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")


class EmbeddingFeaturizer(ModelFeaturizer):
    form = "vectors"
    described = "embeddings of a pretrained encoder"
    version = 1
    read = "embedding"
    at_batch = ("batch_size",)
    at_once = 32 * 2**20
    runs_model = True
    carries_weights = True
    tensors: Mapping[str, str] = {"embedding": "float16"}
    Options = EmbeddingOptions

    def featurize(self, content: Any) -> dict[str, np.ndarray]:
        (tensors,) = self.featurize_all([content])
        return tensors

    def featurize_all(self, contents: Sequence[Any]) -> list[dict[str, np.ndarray]]:
        options = self.options
        raw = [self.raw(content) for content in contents]
        embedded = self._loaded.embed(raw, options.tokens, options.layer, options.batch_size)
        return [{"embedding": embedding_ND} for embedding_ND in embedded]

    def most_workers(self) -> int | None:
        """Few threads feed an accelerator: more wait for the interpreter, and it for them."""
        return _FEEDING if chosen_device().type != "cpu" else None

    def prepare(self) -> None:
        self.shape()  # runs it once: the layer may not be there

    def shape(self) -> FeatureShape:
        return FeatureShape(self.form, self._loaded.width(self.options.layer), self.options.tokens)

    def batch(self, rows: Sequence[np.ndarray | None]) -> "tuple[Tensor, Tensor]":
        """float32 (B, N, D), zero where there is nothing, and a mask (B, N)."""
        from training.padding import padded_frames

        return padded_frames(rows)

    @functools.cached_property
    def _loaded(self) -> pretrained.PretrainedEncoder:
        """Looked for once: a served model reads row by row."""
        return pretrained.load_encoder(self.modality, self._folder)


class EmbeddingTextFeaturizer(OfText, EmbeddingFeaturizer):
    pass


@dataclass(frozen=True, kw_only=True)
class ImageEmbeddingOptions(EmbeddingOptions, ProcessedImageOptions):
    pass


class EmbeddingImageFeaturizer(OfImage, EmbeddingFeaturizer):
    version = 2
    Options = ImageEmbeddingOptions


@dataclass(frozen=True, kw_only=True)
class SpeechEmbeddingOptions(EmbeddingOptions, PaddedOptions):
    pass


class EmbeddingSpeechFeaturizer(OfSpeech, EmbeddingFeaturizer):
    Options = SpeechEmbeddingOptions
