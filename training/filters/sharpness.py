"""Sharpness of a picture: the variance of its Laplacian, which blur takes away (Pech-Pacheco et al. 2000)."""

import numpy as np

from training.filters.base import RangeFilter
from training.images import Image


class SharpnessFilter(RangeFilter):
    """Of a sharp photo hundreds, of a blurred one some ten."""

    version = 1
    packages = ("numpy",)

    def measure(self, content: Image) -> float:
        """Of the green channel, whose values are 0 to 255; 0 where the picture has no inside."""
        green_HW = content.array[..., 1].astype(np.int32)
        if min(green_HW.shape) < 3:
            return 0.0
        neighbours = green_HW[:-2, 1:-1] + green_HW[2:, 1:-1] + green_HW[1:-1, :-2] + green_HW[1:-1, 2:]
        return float(np.var(neighbours - 4 * green_HW[1:-1, 1:-1]))
