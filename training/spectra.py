"""Spectra of speech: log-mel and MFCC, with what comes before them: trimming and resampling.

Shapes: T frames of `hop_ms`, M mels, C coefficients, N samples of a frame, K frequency bins.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from training.validation import FORBID_EXTRA, check

_MEL_RANGE_DB = 80.0  # what lies further below the loudest band of the recording is noise or digital silence
_FRAMES = 4096  # of a recording that are transformed at a time: an hour's spectrum would be gigabytes
_TOGETHER = 512  # frames of several recordings that are; more would not stay in the processor's cache
NO_WAVEFORM = "it needs the waveforms: set features.speech.keep_waveform: true"


@dataclass(frozen=True, kw_only=True)
class SpectrumOptions:
    __pydantic_config__ = FORBID_EXTRA
    sample_rate: int = 16000  # Hz
    mels: int = 64
    coefficients: int = 20  # of the MFCC
    window_ms: float = 25.0
    hop_ms: float = 10.0
    trim_db: float | None = 40.0  # leading and trailing frames this far below the loudest are cut; null keeps all
    max_seconds: float = 30.0  # longer speech is cut, with a warning in the clean table
    # Another microphone or voice shifts every band: each one's mean is taken off, as far as the recording is long
    # enough to tell it from what is said (half of it at this many seconds); null leaves it.
    channel_seconds: float | None = None
    keep_waveform: bool = False  # store the resampled waveform too: augmentation of speech needs it

    def __post_init__(self) -> None:
        check(1000 <= self.sample_rate <= 192000, "sample_rate", self.sample_rate, "1000 to 192000 Hz")
        check(1 <= self.coefficients <= self.mels, "coefficients", self.coefficients, f"1 to mels ({self.mels})")
        check(0 < self.hop_ms <= self.window_ms, "hop_ms", self.hop_ms, f"over 0, up to window_ms ({self.window_ms})")
        check(self.max_seconds > 0, "max_seconds", self.max_seconds, "a positive number")
        check((self.channel_seconds or 0) >= 0, "channel_seconds", self.channel_seconds, "null, or 0 or more seconds")


class _Constants(NamedTuple):
    """float32, of all recordings at a rate."""

    window_N: np.ndarray  # Hann
    fft: int  # length of the transform
    mel_KM: np.ndarray  # filters; K is half of `fft`, plus 1
    dct_MC: np.ndarray


def resample(waveform: np.ndarray, rate: int, target: int) -> np.ndarray:
    """float32 (samples,) at `rate` to `target` Hz, by band-limited interpolation."""
    if rate == target or len(waveform) == 0:
        return waveform
    import soxr

    return soxr.resample(waveform, rate, target)


def as_int16(waveform: np.ndarray) -> np.ndarray:
    """A waveform as tables keep it for augmentation."""
    return np.round(np.clip(waveform, -1, 1) * 32767).astype(np.int16)


def trim(waveform: np.ndarray, rate: int, settings: SpectrumOptions) -> np.ndarray:
    """Without the leading and trailing hops whose energy is `trim_db` below the loudest hop; silence stays whole."""
    hop = _samples(settings.hop_ms, rate)
    hops = len(waveform) // hop
    if settings.trim_db is None or hops < 2:
        return waveform
    parts = waveform[: hops * hop].reshape(hops, hop)
    energy = np.einsum("ij,ij->i", parts, parts)
    loud = np.flatnonzero(energy > energy.max() * 10 ** (-settings.trim_db / 10))
    if len(loud) == 0:
        return waveform
    end = len(waveform) if loud[-1] == hops - 1 else (loud[-1] + 1) * hop  # the last hop takes the rest with it
    return waveform[loud[0] * hop : end]


def speech_spectra(
    waveforms: Sequence[np.ndarray], settings: SpectrumOptions, hop: int | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each float32 (samples,) at `sample_rate` to log-mel (T, mels) and MFCC (T, coefficients), T = 1 + samples // hop.

    The hop is in samples; default: that of the settings. What a recording gives does not depend on the others: they
    share calls of the Fourier transform only, since on short clips the calls cost more than the work in them.

    HTK mel bands of the power spectrum (Hann window, centred frames, zeros beyond the ends), as natural logarithm,
    clipped 80 dB below the loudest band, then made zero mean and unit variance over the whole recording: loudness
    goes, the shape over time and frequency stays, and small models train without further scaling. Silence is all zero.
    With `channel_seconds`, of each band its mean weighted by seconds / (seconds + channel_seconds) is then taken off:
    cepstral mean normalisation with a prior of zero. The MFCC is the orthonormal DCT-II of that.
    """
    # NumPy and SciPy, not torch: on short clips it takes half the time, and it starts no threads of its own.
    rate = settings.sample_rate
    constants = _spectral_constants(rate, _samples(settings.window_ms, rate), settings.mels, settings.coefficients)
    hop = hop or _samples(settings.hop_ms, rate)
    frames = [_frames(waveform, len(constants.window_N), hop) for waveform in waveforms]
    return [_scaled(mel_TM, constants.dct_MC, settings, hop) for mel_TM in _mel_energies(frames, constants)]


def _frames(waveform: np.ndarray, window: int, hop: int) -> np.ndarray:
    """The frames of a recording (T, N), as a view of a copy with zeros beyond both ends."""
    before = window - window // 2
    padded = np.zeros(len(waveform) + window, dtype=np.float32)
    padded[before : before + len(waveform)] = waveform
    strides = hop * padded.itemsize, padded.itemsize
    return np.ndarray((1 + len(waveform) // hop, window), padded.dtype, padded, strides=strides)


def _mel_energies(recordings: Sequence[np.ndarray], constants: _Constants) -> Iterator[np.ndarray]:
    """Frames (T, N) of each recording to the energy in its mel bands (T, M)."""
    together: list[np.ndarray] = []
    for frames_TN in recordings:
        if sum(map(len, together)) + len(frames_TN) > _TOGETHER:
            yield from _mel_energies_at_once(together, constants)
            together = []
        if len(frames_TN) > _TOGETHER:
            parts = [frames_TN[at : at + _FRAMES] for at in range(0, len(frames_TN), _FRAMES)]
            yield np.concatenate([mel_TM for part in parts for mel_TM in _mel_energies_at_once([part], constants)])
        else:
            together.append(frames_TN)
    yield from _mel_energies_at_once(together, constants)


def _mel_energies_at_once(recordings: list[np.ndarray], constants: _Constants) -> Iterator[np.ndarray]:
    from scipy.fft import rfft

    if not recordings:
        return
    ends = np.cumsum([len(frames_TN) for frames_TN in recordings]).tolist()
    windowed_TN = np.zeros((ends[-1], constants.fft), dtype=np.float32)
    places = [slice(end - len(frames_TN), end) for frames_TN, end in zip(recordings, ends, strict=True)]
    for frames_TN, place in zip(recordings, places, strict=True):
        np.multiply(frames_TN, constants.window_N, out=windowed_TN[place, : len(constants.window_N)])
    spectrum_TK = rfft(windowed_TN)  # where a frame lies in the transform is no matter to it
    squares_TK2 = spectrum_TK.view(np.float32)
    np.square(squares_TK2, out=squares_TK2)
    power_TK = squares_TK2[:, ::2] + squares_TK2[:, 1::2]
    for place in places:
        yield power_TK[place] @ constants.mel_KM


def _scaled(
    mel_TM: np.ndarray, dct_MC: np.ndarray, settings: SpectrumOptions, hop: int
) -> tuple[np.ndarray, np.ndarray]:
    """Log-mel and MFCC of a recording, from the energy in its mel bands."""
    log_TM = np.log(np.maximum(mel_TM, max(float(mel_TM.max()) * 10 ** (-_MEL_RANGE_DB / 10), 1e-20)))
    log_TM -= log_TM.mean()
    log_TM /= max(float(np.sqrt(np.vdot(log_TM, log_TM) / log_TM.size)), 1e-5)
    if settings.channel_seconds is not None:
        seconds = len(log_TM) * hop / settings.sample_rate
        log_TM -= np.float32(seconds / (seconds + settings.channel_seconds)) * log_TM.mean(axis=0)
    return log_TM, log_TM @ dct_MC


def _samples(milliseconds: float, rate: int) -> int:
    return max(1, round(milliseconds * rate / 1000))


@functools.lru_cache(maxsize=16)
def _spectral_constants(rate: int, window_samples: int, mels: int, coefficients: int) -> _Constants:
    """The transform is a power of two, as long as every mel band needs to hold at least one bin."""
    fft = 1 << max(2, window_samples - 1).bit_length()
    while (mel_KM := _mel_filters(fft // 2 + 1, rate, mels)).sum(axis=0).min() <= 0 and fft < 1 << 17:
        fft *= 2
    window = np.hanning(window_samples + 1)[:-1]
    orders, middles = np.arange(coefficients), np.arange(mels) + 0.5
    dct_MC = np.cos(np.pi / mels * np.outer(middles, orders)) * np.sqrt(2 / mels)
    dct_MC[:, 0] /= np.sqrt(2)
    return _Constants(window.astype(np.float32), fft, mel_KM.astype(np.float32), dct_MC.astype(np.float32))


def _mel_filters(bins: int, rate: int, mels: int) -> np.ndarray:
    """Triangles (bins, mels), equally wide on HTK's mel scale from 0 Hz to half the rate, each 1 at its middle."""
    top = 2595 * np.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, mels + 2) / 2595) - 1)
    hertz_K1 = np.linspace(0, rate / 2, bins)[:, None]
    rising = (hertz_K1 - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hertz_K1) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling))
