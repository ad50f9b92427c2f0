"""The mean change is a gradient for Adam (Reddi et al. 2021)."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from training.aggregations.base import Aggregation, Tensors
from training.validation import check

_FIRST, _SECOND = "first.", "second."  # before the names of what is remembered


class FedadamAggregation(Aggregation):
    """m = b1 m + (1 - b1) d, v = b2 v + (1 - b2) d^2, w = w + rate m / (sqrt(v) + tau), of the mean change d. As in the
    paper without the correction of the first steps: tau is what they are small beside."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        learning_rate: float = 0.01
        beta1: float = 0.9
        beta2: float = 0.99
        tau: float = 1e-3

        def __post_init__(self) -> None:
            for name in ("learning_rate", "tau"):
                check(getattr(self, name) > 0, name, getattr(self, name), "over 0")
            for name in ("beta1", "beta2"):
                check(0 <= getattr(self, name) < 1, name, getattr(self, name), "0 up to (not including) 1")

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()
        self._first: dict[str, np.ndarray] = {}
        self._second: dict[str, np.ndarray] = {}

    def step(self, weights: Tensors, change: Tensors, learned: Collection[str]) -> dict[str, np.ndarray]:
        of, after = self.options, super().step(weights, change, learned)
        for name in weights:
            if name in learned:
                d, zero = change[name], np.zeros_like(change[name])
                self._first[name] = of.beta1 * self._first.get(name, zero) + (1 - of.beta1) * d
                self._second[name] = of.beta2 * self._second.get(name, zero) + (1 - of.beta2) * d * d
                step = of.learning_rate * self._first[name] / (np.sqrt(self._second[name]) + of.tau)
                after[name] = (weights[name] + step).astype(np.float32)
        return after

    def state(self) -> dict[str, np.ndarray]:
        moments = {_FIRST: self._first, _SECOND: self._second}
        return {prefix + name: array for prefix, of in moments.items() for name, array in of.items()}

    def restore(self, state: Tensors) -> None:
        self._first = {n.removeprefix(_FIRST): array for n, array in state.items() if n.startswith(_FIRST)}
        self._second = {n.removeprefix(_SECOND): array for n, array in state.items() if n.startswith(_SECOND)}
