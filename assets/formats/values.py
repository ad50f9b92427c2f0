"""Typed values, of JSON, Parquet and spreadsheets, as the text that other tables would have in their place."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

EXACT = 2**53  # from here on a float does not tell whole numbers apart


def as_text(value: Any) -> str | None:
    """Null, NaN and infinity are no value; a whole float is a whole number (pandas makes floats of numbers among which
    one is missing), so that key 3.0 of one table meets key 3 of another; lists and objects are JSON."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return str(int(value)) if value == int(value) and abs(value) < EXACT else repr(value)
    if isinstance(value, bool | int | list | tuple | dict):
        return json.dumps(_plain(value), ensure_ascii=False, default=str)
    return str(value)


def _plain(value: Any) -> Any:
    """With null for what JSON has no word for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def is_vector(value: Any) -> bool:
    """Whether a list is numbers that nobody reads as words: it starts with a decimal or a list."""
    return isinstance(value, list) and bool(value) and (value[0] is None or isinstance(value[0], float | list))


def no_text(value: Any) -> str | None:
    """What a cell of a column of text holds in its place, in words; None where it is text or empty."""
    if value is None or isinstance(value, str):
        return None
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, Sequence | set):
        return f"a list of {len(value)} values"
    return f"the number {value}" if isinstance(value, int | float) else f"a {type(value).__name__}"


def refused(line: str, column: str, found: str) -> str:
    """Why a row is no item of text."""
    vectors = "; lists of numbers are read with features of kind vector" if found.startswith("a list") else ""
    advice = f"name a column of text, or write them as text{vectors}"
    return f"{line}: column {column!r} holds {found}, which is no text: {advice}"
