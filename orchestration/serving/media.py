"""How much there is to decode in a request, by the headers of its media and before any of them is decoded.

The model bounds each row (max_pixels, max_seconds); a request of many rows may still keep it busy for minutes.
What `training` has for base64 and headers is not used: the service imports nothing of ours (`app`), and the model
brings a `training` of its own.
"""

import base64
import contextlib
import io
import json
import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from orchestration.serving.rows import Record, Refused

_URL_SAFE = str.maketrans("-_", "+/")


def check_media(rows: Sequence[Record], pixels: int, seconds: float) -> None:
    """Raises Refused (413) where the pictures of all rows have more than `pixels`, or the recordings last longer than
    `seconds`."""
    seen, heard = 0, 0.0
    held = (one for row in rows for value in row.values() for one in strings(value))
    for data in filter(None, map(content, held)):
        size = _pixels(data)
        seen, heard = seen + size, heard + (0 if size else _seconds(data))
        if seen > pixels:
            raise _too_large(f"pictures have more than {pixels:,} pixels")
        if heard > seconds:
            raise _too_large(f"recordings last longer than {seconds:,g} seconds")


def _too_large(what: str) -> Refused:
    words = f"the request's {what} together, which is the limit of one request: send fewer rows in each"
    return Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, words)


def strings(value: Any, is_plain: bool = False) -> list[str]:
    """Those that a value of a row gives: itself, or those of a list of several or an object of views, which may be JSON
    within a string.

    Args:
        is_plain: a string is what it is, whatever it looks like.
    """
    given = value
    if isinstance(value, str) and value[:1] in ("[", "{") and not is_plain:
        with contextlib.suppress(ValueError, RecursionError):
            given = json.loads(value)
    given = list(given.values()) if isinstance(given, dict) else given
    if not (isinstance(given, list) and all(isinstance(one, str | None) for one in given)):
        given = [value]  # such as the numbers of a vector
    return [one for one in given if isinstance(one, str) and one]


def content(value: str) -> bytes | None:
    """What base64, or a data: URL with it, stands for; None for other text."""
    if value[:5].lower() == "data:":
        value = value.partition(",")[2]
    value = re.sub(r"\s", "", value).rstrip("=").translate(_URL_SAFE)
    try:
        return base64.b64decode(value + "=" * (-len(value) % 4), validate=True)
    except ValueError:
        return None


# What a parser cannot read counts nothing: the model refuses it in words when it comes to that row.


def _pixels(data: bytes) -> int:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as picture:
            return picture.width * picture.height
    except Exception:  # nearly anything
        return 0


def _seconds(data: bytes) -> float:
    import soundfile

    try:
        return float(soundfile.info(io.BytesIO(data)).duration)
    except Exception:  # nearly anything
        return 0.0
