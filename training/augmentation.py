"""Random changes of training rows: speed, pitch, gain, noise and SpecAugment for speech; place and size for images.

What is drawn depends on the generator alone, which `training.collator` keys by (seed, epoch, sample id).

Shapes: N samples of a waveform, F frames, M features of a frame, C channels, H and W pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from training.settings import ImageAugmentation, SpeechAugmentation
from training.spectra import SpectrumOptions, speech_spectra

if TYPE_CHECKING:
    from training.preprocessing import SpeechPreprocessing


@dataclass(frozen=True)
class WaveformAugmenter:
    """What is changed of a recording before anything reads it."""

    settings: SpeechAugmentation
    noise: Sequence[np.ndarray] = ()  # int16 waveforms of the same rate; without any, noise is white

    def __call__(self, waveform_N: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, float, float]:
        """int16 (N,) to float32, the factor that it was played faster by, and the draw for its speed, from -1 to 1."""
        settings = self.settings
        # Always drawn in the same order, so that one setting does not move the draws of another.
        pitch, speed, gain, chance, snr = random.uniform(-1, 1, 5)
        factor = 2 ** (pitch * settings.pitch / 12)
        speech_N = _played_faster(waveform_N.astype(np.float32) / 32767, factor)
        level = float(np.sqrt(np.square(speech_N).mean())) if len(speech_N) else 0.0
        speech_N = speech_N * 10 ** (gain * settings.gain_db / 20)
        if settings.noise_snr_db is not None and (chance + 1) / 2 < settings.noise_chance and level > 0:
            low, high = settings.noise_snr_db
            ratio = 10 ** (-(low + (snr + 1) / 2 * (high - low)) / 20)
            speech_N = speech_N + level * ratio * self._noise(len(speech_N), random)
        return speech_N, factor, speed

    def _noise(self, length: int, random: np.random.Generator) -> np.ndarray:
        """float32 (length,) of root mean square 1."""
        if not self.noise:
            return random.standard_normal(length, dtype=np.float32)
        clip = self.noise[int(random.integers(len(self.noise)))]
        start = int(random.integers(max(1, len(clip) - length + 1)))
        part = np.resize(clip[start : start + length], length).astype(np.float32)  # a short clip is repeated
        return part / max(1e-6, float(np.sqrt(np.square(part).mean())))


def _played_faster(speech_N: np.ndarray, factor: float) -> np.ndarray:
    """Higher and shorter by `factor`. Linear interpolation aliases a little, which is welcome here, and costs a tenth
    of a band-limited one."""
    if factor == 1 or len(speech_N) < 2:
        return speech_N
    positions = np.arange(0, len(speech_N) - 1, factor)
    return np.interp(positions, np.arange(len(speech_N)), speech_N).astype(np.float32)


@dataclass(frozen=True)
class SpeechAugmenter:
    """For spectra that are made here: their hop sets the tempo, whatever the pitch."""

    waveform: WaveformAugmenter
    features: SpectrumOptions
    read: str = "log_mel"  # the spectrum that comes of it: log_mel | mfcc

    def __call__(self, waveform_N: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """int16 (N,) to frames float32 (F, M) of the kind that the model reads."""
        settings = self.waveform.settings
        speech_N, factor, speed = self.waveform(waveform_N, random)
        hop = self.features.hop_ms * self.features.sample_rate / 1000
        hop = max(1, round(hop * (1 + speed * settings.speed) / factor))
        ((log_mel, mfcc),) = speech_spectra([speech_N], self.features, hop)
        return mask_spectrum(log_mel if self.read == "log_mel" else mfcc, settings, random)


@dataclass(frozen=True)
class ProcessedSpeechAugmenter:
    """For what the preprocessing of a pretrained encoder makes of a recording: only by playing it faster can its tempo
    be changed, so its pitch goes with it."""

    waveform: WaveformAugmenter
    preprocessing: Callable[[], "SpeechPreprocessing"]  # read when it is needed
    pad: bool = False  # as of `Recording`

    def __call__(self, waveform_N: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """int16 (N,) to `SpeechPreprocessing.stored`; what is masked has the mean of the recording."""
        from training.preprocessing import Recording

        settings, preprocessing = self.waveform.settings, self.preprocessing()
        speech_N, _, speed = self.waveform(waveform_N, random)
        speech_N = _played_faster(speech_N, 1 + speed * settings.speed)
        stored = preprocessing.stored(Recording(speech_N, preprocessing.rate, self.pad))
        if not preprocessing.is_spectrum:  # bands are what only a spectrum has
            settings = replace(settings, frequency_masks=0)
        mean = stored[:, :-1].mean(dtype=np.float64)  # the last number of a row counts
        stored[:, :-1] = mask_spectrum(stored[:, :-1] - mean, settings, random) + mean
        return stored


def mask_spectrum(frames_FM: np.ndarray, settings: SpeechAugmentation, random: np.random.Generator) -> np.ndarray:
    """SpecAugment (Park et al. 2019) without warping: stretches of frames and of features become 0, their mean.

    `torchaudio.functional.mask_along_axis` draws from torch's global generator only, so it could not give a sample the
    same masks whatever was drawn before.
    """
    frames_FM = frames_FM.copy()
    for axis, count in ((0, settings.time_masks), (1, settings.frequency_masks)):
        size = frames_FM.shape[axis]
        for share, position in random.random((count, 2)):
            width = round(share * settings.mask_share * size)
            start = round(position * (size - width))
            frames_FM[(slice(None),) * axis + (slice(start, start + width),)] = 0
    return frames_FM


def augment_image(pixels_CHW: np.ndarray, random: np.random.Generator, settings: ImageAugmentation) -> np.ndarray:
    """uint8 (C, H, W), turned, resized and moved; what comes in from beyond the border repeats the border."""
    turn, size, down, right = random.uniform(-1, 1, 4)
    angle = np.deg2rad(turn * settings.rotation)
    # From places in the result to places in the picture.
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / (1 + size * settings.scale)
    shape = np.array(pixels_CHW.shape[1:])
    middle = (shape - 1) / 2
    offset = middle - matrix @ (middle + settings.shift * shape * (down, right))
    planes = [ndimage.affine_transform(plane, matrix, offset, order=1, mode="nearest") for plane in pixels_CHW]
    return np.stack(planes)
