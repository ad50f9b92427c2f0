"""Speech in a recording: the share of it in which the detector of WebRTC hears somebody speak."""

from training.filters.base import RangeFilter
from training.recordings import Speech
from training.voice_activity import PACKAGES, detect

_AGGRESSIVENESS = 3  # of 0 to 3: what is in doubt is no speech


class SpeechShareFilter(RangeFilter):
    """From 0 to 1, in frames of 30 ms; the pauses between words count, so that of a lively talk some 0.8 is speech."""

    version = 1
    packages = PACKAGES
    unit = " of its time"

    def measure(self, content: Speech) -> float:
        speech_F, _ = detect(content, _AGGRESSIVENESS)
        return float(speech_F.mean())
