"""Silence in a recording: the share of it that lies below -60 dB of full scale, as FFmpeg's `silencedetect` has it."""

from training.filters.base import RangeFilter
from training.levels import stretch_powers
from training.recordings import Speech

_SILENT = 1e-6  # -60 dB, as a power


class SilenceFilter(RangeFilter):
    """From 0 to 1, in stretches of 30 ms: muted microphones, dead air. A pause in which a room is heard is none; where
    somebody speaks is what `speech_share` says."""

    version = 1
    packages = ("numpy",)
    unit = " of its time"

    def measure(self, content: Speech) -> float:
        return float((stretch_powers(content.waveform, content.sample_rate) < _SILENT).mean())
