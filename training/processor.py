"""Raw text, image and speech to the tensors of a training row: one class for featurizing, training and serving.

    image   upright RGB -> resized to a square (bilinear, antialiased) -> pixels uint8 (C, H, W)
    speech  mono -> trimmed -> cut -> resampled -> log_mel float32 (T, mels), mfcc float32 (T, coefficients)
    text    cleaned -> input_ids int32 (tokens,)

C is 1 (grey) or 3 (RGB), H = W = size, T frames of `hop_ms`, M mels, N samples of a frame, K = N/2 + 1 frequency bins.
Importing this needs no torch: the data side computes fingerprints without it.
"""

import dataclasses
import functools
import hashlib
import json
import shutil
import unicodedata
import warnings
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from training import media
from training.language import CleanText, clean_text
from training.schema import fingerprint
from training.settings import FeatureSettings, ImageFeatures, MediaLimits, SpeechFeatures, TextFeatures, to_dict

# Count up whenever the output for the same input and settings changes; the golden test fails until then.
CLEAN_VERSION = {"text": 1, "image": 1, "speech": 1}
FEATURE_VERSION = {"text": 1, "image": 1, "speech": 2}
# Packages that decide the output.
_CLEAN_PACKAGES = {"text": ("regex", "jieba", "stopwordsiso"), "image": ("pillow",), "speech": ("soundfile",)}
_FEATURE_PACKAGES = {"text": (), "image": ("torchvision", "torch"), "speech": ("numpy", "scipy", "torchaudio", "torch")}
_LIMITS = {"text": ("max_characters",), "image": ("max_pixels",), "speech": ("max_seconds",)}
_FILE, _TOKENIZER = "processor.json", "tokenizer"
_TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges*", "special_tokens*", "added_tokens*", "*.model", "chat_template*")
_MEL_RANGE_DB = 80.0  # what lies further below the loudest band of the recording is noise or digital silence
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # Rec. 601
_FRAMES = 4096  # of a recording that are transformed at a time


class Processor:
    """`row` does everything at once; `decode_*` and `*_tensors` are its two halves, for one decoding with two uses."""

    def __init__(self, features: FeatureSettings, limits: MediaLimits, tokenizer: Path | None = None) -> None:
        """`tokenizer`: folder that stands in for `features.text.tokenizer` where the model was moved."""
        self.features = features
        self.limits = limits
        name = features.text.tokenizer
        self._tokenizer_folder = tokenizer or (Path(name) if name != "bytes" and Path(name).is_dir() else None)

    def row(self, text: str | None = None, image: bytes | None = None, speech: bytes | None = None) -> dict[str, Any]:
        """The row that training and serving consume; what is not given is None. Raises MediaError."""
        row: dict[str, Any] = dict.fromkeys(
            ("sample_id", "label", "text", "input_ids", "pixels", "log_mel", "mfcc", "waveform")
        )
        if text is not None:
            clean = self.decode_text(text)
            row |= {"text": clean.text} | self.text_tensors(clean)
        if image is not None:
            row |= self.image_tensors(self.decode_image(image))
        if speech is not None:
            row |= self.speech_tensors(self.decode_speech(speech))
        return row

    def decode_text(self, text: str) -> CleanText:
        if len(text) > self.limits.max_characters:
            limit = self.limits.max_characters
            raise media.MediaError("too_large", f"{len(text)} characters are over the limit of {limit}")
        clean = clean_text(text, self.features.text)
        if (tokens := len(self._tokenize(clean.text))) > (most := self.features.text.max_tokens):
            clean = dataclasses.replace(clean, warnings=(*clean.warnings, f"first {most} of {tokens} tokens used"))
        return clean

    def decode_image(self, data: bytes, name: str | None = None) -> media.Image:
        return media.decode_image(data, self.limits, self.features.image.size, name)

    def decode_speech(self, data: bytes, name: str | None = None) -> media.Speech:
        return media.decode_speech(data, self.limits, name)

    def text_tensors(self, clean: CleanText) -> dict[str, np.ndarray]:
        ids = self._tokenize(clean.text)[: self.features.text.max_tokens]
        return {"input_ids": np.asarray(list(ids), dtype=np.int32)}

    def image_tensors(self, image: media.Image) -> dict[str, np.ndarray]:
        return {"pixels": image_pixels(image.array, self.features.image)}

    def speech_tensors(self, speech: media.Speech) -> dict[str, np.ndarray]:
        settings = self.features.speech
        waveform = trim(speech.waveform, speech.sample_rate, settings)  # before resampling: less is left to do
        waveform = waveform[: max(1, round(settings.max_seconds * speech.sample_rate))]
        waveform = resample(waveform, speech.sample_rate, settings.sample_rate)
        log_mel, mfcc = speech_spectra(waveform, settings)
        tensors = {"log_mel": log_mel, "mfcc": mfcc}
        if settings.keep_waveform:
            tensors["waveform"] = np.round(np.clip(waveform, -1, 1) * 32767).astype(np.int16)
        return tensors

    def _tokenize(self, text: str) -> list[int] | bytes:
        if self.features.text.tokenizer == "bytes":
            return text.encode()
        return _tokenizer(str(self._tokenizer_folder or self.features.text.tokenizer))(text)["input_ids"]

    def clean_fingerprint(self, modality: str) -> str:
        """Names the clean step: version, limits, the settings and packages that decide its rows."""
        limits = {name: getattr(self.limits, name) for name in ("max_bytes", *_LIMITS[modality])}
        if modality == "image":
            settings: dict[str, Any] = {}
        elif modality == "speech":
            settings = {"max_seconds": self.features.speech.max_seconds}  # a cut is a warning of the clean table
        else:
            settings = to_dict(self.features.text) | {
                "tokenizer": self._tokenizer_identity(),
                "unicode": unicodedata.unidata_version,
            }
        return fingerprint("clean", modality, CLEAN_VERSION[modality], limits, settings, self._versions(modality, True))

    def fingerprint(self, modality: str) -> str:
        """Names the featurize step; covers the clean step, which decodes for it. Needs no torch."""
        settings = to_dict(getattr(self.features, modality))
        for name in ("mean", "std", "kind", "tokenizer"):  # used when a batch is made, or part of the clean step
            settings.pop(name, None)
        clean = self.clean_fingerprint(modality)
        return fingerprint("featurize", clean, FEATURE_VERSION[modality], settings, self._versions(modality, False))

    def _versions(self, modality: str, clean: bool) -> dict[str, str]:
        names = (_CLEAN_PACKAGES if clean else _FEATURE_PACKAGES)[modality]
        if modality == "text" and clean and self.features.text.tokenizer != "bytes":
            names = (*names, "transformers", "tokenizers")
        return {name: _version(name) for name in names}

    def _tokenizer_identity(self) -> str:
        """A local folder is known by its files, wherever it lies."""
        if self._tokenizer_folder is None:
            return self.features.text.tokenizer
        digest = hashlib.sha256()
        for path in _tokenizer_files(self._tokenizer_folder):
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
        return digest.hexdigest()

    def save_pretrained(self, folder: Path | str) -> None:
        """Writes processor.json, and the tokenizer's files beside it, so that the model can move."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        content = {"features": dataclasses.asdict(self.features), "limits": dataclasses.asdict(self.limits)}
        (folder / _FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        if self._tokenizer_folder is not None:
            (folder / _TOKENIZER).mkdir(exist_ok=True)
            for path in _tokenizer_files(self._tokenizer_folder):
                shutil.copyfile(path, folder / _TOKENIZER / path.name)
        elif self.features.text.tokenizer != "bytes":
            _tokenizer(self.features.text.tokenizer).save_pretrained(folder / _TOKENIZER)

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> "Processor":
        path = Path(folder) / _FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            features = FeatureSettings(
                text=TextFeatures(**content["features"]["text"]),
                image=ImageFeatures(**content["features"]["image"]),
                speech=SpeechFeatures(**content["features"]["speech"]),
            )
            limits = MediaLimits(**content["limits"])
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a saved processor: {error}; expected the folder of a model") from error
        tokenizer = Path(folder) / _TOKENIZER
        return cls(features, limits, tokenizer if tokenizer.is_dir() else None)


@functools.cache
def _version(package: str) -> str:
    return metadata.version(package).partition("+")[0]  # the build (+cpu, +cu130) is no matter


def image_pixels(array: np.ndarray, settings: ImageFeatures) -> np.ndarray:
    """uint8 (H, W, 3) to uint8 (C, size, size): the middle square (crop), all squeezed (squash) or all on black (pad).

    Bilinear with antialiasing; grey is Rec. 601 luma.
    """
    import torch
    from torchvision.transforms.v2 import functional as transforms

    # torch only resizes, and only what is contiguous: for the other operations it starts a thread per core, which
    # beside the engine's workers costs 20 times the work itself.
    size = settings.size
    height, width = array.shape[:2]
    if settings.fit == "crop":  # before resizing: a strip of 1 x 100,000 pixels must not grow to a giant
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        array, height, width = array[top : top + side, left : left + side], side, side
    longest = max(height, width) if settings.fit == "pad" else None
    shape = [max(1, round(size * length / (longest or length))) for length in (height, width)]
    pixels_HWC = np.array(array, order="C")  # writable, as torch wants it
    if shape != [height, width]:
        resized_CHW = transforms.resize(torch.from_numpy(pixels_HWC).permute(2, 0, 1), shape, antialias=True)
        pixels_HWC = resized_CHW.numpy().transpose(1, 2, 0)
    if settings.color == "grey":
        pixels_HWC = np.round(pixels_HWC @ _LUMA).astype(np.uint8)[..., None]
    square_CHW = np.zeros((pixels_HWC.shape[2], size, size), dtype=np.uint8)
    top, left = (size - shape[0]) // 2, (size - shape[1]) // 2
    square_CHW[:, top : top + shape[0], left : left + shape[1]] = pixels_HWC.transpose(2, 0, 1)
    return square_CHW


def resample(waveform: np.ndarray, rate: int, target: int) -> np.ndarray:
    """float32 (samples,) at `rate` to `target` Hz, by band-limited interpolation (polyphase)."""
    if rate == target or len(waveform) == 0:
        return waveform
    from scipy.signal import resample_poly  # not torchaudio's: that starts threads, which get in each other's way

    up, down, filter_N = _resampler(rate, target)
    return resample_poly(waveform, up, down, window=filter_N)


def trim(waveform: np.ndarray, rate: int, settings: SpeechFeatures) -> np.ndarray:
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
    waveform: np.ndarray, settings: SpeechFeatures, hop: int | None = None
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


@functools.lru_cache(maxsize=4)
def _tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name, trust_remote_code=False)


def _tokenizer_files(folder: Path) -> list[Path]:
    return sorted({path for pattern in _TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file()})
