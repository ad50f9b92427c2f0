"""Recordings cut where nobody speaks (`training.voice_activity`).

Shapes: F frames of the detector, 30 ms each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from assets.segments.base import Segments
from training.media import MediaError
from training.recordings import Speech
from training.spans import SECOND, span
from training.validation import check
from training.voice_activity import FRAME, PACKAGES, detect

_SMOOTH = 3  # frames over which the quietest place is looked for


class SilenceSegments(Segments):
    """Each stretch of speech between two pauses is a segment; one that is too long is cut at its quietest place."""

    modality = "speech"
    version = 1
    packages = PACKAGES

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


def spans(
    speech_F: np.ndarray, power_F: np.ndarray, length: int, options: SilenceSegments.Options
) -> list[tuple[int, int]]:
    """First and last microsecond of each segment, in order; none overlaps another, and none ends behind `length`."""
    edges = np.flatnonzero(np.diff(speech_F, prepend=False, append=False)).reshape(-1, 2)
    runs: list[list[int]] = []
    for start, end in edges.tolist():
        if runs and (start - runs[-1][1]) * FRAME < options.shortest_silence * SECOND:
            runs[-1][1] = end
        else:
            runs.append([start, end])
    runs = [run for run in runs if (run[1] - run[0]) * FRAME >= options.shortest * SECOND]
    if not runs:
        return []
    quiet_F = np.convolve(power_F, np.ones(_SMOOTH), "same")
    found, padding, most = [], int(options.padding * SECOND), int(options.longest * SECOND)
    for n, (first, last) in enumerate(runs):
        before = runs[n - 1][1] * FRAME if n else -first * FRAME  # where it is the first, all before it is pause
        after = runs[n + 1][0] * FRAME if n + 1 < len(runs) else 2 * length
        start = max(0, first * FRAME - padding, (before + first * FRAME) // 2)
        end = min(length, last * FRAME + padding, (last * FRAME + after) // 2)
        while end - start > most:
            cut = _quietest(quiet_F, start, min(start + most, end - int(options.shortest * SECOND)))
            found.append((start, cut))
            start = cut
        found.append((start, end))
    return found


def _quietest(quiet_F: np.ndarray, start: int, end: int) -> int:
    """The quietest place in the later half of a stretch, between two frames; the last of several."""
    first, last = -(-(start + end) // 2 // FRAME), end // FRAME
    if first >= last:
        return end
    return (last - int(np.argmin(quiet_F[first : last + 1][::-1]))) * FRAME
