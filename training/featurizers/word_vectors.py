"""Word vectors: of each content word of a text (segmented, in lower case, without stop words) the vector that a file of
GloVe, fastText or word2vec has for it (`training.word_vectors`).

Shapes: B rows, K words that the file knows, D numbers of a vector.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training import word_vectors
from training.featurizers.base import FeatureShape, Featurizer
from training.validation import FORBID_EXTRA, check

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class WordVectorsOptions:
    __pydantic_config__ = FORBID_EXTRA
    file: str = ""  # has to be given
    words: int = 100_000  # the first of the file, which are the most frequent ones; the others are not known

    def __post_init__(self) -> None:
        check(self.words >= 1, "words", self.words, "at least 1")


class WordVectorsFeaturizer(Featurizer):
    form = "vectors"
    described = "word vectors of a file"
    version = 1
    read = "word_vectors"
    located = ("file",)
    # The places of the content words that the file does not know stand beside the vectors of the others.
    tensors: Mapping[str, str] = {"word_vectors": "float16", "unknown": "int32"}
    Options = WordVectorsOptions

    def __init__(self, options: WordVectorsOptions) -> None:
        super().__init__(options)
        expected = "a file of GloVe, fastText or word2vec: {kind: word_vectors, file: PATH}"
        check(bool(options.file), "file", options.file, expected)
        self._saved: Path | None = None

    def featurize(self, content: Any) -> dict[str, np.ndarray]:
        """word_vectors (K, D); one of zeros where no word is known."""
        found = self._vectors()
        vectors_KD, unknown = found.find(content.content_words)
        if not len(vectors_KD):
            vectors_KD = np.zeros((1, found.vectors_WD.shape[1]), np.float16)
        return {"word_vectors": vectors_KD, "unknown": unknown}

    def prepare(self) -> None:
        self._vectors()

    def shape(self) -> FeatureShape:
        if self._saved is not None:
            return FeatureShape(self.form, self._vectors().vectors_WD.shape[1])
        return FeatureShape(self.form, word_vectors.width(self.options.file))

    def batch(self, rows: Sequence[np.ndarray | None]) -> "tuple[Tensor, Tensor]":
        """float32 (B, K, D), zero where there is nothing, and a mask (B, K)."""
        from training.padding import padded_frames

        return padded_frames(rows)

    def augmenter(self, settings: Any, noise: Sequence[np.ndarray]) -> Any:
        from training.rewriting import TextAugmenter

        return TextAugmenter(settings, self)

    def identity(self) -> Any:
        """The content of the part of the file that is read. Raises ValueError: it is not there."""
        if self._saved is not None:
            return self._vectors().digest
        return word_vectors.digest(self.options.file, self.options.words)

    def cut(self) -> tuple[str, str]:
        return (
            "unknown_shape[1] = len(content_words)",
            "without a word that the file knows, read as one vector of zeros",
        )

    def save(self, folder: Path) -> None:
        self._vectors().save(folder)

    def restore(self, folder: Path) -> None:
        self._saved = folder

    def _vectors(self) -> word_vectors.WordVectors:
        """Read once in a process: thread or worker."""
        if self._saved is not None:
            return word_vectors.restore(self._saved)
        return word_vectors.load(self.options.file, self.options.words)
