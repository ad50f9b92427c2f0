"""Where somebody speaks, as the voice activity detector of WebRTC hears it (Gaussian mixtures over six bands).

https://webrtc.googlesource.com/src/+/main/common_audio/vad/; in integers, so it finds the same on every machine.

Shapes: F frames of the detector, 30 ms each.
"""

from collections.abc import Iterator

import numpy as np

from training.recordings import Speech
from training.spans import SECOND

FRAME = 30_000  # microseconds; the longest that the detector takes
PACKAGES = ("webrtcvad-wheels", "soxr")
_RATE = 16_000  # Hz, of what it is given where it does not know the recording's own
_RATES = (8_000, 16_000, 32_000, 48_000)
_BLOCK = 30  # seconds that are converted at a time


def detect(content: Speech, aggressiveness: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each frame whether it is speech, and its power; the rest behind the last whole frame is filled with zeros."""
    import webrtcvad

    detector = webrtcvad.Vad(aggressiveness)
    rate = content.sample_rate if content.sample_rate in _RATES else _RATE
    size = rate * FRAME // SECOND
    flags, powers, rest = [], [], np.empty(0, np.float32)
    for block in (*_blocks(content, rate), None):
        part = np.concatenate([rest, np.zeros(-len(rest) % size, np.float32) if block is None else block])
        count = len(part) // size
        part_FS, rest = part[: count * size].reshape(count, size), part[count * size :]
        powers.append(np.mean(np.square(part_FS), axis=1))
        samples_FS = (np.clip(part_FS, -1, 1) * np.float32(32767)).astype("<i2")
        flags += [detector.is_speech(samples_S.tobytes(), rate) for samples_S in samples_FS]
    return np.array(flags, bool), np.concatenate(powers)


def _blocks(content: Speech, rate: int) -> Iterator[np.ndarray]:
    """The samples at another rate, a block at a time: an hour at once would take its memory again."""
    step = _BLOCK * content.sample_rate
    starts = range(0, content.frames, step)
    if rate == content.sample_rate:
        yield from (content.waveform[start : start + step] for start in starts)
        return
    import soxr

    stream = soxr.ResampleStream(content.sample_rate, rate, 1, "float32", "LQ")
    for start in starts:
        yield stream.resample_chunk(content.waveform[start : start + step], last=start + step >= content.frames)
