"""Decodes recordings that nobody vouches for, with soundfile (libsndfile) (`training.media` says what that means).

Headers are checked against `MediaLimits` before anything is decoded or allocated.

Shapes: F frames (samples per channel), C channels.
"""

import dataclasses
import io
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from training import mp3
from training.levels import Channels, clipped
from training.media import (
    MediaError,
    check_size,
    speech_format,
    too_large,
    unknown_format,
    words,
)
from training.messages import one_line
from training.settings import MediaLimits
from training.spans import frames_of

if TYPE_CHECKING:
    import soundfile

FORMATS = ("WAV", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF", "W64")
# Where another recording begins within a file: libsndfile stops before it and says nothing. MP3: `training.mp3`.
_BEGINNINGS = {
    "OGG": re.compile(rb"OggS\0[\x02\x06]\0{8}"),  # a first page
    "FLAC": re.compile(rb"fLaC[\x00\x80]\0\0\x22"),
    "WAV": re.compile(rb"(?:RIFF|RIFX|RF64)....WAVE(?:fmt |ds64|JUNK|bext)", re.DOTALL),
    "AIFF": re.compile(rb"FORM....AIF[FC](?:COMM|FVER)", re.DOTALL),
    "AU": re.compile(rb"\.snd\0\0\0[\x18-\xff]....\0\0\0[\x01-\x1b]", re.DOTALL),
    "CAF": re.compile(rb"caff\0\x01..desc", re.DOTALL),
    "W64": re.compile(rb"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\0\0"),
}
_PLAIN_HEADER = struct.Struct("<4sI8sIHHIIHH4sI")
_MAX_RATE = 768_000  # Hz; more is a damaged header
_MIN_RATE = 1_000
_UNKNOWN_FRAMES = 2**48  # streamed FLAC does not say its length: libsndfile then gives the largest integer
_BLOCK_VALUES = 2**20  # values decoded at a time
_OVERSHOOT = 0.5  # seconds
_EXPORT = "export it again as WAV or FLAC"


@dataclass(frozen=True)
class Speech:
    waveform: np.ndarray  # float32 (F,), mono, within [-1, 1]
    sample_rate: int  # Hz
    format: str
    channels: int  # as stored
    frames: int
    warnings: tuple[str, ...] = ()
    start: float = 0.0  # seconds from the beginning of the recording that it is a part of
    channel_balance: float = 0.0  # dB between the loudest and the quietest channel of the recording
    clipped: np.ndarray | None = (
        None  # bool (F,) where a channel is clipped; None: the waveform says it, of one channel
    )

    @property
    def seconds(self) -> float:
        return self.frames / self.sample_rate

    @property
    def cut_off(self) -> np.ndarray:
        """Where (F,) it is clipped."""
        return clipped(self.waveform[:, None]) if self.clipped is None else self.clipped

    def part(self, cut: str) -> "Speech":
        """A stretch of it (`training.spans`), without a copy of its samples.

        A cut may end up to half a second behind the recording, as annotations do (Kaldi's extract-segments allows the
        same): it then ends with it, and a warning says so. Raises MediaError where there is no such stretch.
        """
        first, last = frames_of(cut, self.sample_rate)
        start, end = (frame / self.sample_rate for frame in (first, last))
        where = f"the segment from {start:.3f} s to {end:.3f} s"
        if first >= self.frames or end - self.seconds > _OVERSHOOT:
            raise MediaError(
                "beyond_end", f"{where} is not within the recording of {self.seconds:.3f} s: correct its times"
            )
        if (last := min(last, self.frames)) <= first:
            raise MediaError("no_samples", f"{where} has no samples at {self.sample_rate} Hz: correct its times")
        said = f"{where} ends behind the recording of {self.seconds:.3f} s, and was cut there"
        warnings = (*self.warnings, said) if end > self.seconds + 1 / self.sample_rate else self.warnings
        of_part = dataclasses.replace(self, waveform=self.waveform[first:last], frames=last - first, start=start)
        of_channels = None if self.clipped is None else self.clipped[first:last]
        return dataclasses.replace(of_part, clipped=of_channels, warnings=warnings)


def decode_speech(data: bytes, limits: MediaLimits) -> Speech:
    """Mono float32 of any format that libsndfile reads: the mean of the channels that are not silent.

    Where channels cancel each other (left = -right), the strongest one is taken. Recordings that were joined in one
    file are decoded one after the other. Samples beyond [-1, 1] (float files, lossy codecs) are divided by the peak. A
    file with fewer frames than its header says, or more, gives the frames both agree on; one whose header was never
    finished gives all. Each of these with a warning. Raises MediaError.
    """
    check_size(data, limits)
    if (kind := speech_format(data)) is None:
        raise unknown_format(data, "audio", FORMATS, "WAV or FLAC")
    plain = _plain_wav(data, limits) if kind == "WAV" else None
    speech, warnings = _decode_all(data, kind, limits) if plain is None else (plain, [])
    waveform = speech.waveform
    peak = max(float(waveform.max()), -float(waveform.min()))
    if peak == 0:
        warnings.append("silence: every sample is zero")
    elif peak > 1:
        warnings.append(f"samples reach {peak:.3g}, scaled into [-1, 1]")
        waveform /= peak  # in its place: an hour is 700 MB
    return dataclasses.replace(speech, waveform=waveform, frames=len(waveform), warnings=tuple(warnings))


def _plain_wav(data: bytes, limits: MediaLimits) -> Speech | None:
    """What most recordings are, in a tenth of the time that libsndfile takes: mono, 16 bits, behind a header of 44
    bytes that agrees with the file in all that it says. None: another one, or too long."""
    rate, size = int.from_bytes(data[24:28], "little"), len(data) - _PLAIN_HEADER.size
    if size <= 0 or size % 2 or not _MIN_RATE <= rate <= _MAX_RATE or size > 2 * rate * limits.max_seconds:
        return None
    header = _PLAIN_HEADER.pack(b"RIFF", len(data) - 8, b"WAVEfmt ", 16, 1, 1, rate, 2 * rate, 2, 16, b"data", size)
    if not data.startswith(header):
        return None
    values = np.frombuffer(data, "<i2", offset=len(header))
    return Speech(values * np.float32(2**-15), rate, "WAV", 1, len(values))


# Several recordings in one file, and headers that were never finished


def _decode_all(data: bytes, kind: str, limits: MediaLimits) -> tuple[Speech, list[str]]:
    """The recordings of a file as one, and what to say of it."""
    first, *others = _recordings(data, kind)
    finished = _finished(first, kind)
    speech = _decode(finished or first, limits)
    warnings = list(speech.warnings)
    if finished is not None:
        said = f"the header says that no samples follow, {speech.frames} frames decoded"
        warnings.append(f"{said}: the recording was never finished")
    if others:
        speech, said = _joined(speech, others, limits)
        warnings.append(said)
    return speech, warnings


def _recordings(data: bytes, kind: str) -> list[bytes]:
    """The recordings that lie one after the other in a file; most often one."""
    begins = mp3.beginnings(data) if kind == "MP3" else [m.start() for m in _BEGINNINGS[kind].finditer(data)]
    if kind == "OGG":
        begins = [begin for begin in begins if not data[data.rfind(b"OggS\0", 0, begin) + 5] & 2]
    starts = [0, *(begin for begin in begins if begin > 0)]
    return [data[start:end] for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]


def _joined(first: Speech, others: list[bytes], limits: MediaLimits) -> tuple[Speech, str]:
    """All recordings of a file, as far as they can be decoded and have one rate; and what to say of it."""
    parts, left_out = [first], []
    for number, data in enumerate(others, 2):
        try:
            speech = _decode(data, limits)
            if speech.sample_rate != first.sample_rate:
                raise MediaError("unsupported", f"it has {speech.sample_rate} Hz, the first {first.sample_rate}")
        except MediaError as error:
            if error.reason == "too_large":
                raise
            left_out.append(f"number {number} ({error})")
            continue
        parts.append(speech)
        seconds = sum(part.seconds for part in parts)
        if seconds > limits.max_seconds:
            raise too_large(f"{seconds:.1f} s", "max_seconds", limits.max_seconds)
    said = f"{1 + len(others)} recordings are joined in this file: decoded one after the other"
    if left_out:
        said += one_line(f", without {'; '.join(left_out)}", 200)
    waveform = np.concatenate([part.waveform for part in parts])
    warnings = dict.fromkeys(warning for part in parts for warning in part.warnings)
    balance = max(part.channel_balance for part in parts)
    cut_off = np.concatenate([part.cut_off for part in parts]) if any(p.channels > 1 for p in parts) else None
    first = dataclasses.replace(first, waveform=waveform, channel_balance=balance, clipped=cut_off)
    return dataclasses.replace(first, warnings=tuple(warnings)), said


def _finished(data: bytes, kind: str) -> bytes | None:
    """The file with the size of its samples in the header, where its recorder never wrote it; None: it is there."""
    if kind == "AU":
        return data[:8] + b"\xff" * 4 + data[12:] if data[8:12] == bytes(4) and len(data) > 24 else None
    if data.startswith(b"RF64") and data[12:16] == b"ds64" and not any(data[28:36]):
        return b"RIFF" + data[4:]  # a size that a WAV does not know, either: all is read
    if kind not in ("WAV", "CAF"):
        return None
    position, size_type = (8, ">q") if kind == "CAF" else (12, ">I" if data.startswith(b"RIFX") else "<I")
    width = struct.calcsize(size_type)
    while position + 4 + width <= len(data):
        name, body = data[position : position + 4], position + 4 + width
        (size,) = struct.unpack_from(size_type, data, position + 4)
        if name == b"data":
            if size > 0 or len(data) - body < 2 or _is_chunk(data, body, size_type):
                return None
            if kind == "WAV":
                data = data[:4] + struct.pack(size_type, min(len(data) - 8, 2**32 - 1)) + data[8:]
            return data[: position + 4] + struct.pack(size_type, len(data) - body) + data[body:]
        if size < 0:
            return None
        position = body + size + (size % 2 if kind == "WAV" else 0)
    return None


def _is_chunk(data: bytes, position: int, size_type: str) -> bool:
    """Whether bytes look like a chunk of their own, which ends within the file."""
    body = position + 4 + struct.calcsize(size_type)
    if body > len(data) or not re.match(rb"[A-Za-z][A-Za-z0-9 ]{3}", data[position : position + 4]):
        return False
    return 0 <= struct.unpack_from(size_type, data, position + 4)[0] <= len(data) - body


# One recording


class _Bytes(io.BytesIO):
    """libsndfile seeks before the start of damaged files; an exception in its callback would print a traceback."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return super().seek(max(0, offset) if whence == 0 else offset, whence)


def _decode(data: bytes, limits: MediaLimits) -> Speech:
    if speech_format(data) == "MP3":
        data = mp3.counted(data)
    speech, channels = _decode_channels(data, limits, None)
    if channels is None:
        return speech
    chosen, said = channels.chosen()
    if chosen is not None:
        speech, _ = _decode_channels(data, limits, chosen)
    speech = dataclasses.replace(speech, channel_balance=channels.balance, clipped=channels.clipped)
    return dataclasses.replace(speech, warnings=(*speech.warnings, said)) if said else speech


def _decode_channels(data: bytes, limits: MediaLimits, chosen: list[int] | None) -> tuple[Speech, Channels | None]:
    """The mean of the chosen channels (None: all); and of several what is known of each."""
    import soundfile

    try:
        with soundfile.SoundFile(_Bytes(data)) as file:
            # After each read soundfile would seek to where the file is anyway, which fails if the length is unknown.
            file.seekable = lambda: False
            return _read(file, limits, chosen)
    except soundfile.SoundFileError as error:
        raise MediaError("corrupt", f"the audio is damaged or cut ({words(error)}): {_EXPORT}") from error


def _read(file: "soundfile.SoundFile", limits: MediaLimits, chosen: list[int] | None) -> tuple[Speech, Channels | None]:
    rate, channels, claimed = file.samplerate, file.channels, file.frames
    if not _MIN_RATE <= rate <= _MAX_RATE:
        expected = f"expected {_MIN_RATE} to {_MAX_RATE}"
        raise MediaError("corrupt", f"the header says {rate} Hz, {expected}: {_EXPORT}")
    most = int(limits.max_seconds * rate)
    known = claimed < _UNKNOWN_FRAMES
    if known and claimed > most:
        raise too_large(f"{claimed / rate:.1f} s", "max_seconds", limits.max_seconds)
    parts: list[np.ndarray] = []
    frames, told = 0, Channels(channels) if channels > 1 and chosen is None else None
    # The header's length is not trusted: memory grows with what was decoded.
    while frames < claimed:
        count = min(claimed - frames, max(1, _BLOCK_VALUES // channels))
        block = file.read(count, dtype="float32", always_2d=True)
        if len(block) == 0:
            break
        if not np.isfinite(block).all():
            where = f"within samples {frames} to {frames + len(block)}"
            raise MediaError("corrupt", f"values that are not finite numbers {where}: {_EXPORT}")
        frames += len(block)
        if frames > most:
            raise too_large(f"{frames / rate:.1f} s", "max_seconds", limits.max_seconds)
        mean = block[:, 0] if channels == 1 else block[:, chosen or slice(None)].mean(axis=1, dtype=np.float64)
        parts.append(mean.astype(np.float32))
        if told is not None:
            told.add(block, mean)
    if frames == 0:
        raise MediaError("no_samples", f"the audio has no samples: nothing follows its header; record or {_EXPORT}")
    waveform = parts[0] if len(parts) == 1 else np.empty(frames, np.float32)
    end = frames if len(parts) > 1 else 0
    while end:  # from the last on, each freed as it is copied: together they are as large as the whole
        part = parts.pop()
        waveform[end - len(part) : end] = part
        end -= len(part)
    warnings = _disagreement(file.extra_info, claimed if known else frames, frames)
    return Speech(waveform, rate, file.format, channels, frames, warnings), told


def _disagreement(log: str, claimed: int, frames: int) -> tuple[str, ...]:
    """What the header says otherwise than the data; libsndfile's log marks what it had to correct."""
    odd = [line.strip() for line in log.splitlines() if re.search(r"\(should be|\*\*\*|Junk", line)]
    if frames != claimed:
        odd.append(f"{claimed} frames announced")
    return (f"header and data disagree, {frames} frames decoded ({one_line('; '.join(odd), 200)})",) if odd else ()
