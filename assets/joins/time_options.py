"""What a project file says of a join in time (`align.on: {kind: time, ...}`)."""

import math
import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from assets.times import parse_time
from training.validation import FORBID_EXTRA, Strings, check

Match = Literal["nearest", "backward", "forward", "overlap", "within"]
_MOST_WINDOWS = 1000  # that a moment is in
_UNITS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}


class _Span:
    """Marks seconds, which a project file may also say in another unit: 50ms, 2 min."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import PydanticCustomError, core_schema

        def seconds(value: Any) -> Any:
            if not isinstance(value, str):
                if isinstance(value, float) and not math.isfinite(value):
                    raise PydanticCustomError("span", "expected a number of seconds; leave it out for any")
                return value
            found = re.fullmatch(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*([a-zµ]*)", value.strip(), re.IGNORECASE)
            if found is None or (unit := found[2].lower() or "s") not in _UNITS:
                raise PydanticCustomError("span", "expected seconds, or a number and a unit such as 50ms or 2 min")
            return float(found[1]) * _UNITS[unit]

        return core_schema.no_info_before_validator_function(seconds, handler(source))


Seconds = Annotated[float, _Span()]


def microseconds(seconds: float) -> int:
    return round(seconds * 1e6)


def instant(words: str) -> int:
    """Microseconds since 1970 of a time that the project file says. Raises ValueError."""
    time = parse_time(words, unit="s" if re.fullmatch(r"[+-]?\d+(\.\d+)?", words) and float(words) < 1e8 else None)
    return round(time.timestamp() * 1e6)


@dataclass(frozen=True, kw_only=True)
class WindowSettings:
    """Windows [origin + n * stride, ... + length), n any whole number; those in which nothing falls are no samples. Or,
    beside a base, one around each of its items: [its begin + from, its begin + to)."""

    __pydantic_config__ = FORBID_EXTRA | {"populate_by_name": True}
    length: Seconds = 0.0
    stride: Seconds | None = None  # default: the length; less: they overlap, and an item is in several
    origin: str | None = None  # a time; default: 1970, so that windows begin at whole lengths of UTC
    start: Annotated[Seconds | None, Field(alias="from")] = None  # `from` in a project file: -5 s is 5 seconds before
    end: Annotated[Seconds | None, Field(alias="to")] = None

    def __post_init__(self) -> None:
        if self.is_around:
            for name in ("length", "stride", "origin"):
                check(not getattr(self, name), name, getattr(self, name), "nothing beside `from` and `to`")
            start, end = self.around
            check(start < end, "to", self.end, f"more than `from` ({self.start})")
            return
        for name, value in (("length", self.length), ("stride", self.every)):
            check(microseconds(value) > 0, name, value, "more than 0 seconds")
        check(self.length <= _MOST_WINDOWS * self.every, "stride", self.every, f"at least length / {_MOST_WINDOWS}")
        if self.origin is not None:
            instant(self.origin)

    @property
    def is_around(self) -> bool:
        """Whether they are of the items of a base."""
        return self.start is not None or self.end is not None

    @property
    def around(self) -> tuple[int, int]:
        """Microseconds from where an item of the base begins."""
        return microseconds(self.start or 0.0), microseconds(self.end or 0.0)

    @property
    def every(self) -> float:
        return self.length if self.stride is None else self.stride


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """What one source does otherwise than the rest."""

    __pydantic_config__ = FORBID_EXTRA
    match: Match | None = None
    tolerance: Seconds | None = None
    key: Strings | None = None

    def __post_init__(self) -> None:
        check((self.tolerance or 0) >= 0, "tolerance", self.tolerance, "0 seconds or more")


@dataclass(frozen=True, kw_only=True)
class KeyClock:
    """As `ClockSettings`, given, of the items of one key."""

    __pydantic_config__ = FORBID_EXTRA
    offset: Seconds = 0.0
    drift: float = 0.0
    origin: str | None = None

    def __post_init__(self) -> None:
        check(not self.drift or self.origin is not None, "origin", self.origin, "a time, where there is a drift")
        if self.origin is not None:
            instant(self.origin)


@dataclass(frozen=True, kw_only=True)
class ClockSettings:
    """How the clock of a source differs from that of another one: given, or estimated from events that both saw.

    Given, each time t of the source becomes t + offset + drift * (t - origin): what is written here is added. Where
    each key (device, patient) has a clock of its own, `keys` gives them, or `each` has them estimated.
    """

    __pydantic_config__ = FORBID_EXTRA
    offset: Seconds | None = None
    drift: float | None = None  # seconds a second: 20e-6 is 20 parts in a million. Beside `estimate`: it is known
    origin: str | None = None  # the time at which the offset is as given; with a drift
    estimate: bool = False
    to: str | None = None  # the source whose clock counts; default: `base`
    events: str | None = None  # column of both sources: of equal events it holds the same; default: each item is one
    within: Seconds = 60.0  # the offset is looked for from minus to plus so much
    max_drift: float = 200e-6
    accuracy: Seconds = 0.01  # an estimate whose 95 % interval is wider, anywhere among the events, is refused
    each: bool = False  # estimated for each key (`align.on.key`) by its own events; keys that do not say it are refused
    keys: dict[str, KeyClock] = field(default_factory=dict)  # key -> its clock, in the place of the one given here

    def __post_init__(self) -> None:
        check(self.estimate or not self.each, "each", self.each, "nothing without `estimate: true`")
        if self.estimate:
            check(not self.keys, "keys", list(self.keys), "nothing beside `estimate: true`")
            for name in ("offset", "origin"):
                check(getattr(self, name) is None, name, getattr(self, name), "nothing beside `estimate: true`")
            for name in ("within", "accuracy"):
                check(getattr(self, name) > 0, name, getattr(self, name), "more than 0 seconds")
            check(0 <= self.max_drift <= 0.01, "max_drift", self.max_drift, "from 0 to 0.01 seconds a second")
        else:
            given = self.offset is not None or self.drift is not None or bool(self.keys)
            check(given, "offset", self.offset, "seconds; or `estimate: true`")
            check(self.events is None and self.to is None, "events", self.events, "nothing without `estimate: true`")
            check(not self.drift or self.origin is not None, "origin", self.origin, "a time, where there is a drift")
        if self.origin is not None:
            instant(self.origin)


@dataclass(frozen=True, kw_only=True)
class TimeOptions:
    """Each item of the stream `base` (a source) becomes a sample, or each of the `windows`; of every other stream it
    gets what matches (where there are windows around the items of the base, by these for overlap and within):

    nearest: the item that begins nearest, of two that are as near the earlier one; backward, forward: the nearest one
    that does not begin after it, or before it. Of items that begin at once the first in its source counts, and the
    others are `same_time`. overlap: all items that last at some time when it does; within: all items that begin while
    it lasts; a sample takes the first of them, or as many as `align.several` says. An item without an end lasts a
    microsecond.
    """

    __pydantic_config__ = FORBID_EXTRA
    base: str | None = None
    windows: WindowSettings | None = None
    key: Strings = ()  # columns (of each source) that have to be equal, too: device, patient, drive, recording
    match: Match | None = None  # default: nearest; where there are windows: within
    tolerance: Seconds | None = None  # how far from each other items may be; default: as far as they are
    streams: dict[str, StreamSettings] = field(default_factory=dict)  # source -> what it does otherwise
    clocks: dict[str, ClockSettings] = field(default_factory=dict)  # source -> how its clock differs
    # true: times are seconds since a recording began, the one that `key` names; where an item has none, it began then
    relative: bool = False
    once: bool = False  # true: an item is in one sample only, the one that it is nearest to
    # The samples of a key stand on one side of a split; with `block`, or without `key`, those of each stretch of so
    # many seconds do. What has items in stretches on two sides is left out.
    block: Seconds | None = None

    def __post_init__(self) -> None:
        check((self.tolerance or 0) >= 0, "tolerance", self.tolerance, "0 seconds or more")
        check(self.block is None or microseconds(self.block) > 0, "block", self.block, "more than 0 seconds")
        check(not self.relative or bool(self.key), "relative", True, "`key` beside it: the column of the recording")
        if self.windows is not None:
            fits = self.windows.is_around == (self.base is not None)
            expected = "windows {from: ..., to: ...} beside a `base`" if self.base else "length, without a `base`"
            check(fits, "windows", self.windows, expected)
        for tolerance in (self.tolerance, *(stream.tolerance for stream in self.streams.values())):
            alone = "nothing beside `windows`: make them longer"
            check(self.fixed is None or not tolerance, "tolerance", tolerance, alone)
        for name, clock in self.clocks.items():
            keyed = not (clock.each or clock.keys) or bool(self.key)
            check(keyed, f"clocks.{name}", "of each key", "`key` beside it: the column of what has a clock of its own")
        matches = [self.match, *(stream.match for stream in self.streams.values())]
        for match in filter(None, matches):
            ok = self.fixed is None or match in ("overlap", "within")
            check(ok, "match", match, "overlap or within, where there are windows")

    @property
    def fixed(self) -> WindowSettings | None:
        """The windows that are samples themselves."""
        return self.windows if self.base is None else None

    @property
    def around(self) -> tuple[int, int] | None:
        """The window around each item of the base, in microseconds; null: it lasts as long as the item."""
        return self.windows.around if self.windows is not None and self.base is not None else None

    @property
    def split_block(self) -> int | None:
        """Microseconds; null: the key alone decides."""
        if self.block is None and self.key:
            return None
        return microseconds(60.0 if self.block is None else self.block)

    def match_of(self, source: str) -> str:
        own = self.streams[source].match if source in self.streams else None
        return own or self.match or ("nearest" if self.windows is None else "within")

    def tolerance_of(self, source: str) -> int | None:
        """Microseconds."""
        own = self.streams[source].tolerance if source in self.streams else None
        seconds = self.tolerance if own is None else own
        return None if seconds is None else microseconds(seconds)

    def key_of(self, source: str) -> tuple[str, ...]:
        own = self.streams[source].key if source in self.streams else None
        return own or self.key
