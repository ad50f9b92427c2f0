"""How alike two pictures or two recordings are, by what a small copy of each shows: a measure that needs no model.

Shapes: n contents, D numbers of each.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from training.codecs.options import Source
from training.spectra import SpectrumOptions, resample, speech_spectra

_SIDE = 16  # pixels
_RATE = 8000  # Hz
_TIMES = 24  # stretches that a recording is cut into, however long it is
_ROWS = 256  # of which the likenesses are held at once


def likenesses(contents: Sequence[np.ndarray], source: Source) -> np.ndarray:
    """float32 (n, D) of length 1, whose products say how alike contents are: of pictures 16 x 16 grey pixels less their
    mean, of recordings 40 bands of pitch over 24 stretches of their time."""
    small = np.stack([(_picture if source.size else _recording)(content, source) for content in contents])
    small = small.reshape(len(small), -1).astype(np.float32)
    small -= small.mean(1, keepdims=True)
    return small / np.maximum(np.linalg.norm(small, axis=1, keepdims=True), 1e-6)


def _picture(pixels_CHW: np.ndarray, source: Source) -> np.ndarray:
    import cv2

    grey = pixels_CHW.astype(np.float32).mean(0)
    return cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)


def _recording(samples: np.ndarray, source: Source) -> np.ndarray:
    waveform = resample(samples.astype(np.float32) / 32768, source.rate, _RATE)
    settings = SpectrumOptions(sample_rate=_RATE, mels=40, window_ms=32, hop_ms=16)
    ((log_TM, _),) = speech_spectra([waveform], settings)
    edges = np.linspace(0, len(log_TM), _TIMES + 1)
    return np.stack([log_TM[int(a) : max(int(a) + 1, int(b))].mean(0) for a, b in itertools.pairwise(edges)])


def nearness(said_nD: np.ndarray, candidates_CD: np.ndarray, own_n: Sequence[int]) -> list[float]:
    """Of each answer the share of the other candidates that are less like it than its own one; a half where there is no
    other, or by chance."""
    found: list[float] = []
    for at in range(0, len(said_nD), _ROWS):
        own = np.asarray(own_n[at : at + _ROWS])[:, None]
        near = said_nD[at : at + _ROWS] @ candidates_CD.T
        mine = np.take_along_axis(near, own, 1)
        less = (near < mine).sum(1) + ((near == mine).sum(1) - 1) / 2  # itself is as near
        others = len(candidates_CD) - 1
        found += (less / others if others else np.full(len(own), 0.5)).tolist()
    return found
