"""Names (keys, labels, groups and all other cells that are compared) in one form, so that none is two."""

import re
import unicodedata
from collections.abc import Mapping
from json.encoder import encode_basestring as quote

# Space, and what nobody sees: control characters, soft hyphens, zero-width and direction marks, byte order marks. At
# the ends only: within a word the joiners of Persian or Hindi, and of emoji, tell words apart.
_UNSEEN = r"[\s\x00-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]+"
_ENDS = re.compile(rf"\A{_UNSEEN}|{_UNSEEN}\Z")


def normalize(name: str) -> str:
    """The name in Unicode's composed form (NFC), without space or invisible characters around it; may be empty.

    Nothing that could be meant is changed: case, width, inner spaces, leading zeros and suffixes stay.
    """
    if name.isascii() and name.isprintable():
        return name.strip()
    return _ENDS.sub("", unicodedata.normalize("NFC", name))


def as_object(values: Mapping[str, str]) -> str:
    """Strings by name as a JSON object, in the one form in which tables keep them: sorted by name."""
    return "{" + ", ".join([f"{quote(name)}: {quote(value)}" for name, value in sorted(values.items())]) + "}"
