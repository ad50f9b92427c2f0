"""What the preprocessing of a pretrained encoder makes of a content (`training.preprocessing`), for that encoder in the
model, which runs on it in each step (`training.encoders.huggingface`).

Shapes: B rows, C channels, H and W pixels, S tokens, F rows over time, M numbers of a row.
"""

import functools
import json
import shutil
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from training import model_files
from training.featurizers.base import FeatureShape, Featurizer
from training.images import Image
from training.media import MediaError
from training.preprocessing import PREPROCESSING, Picture, Preprocessing, Recording, SpeechPreprocessing
from training.recordings import Speech
from training.spectra import NO_WAVEFORM, as_int16, resample
from training.validation import FORBID_EXTRA

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ProcessedOptions:
    __pydantic_config__ = FORBID_EXTRA
    # Has to be given: a Hugging Face name, a local folder of the same form, torchvision/NAME or torchaudio/BUNDLE.
    model: str = ""
    weights: str = ""  # of the last two: a local file with the state dict


class ModelFeaturizer(Featurizer):
    """What features need of a Hugging Face model, named by the option `model`; and of the modality, which is said by
    one of `OfText`, `OfImage`, `OfSpeech`."""

    packages: tuple[str, ...] = ("transformers", "torch")
    located = ("model", "weights")
    carries_weights: ClassVar[bool]  # they are needed to featurize
    modality: ClassVar[str]

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._saved: Path | None = None

    @abstractmethod
    def raw(self, content: Any) -> Any:
        """What the model's preprocessing takes."""

    def identity(self) -> Any:
        """The content of the model's files. Raises ValueError: it is not there."""
        return model_files.digest(self._folder, self.carries_weights)

    def save(self, folder: Path) -> None:
        for path in model_files.model_files(self._folder, self.carries_weights):
            shutil.copyfile(path, folder / path.name)

    def restore(self, folder: Path) -> None:
        self._saved = folder
        self.__dict__.pop("_loaded", None)

    def __getstate__(self) -> dict[str, Any]:
        """Without what was loaded, which another process loads itself."""
        return {name: value for name, value in self.__dict__.items() if name != "_loaded"}

    @property
    def _folder(self) -> Path:
        return self._saved or model_files.model_folder(self.options.model, self.options.weights)


class OfText(ModelFeaturizer):
    modality = "text"

    def raw(self, content: Any) -> str:
        return str(content.text)


class OfImage(ModelFeaturizer):
    modality = "image"
    packages = (*ModelFeaturizer.packages, "timm", "torchvision")

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.decoded_size = _processed_size(Path(options.model))

    def restore(self, folder: Path) -> None:
        super().restore(folder)
        if not self.options.weights:
            self.decoded_size = _processed_size(folder)

    def raw(self, content: Image) -> Picture:
        return Picture(content.array, self.options.crop)


class OfSpeech(ModelFeaturizer):
    modality = "speech"
    packages = ("numpy", "soxr", *ModelFeaturizer.packages, "torchaudio")

    def raw(self, content: Speech) -> Recording:
        return Recording(content.waveform, content.sample_rate, self.options.pad)


class ProcessedFeaturizer(ModelFeaturizer):
    described = "what the preprocessing of a pretrained encoder makes"
    version = 1
    carries_weights = False
    dtype: ClassVar[str]
    Options = ProcessedOptions

    @property
    def tensors(self) -> Mapping[str, str]:
        return {self.read: self.dtype}

    def featurize(self, content: Any) -> dict[str, np.ndarray]:
        return {self.read: self._loaded.stored(self.raw(content))}

    def prepare(self) -> None:
        model_files.model_files(self._folder)  # the model will need the weights, too
        self.shape()

    def shape(self) -> FeatureShape:
        return self._loaded.shape()

    @functools.cached_property
    def _loaded(self) -> Preprocessing:
        """Once: a served model reads row by row."""
        return PREPROCESSING[self.modality](self._folder)


class ProcessedTextFeaturizer(OfText, ProcessedFeaturizer):
    form, read, dtype = "ids", "input_ids", "int32"

    def augmenter(self, settings: Any, noise: Sequence[np.ndarray]) -> Any:
        from training.rewriting import TextAugmenter

        return TextAugmenter(settings, self)

    def batch(self, rows: Sequence[np.ndarray | None]) -> "tuple[Tensor, Tensor]":
        """int64 (B, S), padded on the right, and a mask (B, S); S is at least 1."""
        from training.padding import padded

        return padded([() if row is None else row for row in rows], 0)


@dataclass(frozen=True, kw_only=True)
class ProcessedImageOptions(ProcessedOptions):
    # Where the model's preprocessing takes the middle of a picture only: true reads that, false all, within a square.
    crop: bool = False


class ProcessedImageFeaturizer(OfImage, ProcessedFeaturizer):
    Options = ProcessedImageOptions
    form, dtype = "grid", "uint8"
    read = augmented = "pixels"

    def batch(self, rows: Sequence[np.ndarray | None]) -> "tuple[Tensor, None]":
        """float32 (B, C, H, W), from 0 (black) to 1 (white)."""
        import torch

        shape = next((row.shape for row in rows if row is not None), (3, 1, 1))
        pixels_BCHW = np.zeros((len(rows), *shape), dtype=np.float32)
        for n, pixels_CHW in enumerate(rows):
            if pixels_CHW is not None:
                pixels_BCHW[n] = pixels_CHW
        return torch.from_numpy(pixels_BCHW).div_(255), None

    def augmenter(self, settings: Any, noise: Sequence[np.ndarray]) -> Any:
        from training.augmentation import augment_image

        return partial(augment_image, settings=settings)


@dataclass(frozen=True, kw_only=True)
class PaddedOptions(ProcessedOptions):
    # With silence, to all that the encoder reads at once (30 s of Whisper), as it was trained: many times the cost.
    pad: bool = False


@dataclass(frozen=True, kw_only=True)
class ProcessedSpeechOptions(PaddedOptions):
    keep_waveform: bool = False  # store the resampled waveform too: augmentation needs it


class ProcessedSpeechFeaturizer(OfSpeech, ProcessedFeaturizer):
    form, read, dtype = "frames", "processed", "float16"
    augmented = "waveform"
    unaffected_by: ClassVar = {"processed": ("keep_waveform",), "waveform": ("pad", "keep_waveform")}
    mixes = False  # the last number of a row counts
    Options = ProcessedSpeechOptions

    @property
    def tensors(self) -> Mapping[str, str]:
        return {self.read: self.dtype} | ({"waveform": "int16"} if self.options.keep_waveform else {})

    def featurize(self, content: Speech) -> dict[str, np.ndarray]:
        row = super().featurize(content)
        return row | self._waveform(content) if self.options.keep_waveform else row

    def make(
        self, tensors: Collection[str], contents: Sequence[Speech]
    ) -> "Sequence[dict[str, np.ndarray] | MediaError]":
        if set(tensors) == {"waveform"}:
            return [self._waveform(content) for content in contents]
        return self.featurize_all(contents)

    def _waveform(self, content: Speech) -> dict[str, np.ndarray]:
        return {"waveform": as_int16(resample(content.waveform, content.sample_rate, self._speech().rate))}

    def augmenter(self, settings: Any, noise: Sequence[np.ndarray]) -> Any:
        from training.augmentation import ProcessedSpeechAugmenter, WaveformAugmenter

        if not self.options.keep_waveform:
            raise ValueError(NO_WAVEFORM)
        return ProcessedSpeechAugmenter(WaveformAugmenter(settings, noise), self._speech, self.options.pad)

    def _speech(self) -> SpeechPreprocessing:
        assert isinstance(self._loaded, SpeechPreprocessing)
        return self._loaded

    def batch(self, rows: Sequence[np.ndarray | None]) -> "tuple[Tensor, Tensor]":
        """float32 (B, F, M), zero where there is nothing, and a mask (B, F)."""
        from training.padding import padded_frames

        return padded_frames(rows)


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
