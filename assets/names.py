"""Names (keys, labels, groups and all other cells that are compared) in one form, so that none is two."""

import re
import unicodedata
from collections.abc import Mapping
from json.encoder import encode_basestring as quote

import pyarrow as pa
import pyarrow.compute as pc

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


def as_objects(columns: Mapping[str, pa.Array], rows: int) -> pa.Array:
    """`as_object` of each row: of the columns of strings that are not null there."""
    if not columns:
        return pa.repeat("{}", rows)
    cells = [
        pc.binary_join_element_wise(f", {quote(name)}: ", as_json(values), "")
        for name, values in sorted(columns.items())
    ]
    # Nulls are replaced, not skipped: pyarrow 25 skips the row where all are null.
    joined = pc.binary_join_element_wise(*cells, "", null_handling="replace", null_replacement="")
    return pc.binary_join_element_wise("{", pc.utf8_slice_codeunits(joined, 2), "}", "")


def as_json(strings: pa.Array) -> pa.Array:
    """Each string as JSON spells it; null stays null."""
    written = pc.binary_join_element_wise('"', strings, '"', "")
    is_escaped = pc.fill_null(pc.match_substring_regex(strings, r'["\\\x00-\x1f]'), False)
    if not pc.any(is_escaped).as_py():
        return written
    escaped = [quote(value) for value in strings.filter(is_escaped).to_pylist()]
    return pc.replace_with_mask(written, is_escaped, pa.array(escaped, written.type))
