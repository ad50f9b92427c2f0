"""The short side of a picture in pixels, as it is stored upright."""

from training.filters.base import RangeFilter


class SizeFilter(RangeFilter):
    value = "least(width, height)"
    unit = " pixels"
