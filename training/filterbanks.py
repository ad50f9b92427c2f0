"""Log-mel spectra as other programs make them, value for value: Whisper's and Kaldi's.

NumPy and SciPy, not the libraries that they are held against in the tests: those load torch in every worker.

Shapes: N samples, T frames, W samples of a frame, K frequency bins, M mel bands.
"""

import functools

import numpy as np

WHISPER_RATE = 16_000  # Hz
_WHISPER_WINDOW, _WHISPER_HOP = 400, 160  # samples
_KALDI_WINDOW, _KALDI_HOP = 0.025, 0.010  # seconds
_KALDI_SCALE = 2**15  # Kaldi reads the integers of a 16-bit recording as they are
_KALDI_LOWEST = 20.0  # Hz
_PREEMPHASIS = 0.97
_SLANEY_LINEAR, _SLANEY_KNEE, _SLANEY_STEP = 200 / 3, 1000.0, np.log(6.4) / 27  # Hz a mel, Hz, of the logarithm a mel
_FRAMES = 4096  # that are transformed at a time: an hour's spectrum would be gigabytes


def whisper_mel(waveform: np.ndarray, mels: int) -> np.ndarray:
    """float32 (N,) at 16 kHz to (T, mels), T = ceil(N / 160): what Whisper is given, without the silence up to 30 s
    (Radford et al. 2022; `transformers.WhisperFeatureExtractor`).

    Power of a Hann window of 25 ms every 10 ms, centred; Slaney's mel bands from 0 to 8 kHz, each of area 1; log10,
    clipped 8 below the highest value; then a quarter of that, plus 1.
    """
    half, count = _WHISPER_WINDOW // 2, -(-len(waveform) // _WHISPER_HOP)
    mirrored = np.concatenate([waveform, np.zeros(half, np.float32)])[half:0:-1]
    padded = np.concatenate([mirrored, waveform, np.zeros(_WHISPER_WINDOW + _WHISPER_HOP, np.float32)])
    # The frames after those hold the last samples, too, which may be the loudest.
    most = count + half // _WHISPER_HOP + 1
    frames_TW = _frames(padded, _WHISPER_WINDOW, _WHISPER_HOP)[:most]
    window_W, mel_KM = _whisper_constants(mels)
    parts = (frames_TW[at : at + _FRAMES] * window_W for at in range(0, len(frames_TW), _FRAMES))
    log_TM = np.log10(np.maximum(np.concatenate([_power(part) @ mel_KM for part in parts]), 1e-10))
    return (np.maximum(log_TM, log_TM.max() - 8)[:count] + 4) / 4


def kaldi_fbank(waveform: np.ndarray, rate: int, mels: int) -> np.ndarray:
    """float32 (N,) within [-1, 1] to (T, mels), T = 1 + (N - W) // hop: Kaldi's `compute-fbank-feats` without dither
    (`torchaudio.compliance.kaldi.fbank`). What is shorter than a frame is filled up with zeros to one.

    Power of a window of 25 ms (Hann to the power of 0.85) every 10 ms, less its mean and with pre-emphasis; mel bands
    from 20 Hz to half the rate; natural logarithm. Samples count as 16-bit integers.
    """
    window, hop = int(_KALDI_WINDOW * rate), int(_KALDI_HOP * rate)
    padded = np.concatenate([waveform, np.zeros(max(0, window - len(waveform)), np.float32)])
    frames_TW = _frames(padded, window, hop)
    constants = _kaldi_constants(rate, window, mels)
    parts = (frames_TW[at : at + _FRAMES] for at in range(0, len(frames_TW), _FRAMES))
    return np.concatenate([_kaldi_part(part, *constants) for part in parts])


def _kaldi_part(frames_TW: np.ndarray, window_W: np.ndarray, mel_KM: np.ndarray) -> np.ndarray:
    centred_TW = frames_TW * np.float32(_KALDI_SCALE)
    centred_TW -= centred_TW.mean(axis=1, keepdims=True)
    emphasised_TW = centred_TW * np.float32(1 - _PREEMPHASIS)  # of a frame's first sample: as if it stood before
    emphasised_TW[:, 1:] = centred_TW[:, 1:] - np.float32(_PREEMPHASIS) * centred_TW[:, :-1]
    power_TK = _power(emphasised_TW * window_W, _kaldi_fft(len(window_W)))
    return np.log(np.maximum(power_TK @ mel_KM, np.finfo(np.float32).eps))


def _frames(waveform: np.ndarray, window: int, hop: int) -> np.ndarray:
    """A view (T, W)."""
    return np.lib.stride_tricks.sliding_window_view(waveform, window)[::hop]


def _power(frames_TW: np.ndarray, fft: int | None = None) -> np.ndarray:
    from scipy.fft import rfft

    spectrum_TK = rfft(frames_TW, fft)
    return np.square(spectrum_TK.real) + np.square(spectrum_TK.imag)


@functools.cache
def _whisper_constants(mels: int) -> tuple[np.ndarray, np.ndarray]:
    """Window (W,) and mel bands (K, M)."""
    hertz_K = np.linspace(0, WHISPER_RATE / 2, _WHISPER_WINDOW // 2 + 1)
    edges = _slaney_hertz(np.linspace(0, _slaney_mel(WHISPER_RATE / 2), mels + 2))
    mel_KM = _triangles(hertz_K, edges) * (2 / (edges[2:] - edges[:-2]))
    return np.hanning(_WHISPER_WINDOW + 1)[:-1].astype(np.float32), mel_KM.astype(np.float32)


@functools.cache
def _kaldi_constants(rate: int, window: int, mels: int) -> tuple[np.ndarray, np.ndarray]:
    """Window (W,) and mel bands (K, M), which are triangles on the mel scale; the bin at half the rate is in none."""
    mel_K = 1127 * np.log1p(np.linspace(0, rate / 2, _kaldi_fft(window) // 2 + 1) / 700)
    edges = np.linspace(1127 * np.log1p(_KALDI_LOWEST / 700), mel_K[-1], mels + 2)
    mel_KM = _triangles(mel_K, edges)
    mel_KM[-1] = 0
    return (np.hanning(window) ** 0.85).astype(np.float32), mel_KM.astype(np.float32)


def _kaldi_fft(window: int) -> int:
    return 1 << (window - 1).bit_length()


def _triangles(places_K: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """(K, M), each 1 at its middle."""
    places_K1 = places_K[:, None]
    rising = (places_K1 - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - places_K1) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling))


def _slaney_mel(hertz: float) -> float:
    """Slaney's scale (Auditory Toolbox, 1998), from the knee on."""
    return float(_SLANEY_KNEE / _SLANEY_LINEAR + np.log(hertz / _SLANEY_KNEE) / _SLANEY_STEP)


def _slaney_hertz(mel: np.ndarray) -> np.ndarray:
    knee = _SLANEY_KNEE / _SLANEY_LINEAR
    return np.where(mel < knee, _SLANEY_LINEAR * mel, _SLANEY_KNEE * np.exp(_SLANEY_STEP * (mel - knee)))
