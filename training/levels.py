"""How loud a recording is, moment by moment and channel by channel.

Shapes: F frames (samples per channel), C channels, N stretches of 30 ms.
"""

import math

import numpy as np

STRETCH = 0.03  # seconds
FULL_SCALE = 0.99  # of the largest value: 8 bits reach 127 / 128
_SILENT = 1e-6  # of the power of the strongest channel: 60 dB below
_CANCELLED = 0.5  # of the power that the mean of channels has which have nothing to do with each other
_FURTHEST = 120.0  # dB that a channel lies below another, at most: one of zeros, too


def stretch_powers(waveform_F: np.ndarray, rate: int) -> np.ndarray:
    """Mean square of each stretch (N,) of a waveform, the last one as it fits; of a shorter one that of the whole."""
    size = min(max(1, round(STRETCH * rate)), len(waveform_F))
    count = len(waveform_F) // size
    stretches_NF = waveform_F[: count * size].reshape(count, size)
    return np.einsum("nf,nf->n", stretches_NF, stretches_NF, dtype=np.float64) / size


def clipped(block_FC: np.ndarray) -> np.ndarray:
    """Where (F,) one of the channels stays on the same value at full scale, for three samples or more: a peak that is
    cut off. A wave that just reaches full scale turns there."""
    found_F = np.zeros(len(block_FC), bool)
    if len(block_FC) < 3 or max(block_FC.max(), -block_FC.min()) < FULL_SCALE:
        return found_F
    same_FC = (block_FC[1:] == block_FC[:-1]) & (np.abs(block_FC[1:]) >= FULL_SCALE)
    begins_F = (same_FC[1:] & same_FC[:-1]).any(axis=1)
    for offset in range(3):
        found_F[offset : len(found_F) - 2 + offset] |= begins_F
    return found_F


class Channels:
    """What is known of the channels of a recording before they are mixed; it is told block by block."""

    def __init__(self, count: int) -> None:
        self.frames = 0
        self._sums, self._squares = np.zeros(count + 1), np.zeros(count + 1)  # the last is that of their mean
        self._clipped: list[np.ndarray] = []  # frames
        self._last = np.empty((0, count), np.float32)  # samples of the block before, where a run may begin

    def add(self, block_FC: np.ndarray, mean_F: np.ndarray) -> None:
        both = np.column_stack([block_FC, mean_F]).astype(np.float64)
        self._sums += both.sum(axis=0)
        self._squares += np.square(both).sum(axis=0)
        joined_FC = np.concatenate([self._last, block_FC])
        self._clipped.append(self.frames - len(self._last) + np.flatnonzero(clipped(joined_FC)))
        self.frames += len(block_FC)
        self._last = joined_FC[-2:].copy()

    @property
    def clipped(self) -> np.ndarray:
        """Where (F,) one of them is clipped."""
        found_F = np.zeros(self.frames, bool)
        found_F[np.concatenate(self._clipped)] = True
        return found_F

    @property
    def balance(self) -> float:
        """dB that the power of the weakest channel lies below that of the strongest; 0 where all are silent."""
        power_C = self._power[:-1]
        if not power_C.max():
            return 0.0
        share = power_C.min() / power_C.max()
        return min(_FURTHEST, -10 * math.log10(share)) if share else _FURTHEST

    @property
    def _power(self) -> np.ndarray:
        """Variance of each channel, and of their mean."""
        return np.maximum(self._squares / self.frames - np.square(self._sums / self.frames), 0)

    def chosen(self) -> tuple[list[int] | None, str]:
        """The channels to take the mean of (None: all), and what to say of it, if anything."""
        power_C, power_of_mean = self._power[:-1], float(self._power[-1])
        heard = np.flatnonzero(power_C > _SILENT * power_C.max())
        if len(heard) == 0:
            return None, ""
        expected = power_C[heard].mean() / len(heard)
        if len(heard) > 1 and power_of_mean * (len(power_C) / len(heard)) ** 2 < _CANCELLED * expected:
            loudest = int(np.flatnonzero(power_C > 0.99 * power_C.max())[0])  # rounding makes equals differ
            return [loudest], f"the channels cancel each other: channel {loudest + 1} of {len(power_C)} taken alone"
        return (None if len(heard) == len(power_C) else heard.tolist()), ""
