"""The contract of an aggregation: how the weights of all go on from what silos learned in a round.

Arrays are float32, by the names of the model's tensors.
"""

from collections.abc import Collection, Mapping
from typing import ClassVar

import numpy as np

Tensors = Mapping[str, np.ndarray]


class Aggregation:
    """Weights, and the mean change that silos made of them, to the next weights. What it remembers from round to round
    is plain arrays, so that a coordinator that was killed goes on. A kind with options takes them as `options`."""

    proximal: ClassVar[float] = 0.0  # in each silo the loss gets so much / 2 times the squared way from the weights

    def step(self, weights: Tensors, change: Tensors, learned: Collection[str]) -> dict[str, np.ndarray]:
        """The next weights.

        Args:
            learned: names of what gradients move; the rest are statistics (of batch normalisation), whose mean is it.
        """
        return {name: weight + change[name] for name, weight in weights.items()}

    def state(self) -> dict[str, np.ndarray]:
        """What the next step needs beside the weights, by names of its own."""
        return {}

    def restore(self, state: Tensors) -> None:
        """Takes back what `state` gave."""
