"""Random changes of training rows: speed, pitch, gain, rooms, noise and SpecAugment for speech; place, size and
RandAugment for images.

What is drawn depends on the generator alone, which `training.collator` keys by (seed, epoch, sample id).

Shapes: N samples of a waveform, F frames, M features of a frame, C channels, H and W pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage, signal

from training.settings import ImageAugmentation, SpeechAugmentation
from training.spectra import SpectrumOptions, speech_spectra

if TYPE_CHECKING:
    from training.preprocessing import SpeechPreprocessing


@dataclass(frozen=True)
class WaveformAugmenter:
    """What is changed of a recording before anything reads it."""

    settings: SpeechAugmentation
    noise: Sequence[np.ndarray] = ()  # int16 waveforms of the same rate; without any, noise is white

    def __call__(
        self, waveform_N: np.ndarray, random: np.random.Generator, rate: int
    ) -> tuple[np.ndarray, float, float]:
        """int16 (N,), of `rate` samples a second, to float32, the factor that it was played faster by, and the draw for
        its speed, from -1 to 1."""
        settings = self.settings
        # Always drawn in the same order, so that one setting does not move the draws of another.
        pitch, speed, gain, chance, snr = random.uniform(-1, 1, 5)
        factor = 2 ** (pitch * settings.pitch / 12)
        speech_N = _played_faster(waveform_N.astype(np.float32) / 32767, factor)
        level = float(np.sqrt(np.square(speech_N).mean())) if len(speech_N) else 0.0
        speech_N = speech_N * 10 ** (gain * settings.gain_db / 20)
        noise_N: float | np.ndarray = 0.0
        if settings.noise_snr_db is not None and (chance + 1) / 2 < settings.noise_chance and level > 0:
            low, high = settings.noise_snr_db
            ratio = 10 ** (-(low + (snr + 1) / 2 * (high - low)) / 20)
            noise_N = level * ratio * self._noise(len(speech_N), random)
        # Drawn last, so that rooms do not move the draws of noise.
        if settings.reverb_chance > 0 and random.random() < settings.reverb_chance:
            speech_N = _in_a_room(speech_N, random.uniform(*settings.reverb_seconds), rate, random)
        return (speech_N + noise_N).astype(np.float32), factor, speed

    def _noise(self, length: int, random: np.random.Generator) -> np.ndarray:
        """float32 (length,) of root mean square 1."""
        if not self.noise:
            return random.standard_normal(length, dtype=np.float32)
        clip = self.noise[int(random.integers(len(self.noise)))]
        start = int(random.integers(max(1, len(clip) - length + 1)))
        part = np.resize(clip[start : start + length], length).astype(np.float32)  # a short clip is repeated
        return part / max(1e-6, float(np.sqrt(np.square(part).mean())))


def _in_a_room(speech_N: np.ndarray, seconds: float, rate: int, random: np.random.Generator) -> np.ndarray:
    """With the echo of a room: the sound itself, then noise that decays by 60 dB in `seconds` (Polack's model of an
    impulse response) and has a drawn part of its energy; as loud and as long as before."""
    length = max(2, round(seconds * rate))
    echo = random.standard_normal(length) * 10 ** (-3 * np.arange(length) / length)
    echo[0] = 0
    share = random.uniform(0.1, 0.6)
    response = echo * np.sqrt(share / np.square(echo).sum())
    response[0] = np.sqrt(1 - share)
    heard_N = signal.fftconvolve(speech_N, response)[: len(speech_N)]
    level, heard = (float(np.sqrt(np.square(one).mean())) if len(one) else 0.0 for one in (speech_N, heard_N))
    return heard_N * (level / max(heard, 1e-9))


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
        speech_N, factor, speed = self.waveform(waveform_N, random, self.features.sample_rate)
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
        speech_N, _, speed = self.waveform(waveform_N, random, preprocessing.rate)
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
    """uint8 (C, H, W), turned, resized and moved; what comes in from beyond the border repeats the border. Then the
    operations of RandAugment."""
    turn, size, down, right = random.uniform(-1, 1, 4)
    angle = np.deg2rad(turn * settings.rotation)
    # From places in the result to places in the picture.
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / (1 + size * settings.scale)
    shape = np.array(pixels_CHW.shape[1:])
    middle = (shape - 1) / 2
    offset = middle - matrix @ (middle + settings.shift * shape * (down, right))
    planes = [ndimage.affine_transform(plane, matrix, offset, order=1, mode="nearest") for plane in pixels_CHW]
    moved_CHW = np.stack(planes)
    return _with_operations(moved_CHW, random, settings) if settings.operations else moved_CHW


def _with_operations(pixels_CHW: np.ndarray, random: np.random.Generator, settings: ImageAugmentation) -> np.ndarray:
    import torch
    from torchvision.transforms import v2

    with torch.random.fork_rng(devices=[]):  # it draws from torch's global generator only
        torch.manual_seed(int(random.integers(2**62)))
        change = v2.RandAugment(settings.operations, settings.magnitude)
        changed: np.ndarray = change(torch.from_numpy(np.ascontiguousarray(pixels_CHW))).numpy()
    return changed
