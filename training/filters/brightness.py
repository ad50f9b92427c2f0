"""Brightness of a picture: the mean of its luminance."""

import numpy as np

from training.filters.base import RangeFilter
from training.images import Image


class BrightnessFilter(RangeFilter):
    """From 0 (black) to 1 (white)."""

    version = 1
    packages = ("pillow",)

    def measure(self, content: Image) -> float:
        return float(np.average(np.arange(256), weights=content.luminances)) / 255
