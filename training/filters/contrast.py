"""Contrast of a picture: the standard deviation of its luminance (RMS contrast, Peli 1990)."""

import numpy as np

from training.filters.base import RangeFilter
from training.images import Image


class ContrastFilter(RangeFilter):
    """From 0 (one grey) to 0.5 (half black, half white); of a photo mostly 0.15 to 0.3, of one in fog 0.05."""

    version = 1
    packages = ("pillow",)

    def measure(self, content: Image) -> float:
        values, counts = np.arange(256), content.luminances
        mean = np.average(values, weights=counts)
        return float(np.sqrt(np.average(np.square(values - mean), weights=counts))) / 255
