"""Times as tables write them."""

import contextlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import Decimal, InvalidOperation
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from assets.time_settings import TimeSettings

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
LEAST = 10**8  # seconds: March 1973. Smaller numbers are years, months, days of Excel, seconds of a recording, ...
_MOST = 10**20  # of any unit: more is no time, and would take long to read
_UNITS = {"s": 0, "ms": 3, "us": 6, "ns": 9}  # digits after which a second begins
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_CLOCK = r"\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?"
_ZONE = r"\s*(?P<zone>Z|[+-]\d{2}:?\d{2}|\[?[A-Za-z][\w+-]*(?:/[\w+-]+)+\]?|[A-Za-z]{1,5})?"
# 31 Jan 2024 12:00:00 +0100 (mails), 31/Jan/2024:12:00:00 +0100 (web servers), Jan 31 12:00:00 CET 2024 (date), ...
_NAMED = [
    rf"(?P<day>\d{{1,2}})[\s/-](?P<month>[a-z]{{3,9}})[\s/-](?P<year>\d{{4}})(?:[\s:T]\s*(?P<clock>{_CLOCK}))?{_ZONE}",
    rf"(?P<month>[a-z]{{3,9}})\.?\s+(?P<day>\d{{1,2}}),?\s+(?P<year>\d{{4}})(?:,?\s+(?P<clock>{_CLOCK}))?{_ZONE}",
    rf"(?P<month>[a-z]{{3,9}})\s+(?P<day>\d{{1,2}})\s+(?P<clock>{_CLOCK})(?:{_ZONE})\s+(?P<year>\d{{4}})",
]
_WEEKDAY = re.compile(r"(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*,?\s+", re.IGNORECASE)
_DATED = re.compile(rf"(?P<date>\d{{4}}[-/]\d{{2}}[-/]\d{{2}})(?:[T\s]\s*(?P<clock>{_CLOCK}))?{_ZONE}", re.IGNORECASE)
_SINCE = re.compile(r"(?:(\d+):)?([0-5]?\d):([0-5]?\d(?:[.,]\d*)?)", re.ASCII)  # 1:02:03.5, 02:03,500
_UTC = {"z", "ut", "utc", "gmt"}


def read_times(values: Mapping[str, str | None], settings: TimeSettings) -> tuple[datetime | None, datetime | None]:
    """When the item of a row began and ended; None where the row does not say.

    Raises:
        ValueError: what a column holds is no time, or the item ends before it begins; the message names the column.
    """
    begin = _read(values, settings.time, settings)
    if begin is None:
        return None, None
    end = _read(values, settings.until, settings)
    if settings.duration is not None and (lasted := values.get(settings.duration)):
        try:
            end = begin + _MICROSECOND * _lasting(lasted, settings)
        except OverflowError:
            raise ValueError(f"column {settings.duration!r}: {lasted!r} is longer than any time") from None
    if end is not None and end < begin:
        raise ValueError(f"it ends before it begins ({end.isoformat()} and {begin.isoformat()})")
    return begin, end


def _read(values: Mapping[str, str | None], column: str | None, settings: TimeSettings) -> datetime | None:
    if column is None or not (value := values.get(column)):
        return None
    try:
        return parse_time(value, settings.zone, settings.unit)
    except ValueError as error:
        raise ValueError(f"column {column!r}: {error}") from None


def _lasting(value: str, settings: TimeSettings) -> int:
    """Microseconds."""
    try:
        return _since(value.strip(), settings.unit or "s")
    except (ValueError, InvalidOperation):
        raise ValueError(
            f"column {settings.duration!r}: {value!r} is no duration: expected a number, or 1:02:03.5"
        ) from None


def parse_time(value: str, zone: str | None = None, unit: str | None = None) -> datetime:
    """The time in UTC: ISO 8601 (also a year, a month, or digits alone, 20240131), dates with the month's English name
    as mails, logs and `date` write them, or the epoch in s, ms, us or ns, told apart by size.

    Args:
        zone: of times that do not say theirs; default: UTC.
        unit: numbers are so many of these since 1970 ("s", "ms", "us", "ns"), whatever their size, and so are 1:02:03.5
            and 02:03,500.

    Raises:
        ValueError: it is none of them, or could mean several: a number, a zone's abbreviation, a time that the clocks
            of `zone` showed twice or never.
    """
    text = value.strip()
    if digits := re.fullmatch(r"(\d+)(\.0*)?", text, re.ASCII):  # 2024.0 is a year that was kept as a float
        text = digits[1]
    local = ZoneInfo(zone) if zone is not None else UTC
    try:
        if unit is not None and (text.count(":") in (1, 2) or _is_number(text)) and len(text.split()) == 1:
            try:
                return _EPOCH + _MICROSECOND * _since(text, unit)
            except InvalidOperation:
                pass  # a time of the day within a date
        return _of_digits(text, local) or _of_number(text) or _of_words(text, local)
    except _UnclearError as error:
        raise ValueError(f"{value!r} is no time that is clear: {error}; write it as 2024-01-31T12:00:00Z") from None
    except (ValueError, OverflowError):
        raise ValueError(f"{value!r} is no time: expected ISO 8601 or seconds since 1970") from None


def parse_duration(value: str) -> int:
    """Microseconds of what is written in seconds, or as hh:mm:ss.mmm (hours may lack, a comma may be the point).

    Raises:
        ValueError: it is no time from a beginning on.
    """
    with contextlib.suppress(ValueError, ArithmeticError):
        if 0 <= (found := _since(value.strip(), "s")) < LEAST * 10**6:
            return found
    raise ValueError(f"{value!r} is no time in a recording: expected seconds from its beginning, or hh:mm:ss.mmm")


class _UnclearError(ValueError):
    """The value could mean several times; the message says which."""


def _is_number(text: str) -> bool:
    try:
        return Decimal(text).is_finite()
    except InvalidOperation:
        return False


def _since(text: str, unit: str) -> int:
    """Microseconds of a number, or of hours, minutes and seconds. Raises InvalidOperation, ValueError."""
    if clock := _SINCE.fullmatch(text):
        hours, minutes, seconds = clock.groups()
        whole = int(hours or 0) * 3600 + int(minutes) * 60
        return round((whole + Decimal(seconds.replace(",", "."))) * 10**6)
    number = Decimal(text)
    if not (number.is_finite() and abs(number) < _MOST):
        raise ValueError
    return round(number * 10**6 / 10 ** _UNITS[unit])


def _of_digits(text: str, zone: tzinfo) -> datetime | None:
    """Of 2024, 20240131 and 20240131120000; None for other numbers."""
    if not (text.isascii() and text.isdigit()):
        return None
    if len(text) == 4 and text[0] in "12":
        return _in_utc(datetime(int(text), 1, 1), zone)
    if len(text) == 8:
        return _in_utc(datetime.fromisoformat(text), zone)
    if len(text) in (10, 12, 14) and text[:2] in ("19", "20"):
        try:
            time = datetime.fromisoformat(f"{text[:8]}T{text[8:]}")
        except ValueError:
            return None
        if len(text) == 14:  # as milliseconds it would be after 2570
            return _in_utc(time, zone)
        raise _UnclearError("it reads as date and hour, and as a time since 1970")
    return None


def _of_number(text: str) -> datetime | None:
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    if not number.is_finite():
        raise ValueError
    if number < LEAST:
        raise _UnclearError(
            "as seconds since 1970 it is before 1973, and may be a month, a day of Excel, a duration (of seconds from "
            "a beginning say `unit: s` on the source)"
        )
    steps = next((n for n, limit in enumerate((1e11, 1e14, 1e17, 1e20)) if number < limit), None)
    if steps is None:
        raise ValueError
    return _EPOCH + _MICROSECOND * int(number * 10**6 / 10 ** (3 * steps))


def _of_words(text: str, zone: tzinfo) -> datetime:
    month = re.fullmatch(r"\d{4}-\d{2}", text, re.ASCII)
    try:
        return _in_utc(datetime.fromisoformat(f"{text}-01" if month else text), zone)
    except _UnclearError:
        raise
    except ValueError:
        pass
    plain = _WEEKDAY.sub("", text, count=1) if _WEEKDAY.match(text) else text
    if found := _DATED.fullmatch(plain):
        date = found["date"].replace("/", "-")
    else:
        found = next(filter(None, (re.fullmatch(form, plain, re.IGNORECASE) for form in _NAMED)), None)
        if found is None or (name := found["month"].lower()[:3]) not in _MONTHS:
            raise ValueError
        date = f"{found['year']}-{_MONTHS.index(name) + 1:02d}-{int(found['day']):02d}"
    clock = (found["clock"] or "00:00").replace(",", ".")
    clock = f"0{clock}" if clock[1] == ":" else clock
    return _in_utc(datetime.fromisoformat(f"{date}T{clock}"), _zone(found["zone"], zone))


def _zone(word: str | None, local: tzinfo) -> tzinfo:
    """Of +0100, UTC or [Europe/Berlin]."""
    if word is None:
        return local
    if word.lower() in _UTC:
        return UTC
    if word[0] in "+-":
        offset = datetime.fromisoformat(f"2000-01-01T00:00{word}").tzinfo
        assert offset is not None
        return offset
    if "/" not in word:  # EST and IST are several zones each
        raise _UnclearError(f"several zones are called {word}")
    try:
        return ZoneInfo(word.strip("[]"))
    except (ZoneInfoNotFoundError, OSError):
        raise ValueError from None


def _in_utc(time: datetime, zone: tzinfo) -> datetime:
    """Raises _UnclearError where the clocks of the zone showed it twice, or never."""
    if time.tzinfo is not None:
        return time.astimezone(UTC)
    first, second = (time.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    if first != second:
        is_shown = first.astimezone(zone).replace(tzinfo=None) == time
        times = "twice, since the clocks were put back" if is_shown else "never, since the clocks were put forward"
        raise _UnclearError(f"the clocks of {zone} showed it {times}")
    return first
