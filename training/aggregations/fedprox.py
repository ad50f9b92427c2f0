"""The mean, of silos that are held near the weights they began with (Li et al. 2020)."""

from dataclasses import dataclass

from training.aggregations.base import Aggregation
from training.validation import check


class FedproxAggregation(Aggregation):
    """As fedavg; in each silo mu / 2 ||w - w_0||^2 is part of what is minimised, so that silos whose rows differ do not
    run apart."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        mu: float = 0.01

        def __post_init__(self) -> None:
            check(self.mu > 0, "mu", self.mu, "over 0 (with 0 it is fedavg)")

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    @property
    def proximal(self) -> float:  # type: ignore[override]
        return self.options.mu
