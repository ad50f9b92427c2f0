"""The mean by rows: silos are taken at their word."""

import numpy as np

from training.combinations.base import Combination


class MeanCombination(Combination):
    """Each silo counts as many times as it has rows."""

    of_sums = True

    def combine(self, changes_SP: np.ndarray, weights_S: np.ndarray) -> np.ndarray:
        return np.average(changes_SP, axis=0, weights=weights_S)
