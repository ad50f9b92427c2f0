"""Times as tables write them."""

import re
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = datetime(1970, 1, 1, 0, 0, 0, 1) - datetime(1970, 1, 1)
_CLOCK = re.compile(r"(?:(\d+):)?([0-5]?\d):([0-5]?\d(?:[.,]\d*)?)", re.ASCII)
_LEAST = 10**8  # seconds: March 1973. Smaller numbers are years, months, days of Excel, seconds of a recording, ...


def parse_time(value: str) -> datetime:
    """The time in UTC: ISO 8601 (without offset: UTC; also a year, a month, or digits alone, 20240131), or the epoch in
    s, ms, us or ns, told apart by size.

    Raises:
        ValueError: it is none of them, or a number that could mean several.
    """
    text = value.strip()
    if digits := re.fullmatch(r"(\d+)(\.0*)?", text, re.ASCII):  # 2024.0 is a year that was kept as a float
        text = digits[1]
    try:
        return _of_digits(text) or _of_number(text) or _of_words(text)
    except _UnclearError as error:
        raise ValueError(f"{value!r} is no time that is clear: {error}; write it as 2024-01-31T12:00:00") from None
    except (ValueError, OverflowError):
        raise ValueError(f"{value!r} is no time: expected ISO 8601 or seconds since 1970") from None


def parse_duration(value: str) -> int:
    """Microseconds of what is written in seconds, or as hh:mm:ss.mmm (hours may lack, a comma may be the point).

    Raises:
        ValueError: it is no time from a beginning on.
    """
    text = value.strip()
    try:
        if clock := _CLOCK.fullmatch(text):
            hours, minutes, seconds = clock.groups()
            number = int(hours or 0) * 3600 + int(minutes) * 60 + Decimal(seconds.replace(",", "."))
        else:
            number = Decimal(text)
        if 0 <= number < _LEAST:
            return round(number * 10**6)
    except InvalidOperation:
        pass
    raise ValueError(f"{value!r} is no time in a recording: expected seconds from its beginning, or hh:mm:ss.mmm")


class _UnclearError(ValueError):
    """The value could mean several times; the message says which."""


def _of_digits(text: str) -> datetime | None:
    """Of 2024, 20240131 and 20240131120000; None for other numbers."""
    if not (text.isascii() and text.isdigit()):
        return None
    if len(text) == 4 and text[0] in "12":
        return datetime(int(text), 1, 1, tzinfo=UTC)
    if len(text) == 8:
        return datetime.fromisoformat(text).replace(tzinfo=UTC)
    if len(text) in (10, 12, 14) and text[:2] in ("19", "20"):
        try:
            time = datetime.fromisoformat(f"{text[:8]}T{text[8:]}").replace(tzinfo=UTC)
        except ValueError:
            return None
        if len(text) == 14:  # as milliseconds it would be after 2570
            return time
        raise _UnclearError("it reads as date and hour, and as a time since 1970")
    return None


def _of_number(text: str) -> datetime | None:
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    if not number.is_finite():
        raise ValueError
    if number < _LEAST:
        raise _UnclearError("as seconds since 1970 it is before 1973, and may be a month, a day of Excel, a duration")
    steps = next((n for n, limit in enumerate((1e11, 1e14, 1e17, 1e20)) if number < limit), None)
    if steps is None:
        raise ValueError
    return _EPOCH + _MICROSECOND * int(number * 10**6 / 10 ** (3 * steps))


def _of_words(text: str) -> datetime:
    month = re.fullmatch(r"\d{4}-\d{2}", text, re.ASCII)
    time = datetime.fromisoformat(f"{text}-01" if month else text)
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
