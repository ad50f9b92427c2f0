"""Term counts of a text, of its content words (segmented, in lower case, without stop words): sparse, since a text has
few of all words. How rare a word is in the training rows, and so what its count weighs, the encoder `tfidf` learns.

Words are known by their hash (Weinberger et al. 2009): nothing is fitted here, so a text's counts never change.

Shapes: B rows, K different terms of a row.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from training.featurizers.base import FeatureShape, Featurizer
from training.validation import FORBID_EXTRA, check

if TYPE_CHECKING:
    from torch import Tensor

_NOTHING = 0  # the column of a text without content words


@dataclass(frozen=True, kw_only=True)
class TfidfOptions:
    __pydantic_config__ = FORBID_EXTRA
    columns: int = 16_384  # words share a column by chance: one in 16 of 1,000 words
    ngrams: int = 1  # terms are runs of up to so many words

    def __post_init__(self) -> None:
        check(2 <= self.columns <= 2**24, "columns", self.columns, "2 to 16777216")
        check(1 <= self.ngrams <= 5, "ngrams", self.ngrams, "1 to 5")


class TfidfFeaturizer(Featurizer):
    form = "counts"
    described = "counts of content words"
    version = 1
    read = "terms"
    tensors: Mapping[str, str] = {"terms": "int32"}
    Options = TfidfOptions

    def featurize(self, content: Any) -> dict[str, np.ndarray]:
        """terms (K, 2): columns in order, and how often each occurs."""
        counts = Counter(self._column(term) for term in self._terms(content.content_words)) or {_NOTHING: 1}
        return {"terms": np.array(sorted(counts.items()), np.int32)}

    def shape(self) -> FeatureShape:
        return FeatureShape(self.form, self.options.columns)

    def batch(self, rows: Sequence[np.ndarray | None]) -> "tuple[Tensor, Tensor]":
        """int64 (B, K, 2), columns and counts, zero where there is nothing; and a mask (B, K)."""
        import torch

        lengths_B = np.array([0 if row is None else len(row) for row in rows])
        terms_BK2 = np.zeros((len(rows), max(1, lengths_B.max()), 2), np.int64)
        for n, row in enumerate(rows):
            if row is not None:
                terms_BK2[n, : len(row)] = row
        return torch.from_numpy(terms_BK2), torch.from_numpy(np.arange(terms_BK2.shape[1]) < lengths_B[:, None])

    def augmenter(self, settings: Any, noise: Sequence[np.ndarray]) -> Any:
        from training.rewriting import TextAugmenter

        return TextAugmenter(settings, self)

    def _terms(self, words: Sequence[str]) -> Iterator[str]:
        for length in range(1, self.options.ngrams + 1):
            for start in range(len(words) - length + 1):
                yield " ".join(words[start : start + length])

    def _column(self, term: str) -> int:
        digest = hashlib.blake2b(term.encode(), digest_size=8).digest()
        return 1 + int.from_bytes(digest, "little") % (self.options.columns - 1)
