"""Recordings cut where nobody speaks, by the voice activity detector of WebRTC (Gaussian mixtures over six bands).

https://webrtc.googlesource.com/src/+/main/common_audio/vad/; in integers, so it finds the same on every machine.

Shapes: F frames of the detector, 30 ms each.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from assets.segments.base import Segments
from training.media import MediaError
from training.recordings import Speech
from training.spans import SECOND, span
from training.validation import check

_FRAME = 30_000  # microseconds; the longest that the detector takes
_RATE = 16_000  # Hz, of what it is given where it does not know the recording's own
_RATES = (8_000, 16_000, 32_000, 48_000)
_BLOCK = 30  # seconds that are converted at a time
_SMOOTH = 3  # frames over which the quietest place is looked for


class SilenceSegments(Segments):
    """Each stretch of speech between two pauses is a segment; one that is too long is cut at its quietest place."""

    modality = "speech"
    version = 1
    packages = ("webrtcvad-wheels", "soxr")

    @dataclass(frozen=True, kw_only=True)
    class Options:
        aggressiveness: int = 2  # 0 to 3: how much is taken for silence; 3 in noise
        shortest_silence: float = 0.5  # seconds; a shorter pause divides nothing
        shortest: float = 0.1  # seconds of speech; a shorter sound is no segment
        longest: float = 30.0  # seconds of a segment
        padding: float = 0.15  # seconds before and behind, as far as the pause is long

        def __post_init__(self) -> None:
            check(self.aggressiveness in range(4), "aggressiveness", self.aggressiveness, "0, 1, 2 or 3")
            for name, least in (("shortest_silence", 0.03), ("shortest", 0.0), ("padding", 0.0), ("longest", 0.3)):
                check(getattr(self, name) >= least, name, getattr(self, name), f"{least} seconds or more")
            check(self.longest >= 2 * self.shortest, "longest", self.longest, "at least twice `shortest`")

    def cuts(self, content: Speech, words: Sequence[str] = ()) -> Sequence[str]:
        speech_F, power_F = detect(content, self.options.aggressiveness)
        length = content.frames * SECOND // content.sample_rate
        if found := [span(*times) for times in spans(speech_F, power_F, length, self.options)]:
            return found
        raise MediaError(
            "no_speech",
            f"no speech was found in its {content.seconds:.1f} s: lower segments.aggressiveness or segments.shortest, "
            "or leave the recording out",
        )


def detect(content: Speech, aggressiveness: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each frame whether it is speech, and its power; the rest behind the last whole frame is filled with zeros."""
    import webrtcvad

    detector = webrtcvad.Vad(aggressiveness)
    rate = content.sample_rate if content.sample_rate in _RATES else _RATE
    size = rate * _FRAME // SECOND
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


def spans(
    speech_F: np.ndarray, power_F: np.ndarray, length: int, options: SilenceSegments.Options
) -> list[tuple[int, int]]:
    """First and last microsecond of each segment, in order; none overlaps another, and none ends behind `length`."""
    edges = np.flatnonzero(np.diff(speech_F, prepend=False, append=False)).reshape(-1, 2)
    runs: list[list[int]] = []
    for start, end in edges.tolist():
        if runs and (start - runs[-1][1]) * _FRAME < options.shortest_silence * SECOND:
            runs[-1][1] = end
        else:
            runs.append([start, end])
    runs = [run for run in runs if (run[1] - run[0]) * _FRAME >= options.shortest * SECOND]
    if not runs:
        return []
    quiet_F = np.convolve(power_F, np.ones(_SMOOTH), "same")
    found, padding, most = [], int(options.padding * SECOND), int(options.longest * SECOND)
    for n, (first, last) in enumerate(runs):
        before = runs[n - 1][1] * _FRAME if n else -first * _FRAME  # where it is the first, all before it is pause
        after = runs[n + 1][0] * _FRAME if n + 1 < len(runs) else 2 * length
        start = max(0, first * _FRAME - padding, (before + first * _FRAME) // 2)
        end = min(length, last * _FRAME + padding, (last * _FRAME + after) // 2)
        while end - start > most:
            cut = _quietest(quiet_F, start, min(start + most, end - int(options.shortest * SECOND)))
            found.append((start, cut))
            start = cut
        found.append((start, end))
    return found


def _quietest(quiet_F: np.ndarray, start: int, end: int) -> int:
    """The quietest place in the later half of a stretch, between two frames; the last of several."""
    first, last = -(-(start + end) // 2 // _FRAME), end // _FRAME
    if first >= last:
        return end
    return (last - int(np.argmin(quiet_F[first : last + 1][::-1]))) * _FRAME
