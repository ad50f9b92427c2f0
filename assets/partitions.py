"""Optional partitions by event time: what a source says of when its items were recorded (`manifest.time`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from training.validation import FORBID_EXTRA, check

if TYPE_CHECKING:
    import dagster as dg

_STEPS = {"day": timedelta(days=1), "hour": timedelta(hours=1)}
_EPOCH = datetime.fromtimestamp(0, UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, kw_only=True)
class PartitionSettings:
    """Clean and feature tables are made by days or hours (UTC), which Dagster shows and fills one by one or at once.

    Each item is in exactly one: what was recorded before the first, or says no time, is in the first, and what comes
    after the last is in the last.
    """

    __pydantic_config__ = FORBID_EXTRA
    by: Literal["day", "hour"]
    start: str  # of the first
    end: str | None = None  # of the last; default: the one that is under way

    def __post_init__(self) -> None:
        whole = "a day such as 2024-01-31" if self.by == "day" else "an hour such as 2024-01-31T06:00"
        for name in ("start", "end"):
            if (value := getattr(self, name)) is not None:
                time = _time(value)
                is_whole = time is not None and (time - _EPOCH) % _STEPS[self.by] == timedelta(0)
                check(is_whole, name, value, f"{whole}, in UTC")
        if self.end is not None:
            check(self._time("start") < self._time("end"), "end", self.end, f"after start ({self.start})")
        check(self._time("start") <= datetime.now(UTC), "start", self.start, "nothing that is yet to come")

    def _time(self, name: str) -> datetime:
        time = _time(getattr(self, name))
        assert time is not None
        return time

    def definition(self) -> "dg.TimeWindowPartitionsDefinition":
        """As Dagster has it."""
        import dagster as dg

        last: dict[str, Any] = {"end_offset": 1}  # with the one that is under way
        if self.end is not None:
            last = {"end_date": self._time("end")}
        if self.by == "day":
            return dg.DailyPartitionsDefinition(start_date=self._time("start"), **last)
        return dg.HourlyPartitionsDefinition(start_date=self._time("start"), **last)

    def keys(self, wanted: str | None = None) -> list[str]:
        """Keys of the partitions: all, or those of a key, or of FIRST...LAST.

        Raises:
            ValueError: there is no such partition.
        """
        known = list(self.definition().get_partition_keys())
        first, _, last = (wanted or f"{known[0]}...{known[-1]}").partition("...")
        for key in (first, last or first):
            check(key in known, "partition", key, f"one of {known[0]} to {known[-1]}, or FIRST...LAST")
        keys = known[known.index(first) : known.index(last or first) + 1]
        check(len(keys) > 0, "partition", wanted, "the first one before the last one")
        return keys

    def within(self, keys: Sequence[str]) -> str | None:
        """The SQL condition of the manifest's rows in these partitions, which follow one another; null: all are."""
        known = list(self.definition().get_partition_keys())
        first, last = known.index(keys[0]), known.index(keys[-1])
        return None if last - first + 1 == len(known) else f"{self.number(len(known))} BETWEEN {first} AND {last}"

    def number(self, count: int) -> str:
        """SQL of which of so many partitions a row of the manifest is in, from 0."""
        begin = (self._time("start") - _EPOCH) // _MICROSECOND
        since = f'(epoch_us("time") - {begin}) // {_STEPS[self.by] // _MICROSECOND}'
        return f"least(greatest(coalesce({since}, 0), 0), {count - 1})"


def _time(text: str) -> datetime | None:
    """In UTC, as times without a zone are; None where it is no time."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
