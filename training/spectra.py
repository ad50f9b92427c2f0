"""Spectra of speech: log-mel and MFCC, with what comes before them: trimming and resampling.

Shapes: T frames of `hop_ms`, M mels, C coefficients, N samples of a frame, K = N/2 + 1 frequency bins.
"""

import functools
import warnings
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from training.validation import FORBID_EXTRA, check

_MEL_RANGE_DB = 80.0  # what lies further below the loudest band of the recording is noise or digital silence
_FRAMES = 4096  # of a recording that are transformed at a time


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


def resample(waveform: np.ndarray, rate: int, target: int) -> np.ndarray:
    """float32 (samples,) at `rate` to `target` Hz, by band-limited interpolation (polyphase)."""
    if rate == target or len(waveform) == 0:
        return waveform
    from scipy.signal import resample_poly  # not torchaudio's: that starts threads, which get in each other's way

    up, down, filter_N = _resampler(rate, target)
    return resample_poly(waveform, up, down, window=filter_N)


def trim(waveform: np.ndarray, rate: int, settings: SpectrumOptions) -> np.ndarray:
    """Without the leading and trailing hops whose energy is `trim_db` below the loudest hop; silence stays whole."""
    hop = _samples(settings.hop_ms, rate)
    hops = len(waveform) // hop
    if settings.trim_db is None or hops < 2:
        return waveform
    energy = np.square(waveform[: hops * hop].reshape(hops, hop)).mean(axis=1)
    loud = np.flatnonzero(energy > energy.max() * 10 ** (-settings.trim_db / 10))
    if len(loud) == 0:
        return waveform
    end = len(waveform) if loud[-1] == hops - 1 else (loud[-1] + 1) * hop  # the last hop takes the rest with it
    return waveform[loud[0] * hop : end]


def speech_spectra(
    waveform: np.ndarray, settings: SpectrumOptions, hop: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """float32 (samples,) at `sample_rate` to log-mel (T, mels) and MFCC (T, coefficients), T = 1 + samples // hop.

    The hop is in samples; default: that of the settings.

    HTK mel bands of the power spectrum (Hann window, centred frames, zeros beyond the ends), as natural logarithm,
    clipped 80 dB below the loudest band, then made zero mean and unit variance over the whole recording: loudness
    goes, the shape over time and frequency stays, and small models train without further scaling. Silence is all zero.
    With `channel_seconds`, of each band its mean weighted by seconds / (seconds + channel_seconds) is then taken off:
    cepstral mean normalisation with a prior of zero. The MFCC is the orthonormal DCT-II of that.
    """
    # NumPy, not torch: on short clips it takes half the time, and it starts no threads of its own.
    rate = settings.sample_rate
    window_N, mel_KM, dct_MC = _spectral_constants(
        rate, _samples(settings.window_ms, rate), settings.mels, settings.coefficients
    )
    fft = len(window_N)
    padded = np.zeros(len(waveform) + fft, dtype=np.float32)
    padded[fft // 2 : fft // 2 + len(waveform)] = waveform
    hop = hop or _samples(settings.hop_ms, rate)
    frames_TN = np.lib.stride_tricks.sliding_window_view(padded, fft)[::hop]
    mel_TM = np.concatenate(  # in parts: an hour's spectrum would be gigabytes
        [_power(frames_TN[i : i + _FRAMES] * window_N) @ mel_KM for i in range(0, len(frames_TN), _FRAMES)]
    )
    log_TM = np.log(np.maximum(mel_TM, max(float(mel_TM.max()) * 10 ** (-_MEL_RANGE_DB / 10), 1e-20)))
    log_TM = (log_TM - log_TM.mean()) / max(float(log_TM.std()), 1e-5)
    if settings.channel_seconds is not None:
        seconds = len(log_TM) * hop / rate
        log_TM -= np.float32(seconds / (seconds + settings.channel_seconds)) * log_TM.mean(axis=0)
    return log_TM, log_TM @ dct_MC


def _power(frames_TN: np.ndarray) -> np.ndarray:
    spectrum_TK = np.fft.rfft(frames_TN)
    return np.square(spectrum_TK.real) + np.square(spectrum_TK.imag)


def _samples(milliseconds: float, rate: int) -> int:
    return max(1, round(milliseconds * rate / 1000))


@functools.lru_cache(maxsize=16)
def _spectral_constants(
    rate: int, window_samples: int, mels: int, coefficients: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hann window in the middle of the transform (N,), mel filters (K, mels), DCT (mels, coefficients); K = N/2 + 1.

    N is a power of two, as long as every mel band needs to hold at least one bin. float32.
    """
    from torchaudio import functional

    fft = 1 << max(2, window_samples - 1).bit_length()
    while True:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that a band is empty, which is what is looked for
            mel = functional.melscale_fbanks(fft // 2 + 1, 0.0, rate / 2, mels, rate).numpy()
        if (mel.sum(axis=0) > 0).all() or fft >= 1 << 17:
            break
        fft *= 2
    window = np.zeros(fft, dtype=np.float32)
    start = (fft - window_samples) // 2
    window[start : start + window_samples] = np.hanning(window_samples + 1)[:-1]
    return window, mel, functional.create_dct(coefficients, mels, norm="ortho").numpy()


@functools.lru_cache(maxsize=64)
def _resampler(rate: int, target: int) -> tuple[int, int, np.ndarray]:
    """Up by, down by, and the low-pass filter float32 (N,) for `resample_poly`.

    It is 6 dB down at 95 % of the band and 60 dB at 105 %. It grows with the ratio's terms, so odd rates (44,101 Hz)
    take the nearest ratio with terms up to 1000, which is off by less than 1e-5.
    """
    from scipy.signal import firwin

    slow, fast = sorted((rate, target))
    ratio = Fraction(slow, fast).limit_denominator(1000)
    up, down = (ratio.denominator, ratio.numerator) if rate < target else (ratio.numerator, ratio.denominator)
    longest = max(up, down)
    return up, down, firwin(2 * 24 * longest + 1, 0.95 / longest, window=("kaiser", 8.0)).astype(np.float32)
