"""How a source says when its items were recorded."""

from dataclasses import dataclass, fields
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from training.validation import check


@dataclass(frozen=True, kw_only=True)
class TimeSettings:
    """Columns of the table, or fields of `path`; what stands in them says `assets.times`."""

    time: str | None = None  # column that says when an item was recorded, or began
    until: str | None = None  # column that says when it ended
    duration: str | None = None  # or the column that says how many seconds it lasted (or of `unit`)
    zone: str | None = None  # of times that do not say theirs: Europe/Berlin; default: UTC
    # numbers are so many of these since 1970, or (`align.on: {kind: time, relative: true}`) since a recording began;
    # default: since 1970, told apart by size
    unit: Literal["s", "ms", "us", "ns"] | None = None

    def __post_init__(self) -> None:
        if (others := getattr(super(), "__post_init__", None)) is not None:
            others()
        check(self.until is None or self.duration is None, "until", self.until, "nothing beside `duration`")
        for name in ("until", "duration", "zone", "unit"):
            check(self.time is not None or getattr(self, name) is None, name, getattr(self, name), "a `time` beside it")
        if self.zone is not None:
            try:
                ZoneInfo(self.zone)
            except (ZoneInfoNotFoundError, ValueError, OSError):
                check(False, "zone", self.zone, "a name of the time zone database, such as Europe/Berlin or UTC")

    @property
    def time_columns(self) -> list[str]:
        return [name for name in (self.time, self.until, self.duration) if name is not None]


TIMED = tuple(field.name for field in fields(TimeSettings))
