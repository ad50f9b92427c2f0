"""Times as tables write them: what is clear is read, and what could mean several is refused."""

from datetime import UTC, datetime

import pytest

from assets.times import parse_time


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
    ],
)
def test_what_is_clear(word: str, time: datetime) -> None:
    assert parse_time(word) == time.replace(tzinfo=UTC)


@pytest.mark.parametrize(
    "word",
    ["202401", "45321", "45321.5", "0", "12", "3.25", "-1", "-1700000000", "2024013112", "202401311200", "99999999.5"],
)
def test_what_could_mean_several(word: str) -> None:
    with pytest.raises(ValueError, match=r"is no time that is clear: .*; write it as 2024-01-31T12:00:00"):
        parse_time(word)


@pytest.mark.parametrize("word", ["20241301", "3024-1", "31.01.2024", "01/02/2024", "1" * 25])
def test_what_is_none(word: str) -> None:
    with pytest.raises(ValueError, match="is no time: expected ISO 8601"):
        parse_time(word)
