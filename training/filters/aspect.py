"""Width of a picture, divided by its height, as it is stored upright."""

from training.filters.base import RangeFilter


class AspectFilter(RangeFilter):
    """Of a square 1, of a banner more, of a tower less."""

    value = "width / height"
