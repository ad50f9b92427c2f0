"""Repetition in a text: how much has been said before, five words in a row (Gopher, Rae et al. 2021, table A1)."""

from typing import Any

from training.filters.base import RangeFilter

_WORDS = 5  # in a row


class RepetitionFilter(RangeFilter):
    """From 0 to 1: the share of its letters in runs of five words that have stood before; Gopher keeps up to 0.15. Of a
    text of five words or fewer 0."""

    version = 1
    unit = " of its letters"

    def measure(self, content: Any) -> float:
        words = [word.lower() for word in content.words]
        seen, repeated, start = set[tuple[str, ...]](), 0, 0
        while start + _WORDS <= len(words):
            run = tuple(words[start : start + _WORDS])
            if run in seen:
                repeated += sum(map(len, run))
                start += _WORDS
            else:
                seen.add(run)
                start += 1
        return repeated / max(1, sum(map(len, words)))
