"""Speech: recordings of any format that libsndfile reads, mono, as float32 (`training.recordings`)."""

import dataclasses
import io
import itertools
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from training.media import SUFFIX_FORMATS
from training.modalities.base import Modality
from training.recordings import Speech, decode_speech
from training.settings import MediaLimits, SpeechAugmentation
from training.spans import SECOND, span

_BLOCK = 2**20  # samples
_SKETCH = 96, 320  # pixels, height and width


class SpeechModality(Modality):
    name = "speech"
    described = "mono, checked for damage and length"
    version = 6
    packages = ("soundfile",)
    columns: ClassVar = {
        "format": pa.string(),
        "sample_rate": pa.int64(),
        "channels": pa.int64(),
        "frames": pa.int64(),
        "start": pa.float64(),
        "seconds": pa.float64(),
        "rms": pa.float64(),
        "channel_balance": pa.float64(),
    }
    suffixes = SUFFIX_FORMATS
    limits: ClassVar = {"max_seconds": "seconds"}
    default_featurizer = "log_mel"
    can_be_cut = True
    place = ("start", "seconds")
    decoded_bytes = "4 * frames"
    takes_noise = True
    Augmentation = SpeechAugmentation
    picture = "log_mel"
    picture_title = "log-mel spectrogram"
    column_words: ClassVar = {
        "format": "that the content has, whatever the name says",
        "sample_rate": "Hz, as stored",
        "channels": "as stored; they are averaged",
        "frames": "samples of one channel",
        "start": "seconds from the beginning of its recording; 0 of a whole one",
        "seconds": "how long it is",
        "rms": "root mean square of the samples, which lie within [-1, 1]",
        "channel_balance": "dB that the quietest channel of the recording lies below the loudest; 0: one channel",
    }
    media_type = "audio/*"
    grid = (1, 24)
    noise_levels = (20, 10, 5, 0)
    noise_words = "signal-to-noise ratio of white noise, in dB"
    file_suffixes = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au")

    def decode(self, data: bytes, limits: MediaLimits, size: int | None = None) -> Speech:
        return decode_speech(data, limits)

    def describe(self, content: Speech) -> dict[str, Any]:
        row = {name: getattr(content, name) for name in (*self.columns, "warnings") if name != "rms"}
        blocks = range(0, content.frames, _BLOCK)  # in double precision an hour would take gigabytes
        power = sum(np.square(content.waveform[n : n + _BLOCK], dtype=np.float64).sum() for n in blocks)
        return row | {"rms": float(np.sqrt(power / content.frames))}

    def part(self, content: Speech, cut: str) -> Speech:
        return content.part(cut)

    def cut_of(self, row: Mapping[str, Any]) -> str:
        """By its times: the cut of the row may be what has found it."""
        return span(*(round(time * SECOND) for time in (row["start"], row["start"] + row["seconds"])))

    def where(self, place: Mapping[str, Any]) -> str:
        return f"{place['start']:.2f} s to {place['start'] + place['seconds']:.2f} s"

    def encode(self, content: Speech) -> bytes:
        """As WAV of the same float32 samples."""
        import soundfile

        file = io.BytesIO()
        soundfile.write(file, content.waveform, content.sample_rate, format="WAV", subtype="FLOAT")
        return file.getvalue()

    def nbytes(self, content: Speech) -> int:
        return content.waveform.nbytes + (0 if content.clipped is None else content.clipped.nbytes)

    def example(self) -> bytes:
        """Half a second of a tone, as WAV."""
        import soundfile

        tone = io.BytesIO()
        waveform = 0.5 * np.sin(2 * np.pi * 440 * np.arange(4000) / 8000)
        soundfile.write(tone, waveform, 8000, format="WAV", subtype="PCM_16")
        return tone.getvalue()

    def sketch(self, content: Speech) -> np.ndarray:
        """The waveform: how far it reaches in each of as many stretches as there are columns."""
        height, width = _SKETCH
        edges = np.linspace(0, content.frames, width + 1).astype(int)
        parts = [content.waveform[a : max(b, a + 1)] for a, b in itertools.pairwise(edges)]
        middle, rows = (height - 1) / 2, np.arange(height)[:, None]
        high, low = (np.array([end(part) for part in parts]) * middle for end in (np.max, np.min))
        return np.where((rows >= middle - high - 0.5) & (rows <= middle - low + 0.5), 60, 244).astype(np.uint8)

    def pieces(self, content: Speech) -> list[str]:
        stretch = content.seconds / self.grid[1]
        return [f"{n * stretch:.2f} s to {(n + 1) * stretch:.2f} s" for n in range(self.grid[1])]

    def keeping(self, content: Speech, kept: np.ndarray) -> Speech:
        """The other stretches are silent."""
        there = kept[np.arange(content.frames) * self.grid[1] // content.frames]
        return dataclasses.replace(content, waveform=np.where(there, content.waveform, np.float32(0)))

    def noisy(self, content: Speech, level: float, random: np.random.Generator) -> Speech:
        """White, so many decibels below the recording's own power; what is beyond full scale is clipped."""
        power = float(np.square(content.waveform, dtype=np.float64).mean())
        noise = random.normal(0, np.sqrt(power * 10 ** (-level / 10)), content.frames)
        noisy = (content.waveform + noise).clip(-1, 1).astype(np.float32)
        return dataclasses.replace(content, waveform=noisy, clipped=None)

    def laid(self, values: np.ndarray) -> np.ndarray:
        return values.T[::-1]

    def draw(self, tensor: np.ndarray) -> np.ndarray:
        """A spectrogram, low frequencies below."""
        low, high = float(tensor.min()), float(tensor.max())
        return (255 * (tensor.T[::-1] - low) / max(high - low, 1e-6)).astype(np.uint8)

    def axes(self, tensor: np.ndarray) -> tuple[str, str]:
        return f"{len(tensor)} frames", "mel band"
