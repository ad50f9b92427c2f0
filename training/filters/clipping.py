"""Clipping of a recording: the share of its samples that lie in a peak cut off at full scale."""

from training.filters.base import RangeFilter
from training.recordings import Speech


class ClippingFilter(RangeFilter):
    """From 0 to 1; of what sounds distorted some thousandths. A peak is cut off where three samples or more have one
    value at full scale, in any channel before they are mixed. What was clipped and then made quieter, or coded with
    loss (MP3, OGG), has no such peaks."""

    version = 1
    packages = ("numpy",)
    unit = " of its samples"

    def measure(self, content: Speech) -> float:
        return float(content.cut_off.mean())
