"""Damage in a text: how many of its characters are none, or were decoded wrongly."""

from typing import Any

import regex

from training.filters.base import RangeFilter

# Replacement characters, and code points that mean nothing: unassigned, private, half of a pair.
_NO_TEXT = regex.compile(r"[\uFFFD\p{Cn}\p{Co}\p{Cs}]")


class EncodingFilter(RangeFilter):
    """From 0 to 1: the share of characters that are replacements (U+FFFD), controls, or without a meaning, or in
    sequences that ftfy takes for wrongly decoded and cleaning could not repair. Of text 0; of bytes that are no text
    more than 0.1."""

    version = 1
    packages = ("ftfy", "regex")
    unit = " of its characters"

    def measure(self, content: Any) -> float:
        return min(1.0, (content.controls + _damaged(content.text)) / content.characters)


def _damaged(text: str) -> int:
    if text.isascii():
        return 0
    from ftfy.badness import BADNESS_RE

    odd = {place for match in BADNESS_RE.finditer(text) for place in range(*match.span())}
    return len(odd | {match.start() for match in _NO_TEXT.finditer(text)})
