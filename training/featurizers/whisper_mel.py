"""Log-mel spectra as Whisper gets them, for encoders that expect those.

Shapes: B rows, F frames, M mel bands.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from training.featurizers.base import FeatureShape, Featurizer
from training.filterbanks import WHISPER_RATE, whisper_mel
from training.recordings import Speech
from training.spectra import resample
from training.validation import FORBID_EXTRA, check

if TYPE_CHECKING:
    from torch import Tensor


class FilterbankFeaturizer(Featurizer):
    """What log-mel spectra of other programs (`training.filterbanks`) have in common as features."""

    form = "frames"
    packages = ("numpy", "scipy", "soxr")
    sample_rate: int  # Hz of what `spectrum` gets

    def featurize(self, content: Speech) -> dict[str, np.ndarray]:
        options = self.options
        waveform = content.waveform[: max(1, round(options.max_seconds * content.sample_rate))]
        return {self.read: self.spectrum(resample(waveform, content.sample_rate, self.sample_rate))}

    @abstractmethod
    def spectrum(self, waveform: np.ndarray) -> np.ndarray:
        """float32 (samples,) to (F, M)."""

    @property
    def tensors(self) -> Mapping[str, str]:
        return {self.read: "float32"}

    def shape(self) -> FeatureShape:
        return FeatureShape(self.form, self.options.mels)

    def batch(self, rows: Sequence[np.ndarray | None]) -> "tuple[Tensor, Tensor]":
        """float32 (B, F, M), zero where there is nothing, and a mask (B, F)."""
        from training.padding import padded_frames

        return padded_frames(rows, self.shape().width)

    def cut(self) -> tuple[str, str]:
        most = self.options.max_seconds
        return f"seconds > {most}", f"longer than {most:g} s (features.speech.max_seconds), of which the first are used"


@dataclass(frozen=True, kw_only=True)
class WhisperMelOptions:
    __pydantic_config__ = FORBID_EXTRA
    mels: int = 80  # 128 from large-v3 on
    max_seconds: float = 30.0  # longer speech is cut, with a warning in the clean table

    def __post_init__(self) -> None:
        check(1 <= self.mels <= 256, "mels", self.mels, "1 to 256")
        check(0 < self.max_seconds <= 30, "max_seconds", self.max_seconds, "up to 30, which Whisper was made for")


class WhisperMelFeaturizer(FilterbankFeaturizer):
    described = "Whisper's log-mel"
    version = 1
    read = "whisper_mel"
    Options = WhisperMelOptions
    sample_rate = WHISPER_RATE

    def spectrum(self, waveform: np.ndarray) -> np.ndarray:
        return whisper_mel(waveform, self.options.mels)
