"""Times as tables write them: what is clear is read, and what could mean several is refused."""

from datetime import UTC, datetime, timedelta

import pytest

from assets.time_settings import TimeSettings
from assets.times import parse_time, read_times


@pytest.mark.parametrize(
    ("word", "time"),
    [
        ("2024", datetime(2024, 1, 1)),
        ("2024.0", datetime(2024, 1, 1)),
        ("1850", datetime(1850, 1, 1)),
        ("2024-05", datetime(2024, 5, 1)),
        ("20240131", datetime(2024, 1, 31)),
        (" 20240131.0 ", datetime(2024, 1, 31)),
        ("20240131235958", datetime(2024, 1, 31, 23, 59, 58)),
        ("2024-01-31 12:00:00.000", datetime(2024, 1, 31, 12)),
        ("1700000000", datetime(2023, 11, 14, 22, 13, 20)),
        ("1700000000.0", datetime(2023, 11, 14, 22, 13, 20)),
        ("1700000000000", datetime(2023, 11, 14, 22, 13, 20)),
        ("1537291010612404", datetime(2018, 9, 18, 17, 16, 50, 612404)),
        ("2024-01-31T12:00:00.123456789Z", datetime(2024, 1, 31, 12, 0, 0, 123456)),
        ("2024-01-31T12:00:00,5+02:00", datetime(2024, 1, 31, 10, 0, 0, 500000)),
        ("20240131T120000Z", datetime(2024, 1, 31, 12)),
        ("2024-01-31 12:00:00 UTC", datetime(2024, 1, 31, 12)),
        ("2024/01/31 12:00:00 -0530", datetime(2024, 1, 31, 17, 30)),
        ("2024-07-01T12:00:00[Europe/Berlin]", datetime(2024, 7, 1, 10)),
        ("Tue, 01 Jul 2003 10:52:37 +0200", datetime(2003, 7, 1, 8, 52, 37)),
        ("Wed Jan 31 12:00:00 2024", datetime(2024, 1, 31, 12)),
        ("Wed Jan 31 12:00:00 UTC 2024", datetime(2024, 1, 31, 12)),
        ("31/Jan/2024:12:00:00 +0100", datetime(2024, 1, 31, 11)),
        ("January 31, 2024", datetime(2024, 1, 31)),
        ("31 Jan 2024 9:05", datetime(2024, 1, 31, 9, 5)),
    ],
)
def test_what_is_clear(word: str, time: datetime) -> None:
    assert parse_time(word) == time.replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("word", "time"),
    [
        ("2024-01-31 12:00", datetime(2024, 1, 31, 11)),
        ("2024-07-31 12:00", datetime(2024, 7, 31, 10)),
        ("20240731", datetime(2024, 7, 30, 22)),
        ("31 Jan 2024 12:00:00", datetime(2024, 1, 31, 11)),
        ("2024-07-31T12:00+05:00", datetime(2024, 7, 31, 7)),
        ("2024-07-31 12:00 UTC", datetime(2024, 7, 31, 12)),
        ("1700000000", datetime(2023, 11, 14, 22, 13, 20)),
    ],
)
def test_times_of_a_zone(word: str, time: datetime) -> None:
    assert parse_time(word, "Europe/Berlin") == time.replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("2024-10-27 02:30:00", "twice, since the clocks were put back"),
        ("2024-03-31 02:30:00", "never, since the clocks were put forward"),
        ("2024-01-31 12:00 CET", "several zones are called CET"),
        ("Tue, 01 Jul 2003 10:52:37 IST", "several zones are called IST"),
    ],
)
def test_a_time_that_the_clocks_showed_twice_or_never_is_refused(word: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_time(word, "Europe/Berlin")


@pytest.mark.parametrize(
    ("word", "unit", "microseconds"),
    [
        *(("12.5", "s", 12_500_000), ("-3", "ms", -3000), ("0", "us", 0), ("1500", "ns", 2), ("1e3", "us", 1000)),
        *(("1:02:03.5", "s", 3_723_500_000), ("00:01:02,500", "ms", 62_500_000), ("02:03", "s", 123_000_000)),
    ],
)
def test_numbers_of_a_unit_count_from_a_beginning(word: str, unit: str, microseconds: int) -> None:
    assert parse_time(word, unit=unit) == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)


def test_an_item_has_a_beginning_and_an_end() -> None:
    def times(**columns: str) -> tuple[datetime | None, datetime | None]:
        given = {"time": "from", "unit": "s"} | {"duration" if "lasted" in columns else "until": list(columns)[-1]}
        return read_times(columns, TimeSettings(**given))

    start, end = (datetime(1970, 1, 1, 0, 0, s, tzinfo=UTC) for s in (2, 5))
    assert times(**{"from": "2", "to": "5"}) == times(**{"from": "2", "lasted": "3"}) == (start, end)
    assert times(**{"from": "2", "to": ""}) == (start, None) and times(**{"from": "", "to": "5"}) == (None, None)
    for columns, says in [
        ({"from": "5", "to": "2"}, "ends before it begins"),
        ({"from": "x", "to": "2"}, "column 'from': 'x' is no time"),
        ({"from": "2", "lasted": "x"}, "column 'lasted': 'x' is no duration"),
    ]:
        with pytest.raises(ValueError, match=says):
            times(**columns)
    for wrong in ({"until": "to"}, {"time": "a", "zone": "Mars/Base"}, {"time": "a", "until": "b", "duration": "c"}):
        with pytest.raises(ValueError, match="expected"):
            TimeSettings(**wrong)


@pytest.mark.parametrize(
    "word",
    ["202401", "45321", "45321.5", "0", "12", "3.25", "-1", "-1700000000", "2024013112", "202401311200", "99999999.5"],
)
def test_what_could_mean_several(word: str) -> None:
    with pytest.raises(ValueError, match=r"is no time that is clear: .*; write it as 2024-01-31T12:00:00"):
        parse_time(word)


@pytest.mark.parametrize("lasts", ["1700000000000", "1e30", "1e999999", "-1e999990", "99999999999:00:00"])
def test_a_duration_beyond_all_times_is_refused_at_once(lasts: str) -> None:
    settings = TimeSettings(time="at", duration="lasts")
    with pytest.raises(ValueError, match="column 'lasts'"):
        read_times({"at": "2024-01-01", "lasts": lasts}, settings)
    with pytest.raises(ValueError, match="no time"):
        parse_time(lasts, unit="s")


@pytest.mark.parametrize("word", ["20241301", "3024-1", "31.01.2024", "01/02/2024", "1" * 25])
def test_what_is_none(word: str) -> None:
    with pytest.raises(ValueError, match="is no time: expected ISO 8601"):
        parse_time(word)
