"""The spectrum of a recording over time as a small picture: 48 bands of pitch by 40 parts of its length.

Bands are equal steps of pitch, so that another pitch is a shift; parts are shares of the length, so that another speed
changes nothing else; what is compared has no level. Two readings of a sentence by one voice differ in melody and pace.

Shapes: K samples of a frame, R frames, F frequencies.
"""

import functools
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.recordings import Speech
from training.signatures.base import Signature, SignatureOptions
from training.small_pictures import Crop, SmallPictures, unpacked

_BANDS, _PARTS = 48, 40
_LOWEST, _HIGHEST = 120.0, 3500.0  # Hz: what a telephone keeps
_WINDOW = 0.048  # seconds
_GAPS = 1.0  # windows from one frame to the next
_MOST_FRAMES = 64  # in a part; of a long one they are spread
_LEAST_RATE = 7000.0  # Hz, which has the highest band
_FLOOR = 1e-4  # of the strongest band's power: what is weaker counts as silence
_LEAST_SECONDS = 0.25
_LOUD = 0.01  # of the loudest part's power
_SAME = 0.97  # mean cosine of the spectra of loud parts: above it all is one tone or hum, whatever its level does
_LONGER = 1.18  # times: what differs more in length is not the same
# Shares of the length that may lack at the beginning and the end.
_CUTS = (Crop(), *(Crop(left=left, right=right) for left, right in ((0.05, 0), (0, 0.05), (0.05, 0.05))))
_PICTURES = SmallPictures(
    _BANDS, _PARTS, _CUTS, farthest=(1.6, 4, 0, 0.15), fine=(0.7, 3), least_cosines=0.87, least_aligned=(0.97, 0.97)
)
_LENGTH = struct.Struct("<f")


@dataclass(frozen=True, kw_only=True)
class AcousticOptions(SignatureOptions):
    least: float = 0.97  # two readings of a sentence by one voice reach 0.966


class AcousticSignature(Signature):
    """Of recordings of more than a quarter of a second that are not the same sound all the time."""

    version = 1
    packages = ("numpy", "scipy")
    Options = AcousticOptions

    def sign(self, content: Speech) -> bytes | None:
        if content.seconds <= _LEAST_SECONDS:
            return None
        power_TF = _band_powers(content.waveform, content.sample_rate)
        strongest = float(power_TF.max())
        if strongest <= 0:
            return None
        log_TF = np.log(power_TF * np.float32(1 / strongest) + np.float32(_FLOOR))
        loudness_T = power_TF.sum(axis=1, keepdims=True)
        shapes_TF = np.sqrt(power_TF / np.maximum(loudness_T, 1e-30))[loudness_T[:, 0] > _LOUD * loudness_T.max()]
        if np.square(shapes_TF.mean(axis=0)).sum() > _SAME:
            return None
        levels_TF = np.clip(255 * (1 - log_TF / math.log(_FLOOR)), 0, 255).astype(np.uint8)
        return _LENGTH.pack(content.seconds) + levels_TF.T.tobytes()

    def keys(self, values: Sequence[bytes]) -> np.ndarray:
        return _PICTURES.keys(unpacked(values, _BANDS, _PARTS, _LENGTH.size), len(values))

    def similarity(self, values: Sequence[bytes], pairs_3P: np.ndarray) -> np.ndarray:
        seconds = np.array([_LENGTH.unpack_from(value)[0] for value in values])
        shorter, longer = np.sort(seconds[pairs_3P[:2]], axis=0)
        close = np.flatnonzero(longer <= _LONGER * shorter)
        alike = np.zeros(pairs_3P.shape[1], np.float32)
        spectra = unpacked(values, _BANDS, _PARTS, _LENGTH.size)
        alike[close] = _PICTURES.similarity(spectra, len(values), pairs_3P[:, close])
        return alike


def _band_powers(waveform: np.ndarray, rate: float) -> np.ndarray:
    """float32 (parts, bands): mean power."""
    import scipy.fft

    if (each := int(rate // _LEAST_RATE)) > 1:  # what lies above the bands folds back a little, and costs nothing
        whole = len(waveform) // each * each
        waveform, rate = functools.reduce(np.add, (waveform[n:whole:each] for n in range(each))), rate / each
    window_K, filters_FB = _filters(rate)
    size = len(window_K)
    if len(waveform) < size:
        waveform = np.pad(waveform, (0, size - len(waveform)))
    each = min(max(1, math.ceil(len(waveform) / (_PARTS * size * _GAPS))), _MOST_FRAMES)
    count = _PARTS * each
    starts = ((np.arange(count) + 0.5) * (len(waveform) / count) - size / 2).astype(np.int64)
    frames_RK = np.lib.stride_tricks.sliding_window_view(waveform, size)[np.clip(starts, 0, len(waveform) - size)]
    frames_RK *= window_K
    spectrum_RF = scipy.fft.rfft(frames_RK)
    power_RB = (np.square(spectrum_RF.real) + np.square(spectrum_RF.imag)) @ filters_FB
    return power_RB.reshape(_PARTS, each, _BANDS).mean(axis=1)


@functools.cache
def _filters(rate: float) -> tuple[np.ndarray, np.ndarray]:
    """float32 (K,), a window, and (F, bands), triangles about equal steps of pitch, each at least a frequency wide."""
    import scipy.fft

    size = scipy.fft.next_fast_len(round(_WINDOW * rate), real=True)
    frequencies_F, apart = np.arange(size // 2 + 1) * rate / size, rate / size
    edges = np.geomspace(_LOWEST, _HIGHEST, _BANDS + 2)
    middle = edges[1:-1]
    below, above = np.maximum(middle - edges[:-2], apart), np.maximum(edges[2:] - middle, apart)
    rising, falling = (
        (frequencies_F[:, None] - middle + below) / below,
        (middle + above - frequencies_F[:, None]) / above,
    )
    filters_FB = np.clip(np.minimum(rising, falling), 0, None)
    filters_FB /= np.maximum(filters_FB.sum(axis=0), 1e-9)
    return np.hanning(size + 2)[1:-1].astype(np.float32), filters_FB.astype(np.float32)
