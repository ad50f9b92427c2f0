"""The contract of a combination: how the changes that silos made become one.

Shapes: S silos, P numbers: all tensors of one part of the model, one behind the other.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np


class Combination(ABC):
    """Changes (S, P), finite, of silos that all trained that part, to one change (P,).

    Of one silo it is that silo's change, of silos that agree what they agree on, and the order of silos is nothing to
    it. A kind with options takes them as `options`.
    """

    of_sums: ClassVar[bool] = False  # true: the sum over silos is all it needs, so single changes can stay hidden

    @abstractmethod
    def combine(self, changes_SP: np.ndarray, weights_S: np.ndarray) -> np.ndarray:
        """Args: `weights_S` are the rows that each silo says it has, at least one."""


def shortened(changes_SP: np.ndarray) -> np.ndarray:
    """Each no longer than the median length: what a silo multiplies its change by is nothing then."""
    lengths_S = np.linalg.norm(changes_SP, axis=1)
    shares_S = np.median(lengths_S) / np.maximum(lengths_S, np.finfo(np.float32).tiny)
    return changes_SP * np.minimum(1.0, shares_S)[:, None]
