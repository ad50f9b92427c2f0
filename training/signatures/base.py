"""The contract of a signature: what tells whether two contents are the same but for how they were kept or changed.

The step that decodes signs each content once and stores the value; which contents are near duplicates is decided from
the stored values alone, when samples are made: candidates are those that share a key, and of these the similarity is
worked out. So a threshold that moves decodes nothing, and never are all pairs looked at.

Shapes: N contents, P pairs, V variants of a content, B bands.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from training.validation import FORBID_EXTRA, check


@dataclass(frozen=True, kw_only=True)
class SignatureOptions:
    """Of each kind; a kind gives `least` a default of its own."""

    __pydantic_config__ = FORBID_EXTRA
    least: float = 0.9  # similarity from which on two contents are near duplicates
    keep: str = "all"  # or one: of near duplicates only the first listed becomes samples

    def __post_init__(self) -> None:
        check(0 < self.least <= 1, "least", self.least, "a similarity above 0 and at most 1")
        check(self.keep in ("all", "one"), "keep", self.keep, "all, or one")


class Signature(ABC):
    """A kind of signature of one modality. Its options are a subclass of `SignatureOptions`, and `self.options`; what
    is signed does not depend on them."""

    version: ClassVar[int]  # count up when `sign` gives other values
    packages: ClassVar[tuple[str, ...]] = ("numpy",)  # whose versions decide them
    Options: ClassVar[type[SignatureOptions]] = SignatureOptions

    def __init__(self, options: Any = None) -> None:
        self.options: SignatureOptions = options or self.Options()

    @abstractmethod
    def sign(self, content: Any) -> bytes | None:
        """The signature of a content, decoded and cleaned: some hundred bytes. None: it has too little that would tell
        it from others, and is near to none."""

    @abstractmethod
    def keys(self, values: Sequence[bytes]) -> np.ndarray:
        """uint64 (N, V, B). Two contents are a candidate where in some band a variant of one has the key that the other
        has as it is (variant 0); variants are the changes that keys do not bear."""

    @abstractmethod
    def similarity(self, values: Sequence[bytes], pairs_3P: np.ndarray) -> np.ndarray:
        """float (P,), 1 where they are the same. Args: `pairs_3P` has the numbers of two of the values each, and the
        variant that the second one is most likely to be like the first in."""
