"""The mean of what silos learned (McMahan et al. 2017)."""

from training.aggregations.base import Aggregation


class FedavgAggregation(Aggregation):
    """The next weights are the mean of the silos'."""
