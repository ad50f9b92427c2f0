"""The contract of a compression: vectors of floating-point numbers to what is stored of them, and back.

Shapes: N vectors, D numbers of each.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from training.validation import check

Fit = Mapping[str, np.ndarray]


class Compression(ABC):
    """A kind of compression. Its options are a frozen dataclass `Options`, and `self.options`. Each vector is
    compressed by itself, in float64, so that what stands beside it changes no bit of what is stored."""

    version: ClassVar[int]  # count up when the same vectors are stored otherwise
    parts: ClassVar[Mapping[str, str]]  # what is stored of a vector: name -> NumPy dtype
    is_fitted: ClassVar[bool] = False  # it is made for vectors like those it has seen (`fitted`)

    def __init__(self, options: Any = None, fit: Fit | None = None) -> None:
        """Args: `fit` is what `fitted` gave; a kind that `is_fitted` compresses nothing without it."""
        self.options = options
        self.fit = fit

    def check(self, dtype: str, width: int | None) -> None:  # noqa: B027
        """Raises ValueError: vectors of that dtype, and of so many numbers (None: not known yet), are not for it."""

    def fitted(self, vectors_ND: np.ndarray) -> Fit:
        """What it has to know, as tensors: the same of the same vectors. Raises ValueError: they are too few."""
        return {}

    @abstractmethod
    def compress(self, vectors_ND: np.ndarray) -> dict[str, np.ndarray]:
        """Each of `parts` (N, ...) of finite vectors, float64."""

    @abstractmethod
    def restore(self, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        """float32 (N, D), of what `compress` gave."""


def enough(vectors_ND: np.ndarray, least: int, option: str) -> None:
    """Raises ValueError: there are fewer vectors than `least`, the value of that option."""
    expected = f"{len(vectors_ND)} at most, which is how many vectors the first run has, or int8, which needs none"
    check(len(vectors_ND) >= least, option, least, expected)
