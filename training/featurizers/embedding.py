"""Embeddings: what a frozen pretrained encoder makes of a content, as N tokens (`training.pretrained`).

Shapes: B rows, N tokens, D width of the encoder.
"""

import functools
import json
import shutil
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from training import model_files, pretrained
from training.featurizers.base import FeatureShape, Featurizer
from training.images import Image
from training.recordings import Speech
from training.validation import FORBID_EXTRA, check

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class EmbeddingOptions:
    __pydantic_config__ = FORBID_EXTRA
    model: str = ""  # has to be given: a Hugging Face name, or a local folder of the same form
    tokens: int = 4  # of a content: means over as many stretches, or cells of a picture
    layer: int = -1  # of the encoder's hidden states; -1: its own end
    batch_size: int = 16  # inputs that go through the encoder at once

    def __post_init__(self) -> None:
        check(self.tokens >= 1, "tokens", self.tokens, "at least 1")
        check(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")


class EmbeddingFeaturizer(Featurizer):
    form = "vectors"
    described = "embeddings of a pretrained encoder"
    version = 1
    packages: tuple[str, ...] = ("transformers", "torch")
    read = "embedding"
    located = ("model",)
    at_batch = ("batch_size",)
    at_once = 32 * 2**20
    runs_model = True
    tensors: Mapping[str, str] = {"embedding": "float16"}
    Options = EmbeddingOptions
    modality: ClassVar[str]

    def __init__(self, options: EmbeddingOptions) -> None:
        super().__init__(options)
        self._saved: Path | None = None

    @abstractmethod
    def raw(self, content: Any) -> Any:
        """What the encoder's preprocessing takes."""

    def featurize(self, content: Any) -> dict[str, np.ndarray]:
        (tensors,) = self.featurize_all([content])
        return tensors

    def featurize_all(self, contents: Sequence[Any]) -> list[dict[str, np.ndarray]]:
        options = self.options
        raw = [self.raw(content) for content in contents]
        embedded = self._encoder.embed(raw, options.tokens, options.layer, options.batch_size)
        return [{"embedding": embedding_ND} for embedding_ND in embedded]

    def prepare(self) -> None:
        self.shape()  # runs it once: the layer may not be there

    def shape(self) -> FeatureShape:
        return FeatureShape(self.form, self._encoder.width(self.options.layer), self.options.tokens)

    def batch(self, rows: Sequence[np.ndarray | None]) -> "tuple[Tensor, Tensor]":
        """float32 (B, N, D), zero where there is nothing, and a mask (B, N)."""
        from training.padding import padded_frames

        # By the rows themselves: where batches are made, the encoder need not be.
        return padded_frames(rows, next((row.shape[1] for row in rows if row is not None), 1))

    def identity(self) -> Any:
        """The content of the model's files. Raises ValueError: it is not there."""
        return model_files.digest(self._folder)

    def save(self, folder: Path) -> None:
        for path in model_files.model_files(self._folder):
            shutil.copyfile(path, folder / path.name)

    def restore(self, folder: Path) -> None:
        self._saved = folder
        self.__dict__.pop("_encoder", None)

    def __getstate__(self) -> dict[str, Any]:
        """Without the network, which another process loads itself."""
        return {name: value for name, value in self.__dict__.items() if name != "_encoder"}

    @property
    def _folder(self) -> Path:
        return self._saved or model_files.model_folder(self.options.model)

    @functools.cached_property
    def _encoder(self) -> pretrained.PretrainedEncoder:
        """Looked for once: a served model reads row by row."""
        return pretrained.load_encoder(self.modality, self._folder)


class EmbeddingTextFeaturizer(EmbeddingFeaturizer):
    modality = "text"

    def raw(self, content: Any) -> str:
        return str(content.text)


class EmbeddingImageFeaturizer(EmbeddingFeaturizer):
    modality = "image"

    def __init__(self, options: EmbeddingOptions) -> None:
        super().__init__(options)
        self.decoded_size = _processed_size(Path(options.model))

    def restore(self, folder: Path) -> None:
        super().restore(folder)
        self.decoded_size = _processed_size(folder)

    def raw(self, content: Image) -> np.ndarray:
        return content.array


@dataclass(frozen=True, kw_only=True)
class SpeechEmbeddingOptions(EmbeddingOptions):
    # With silence, to all that the encoder reads at once (30 s of Whisper), as it was trained: many times the cost.
    pad: bool = False


class EmbeddingSpeechFeaturizer(EmbeddingFeaturizer):
    modality = "speech"
    Options = SpeechEmbeddingOptions
    packages = ("numpy", "soxr", *EmbeddingFeaturizer.packages)

    def raw(self, content: Speech) -> pretrained.Recording:
        return pretrained.Recording(content.waveform, content.sample_rate, self.options.pad)


def _processed_size(folder: Path) -> int | None:
    """The short side in pixels to which the preprocessing shrinks a picture; None where it does not say."""
    try:
        said = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    sizes = [said.get(name) for name in ("size", "crop_size")]
    lengths = [list(size.values()) if isinstance(size, dict) else [size] for size in sizes if size]
    numbers = [length for values in lengths for length in values if isinstance(length, int)]
    return max(numbers, default=None)
