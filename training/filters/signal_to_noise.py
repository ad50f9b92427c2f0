"""Signal-to-noise ratio of a recording: its power, beside that of its quietest moments."""

import math

import numpy as np

from training.filters.base import RangeFilter
from training.levels import stretch_powers
from training.media import MediaError
from training.recordings import Speech

_QUIET = 10  # percentile
_LEAST, _MOST = -20.0, 100.0


class SignalToNoiseFilter(RangeFilter):
    """In dB, from -20 to 100; below 10 words get lost.

    The noise is the 10th percentile of the powers of stretches of 30 ms, the signal what the mean power has beyond it.
    So noise that goes on all the time is told, of whatever kind; what sounds now and then (a bark) counts as signal,
    and speech without a pause as noise, by its quietest moments. Steady noise at 0 to 30 dB below spoken orders of some
    ten seconds is found within 0.6 dB; of single words, whose own quiet ends are there, up to 10 dB.
    """

    version = 1
    packages = ("numpy",)
    unit = " dB"

    def measure(self, content: Speech) -> float:
        powers_N = stretch_powers(content.waveform, content.sample_rate)
        whole, noise = float(powers_N.mean()), float(np.percentile(powers_N, _QUIET))
        if whole == 0:
            raise MediaError("no_signal", "every sample is zero: there is neither signal nor noise")
        if noise == 0:
            return _MOST
        signal = whole - noise
        return _LEAST if signal <= 0 else min(max(10 * math.log10(signal / noise), _LEAST), _MOST)
