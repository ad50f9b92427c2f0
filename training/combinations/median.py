"""The median of each number (Yin et al. 2018)."""

import numpy as np

from training.combinations.base import Combination, shortened


class MedianCombination(Combination):
    """Of three silos or more one may say anything, of five two. Rows count nothing: a silo could say any number. Of two
    the median is the mean, so changes are shortened before."""

    def combine(self, changes_SP: np.ndarray, weights_S: np.ndarray) -> np.ndarray:
        return np.median(shortened(changes_SP), axis=0)
