"""Log-mel spectra of speech (`training.spectra`); MFCC and, for augmentation, the waveform are stored beside them.

Shapes: B rows, F frames, M features of a frame.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from training.featurizers.base import FeatureShape, Featurizer
from training.recordings import Speech
from training.spectra import NO_WAVEFORM, SpectrumOptions, as_int16, resample, speech_spectra, trim

if TYPE_CHECKING:
    from torch import Tensor


class LogMelFeaturizer(Featurizer):
    form = "frames"
    described = "log-mel and MFCC"
    version = 3
    packages = ("numpy", "scipy", "soxr")
    read = "log_mel"
    augmented = "waveform"
    unaffected_by: ClassVar = {
        "log_mel": ("coefficients", "keep_waveform"),
        "mfcc": ("keep_waveform",),
        "waveform": ("mels", "coefficients", "window_ms", "channel_seconds", "keep_waveform"),
    }
    at_once = 4 * 2**20
    recipe = "spectra"  # of mfcc, too: which of the two is read costs nothing
    Options = SpectrumOptions

    @property
    def tensors(self) -> Mapping[str, str]:
        """log_mel (F, mels), mfcc (F, coefficients), waveform (samples,) at the sample rate."""
        kept = {"waveform": "int16"} if self.options.keep_waveform else {}
        return {"log_mel": "float32", "mfcc": "float32", **kept}

    def featurize(self, content: Speech) -> dict[str, np.ndarray]:
        (tensors,) = self.featurize_all([content])
        return tensors

    def featurize_all(self, contents: Sequence[Speech]) -> list[dict[str, np.ndarray]]:
        return self.make(self.tensors, contents)

    def make(self, tensors: Collection[str], contents: Sequence[Speech]) -> list[dict[str, np.ndarray]]:
        waveforms = [self._waveform(content) for content in contents]
        rows: list[dict[str, np.ndarray]] = [{} for _ in contents]
        if "log_mel" in tensors or "mfcc" in tensors:
            spectra = speech_spectra(waveforms, self.options)
            rows = [{"log_mel": log_mel, "mfcc": mfcc} for log_mel, mfcc in spectra]
        if "waveform" in tensors:
            for row, waveform in zip(rows, waveforms, strict=True):
                row["waveform"] = as_int16(waveform)
        return rows

    def _waveform(self, content: Speech) -> np.ndarray:
        options = self.options
        waveform = trim(content.waveform, content.sample_rate, options)  # before resampling: less is left to do
        waveform = waveform[: max(1, round(options.max_seconds * content.sample_rate))]
        return resample(waveform, content.sample_rate, options.sample_rate)

    def shape(self) -> FeatureShape:
        return FeatureShape(self.form, self.options.mels)

    def batch(self, rows: Sequence[np.ndarray | None]) -> "tuple[Tensor, Tensor]":
        """float32 (B, F, M), zero where there is nothing, and a mask (B, F)."""
        from training.padding import padded_frames

        return padded_frames(rows, self.shape().width)

    def augmenter(self, settings: Any, noise: Sequence[np.ndarray]) -> Any:
        from training.augmentation import SpeechAugmenter, WaveformAugmenter

        if not self.options.keep_waveform:
            raise ValueError(NO_WAVEFORM)
        return SpeechAugmenter(WaveformAugmenter(settings, noise), self.options, self.read)

    def cut(self) -> tuple[str, str]:
        most = self.options.max_seconds
        return f"seconds > {most}", f"longer than {most:g} s (features.speech.max_seconds), of which the first are used"
