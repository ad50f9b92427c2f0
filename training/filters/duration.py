"""Duration of a recording in seconds."""

from training.filters.base import RangeFilter


class DurationFilter(RangeFilter):
    value = "seconds"
    unit = " s"
