"""Length of a text in characters, after cleaning."""

from training.filters.base import RangeFilter


class LengthFilter(RangeFilter):
    value = "length(text)"
    unit = " characters"
