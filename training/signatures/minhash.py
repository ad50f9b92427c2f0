"""The least of many hashes of a text's stretches of five characters (Broder 1997): texts share as many of them as they
share of their stretches (the Jaccard index). Case, white space and punctuation are left out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.signatures.base import Signature, SignatureOptions

_STRETCH = 5  # characters
_HASHES = 128
_ROWS = 5  # hashes of a band: of texts that share 0.8 of their stretches 99.99 % share a band, of those with 0.3 6 %
_AT_ONCE = 4096  # stretches whose hashes are in memory
_RANDOM = np.random.default_rng(0)
_FACTORS, _SUMMANDS = _RANDOM.integers(1, 2**63, (2, _HASHES, 1), np.uint64) | np.uint64(1)
_BASE = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, kw_only=True)
class MinhashOptions(SignatureOptions):
    least: float = 0.8


class MinhashSignature(Signature):
    version = 1
    Options = MinhashOptions

    def sign(self, content: Any) -> bytes | None:
        kept = "".join(filter(str.isalnum, content.text.casefold()))
        codes = np.frombuffer(kept.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
        if not len(codes):
            return None
        stretches = np.zeros(max(1, len(codes) - _STRETCH + 1), np.uint64)
        for place in range(min(_STRETCH, len(codes))):
            stretches = stretches * _BASE + codes[place : place + len(stretches)]
        least = np.full(_HASHES, 2**32 - 1, np.uint32)
        stretches ^= stretches >> np.uint64(29)
        for start in range(0, len(stretches), _AT_ONCE):
            hashes = (stretches[start : start + _AT_ONCE] * _FACTORS + _SUMMANDS) >> np.uint64(32)
            least = np.minimum(least, hashes.min(axis=1).astype(np.uint32))
        return least.tobytes()

    def keys(self, values: Sequence[bytes]) -> np.ndarray:
        hashes = _unpacked(values)[:, : _HASHES // _ROWS * _ROWS].reshape(len(values), 1, -1, _ROWS).astype(np.uint64)
        keys = np.zeros(hashes.shape[:-1], np.uint64)
        for row in range(_ROWS):
            keys = (keys ^ hashes[..., row]) * _BASE
            keys ^= keys >> np.uint64(31)
        return keys

    def similarity(self, values: Sequence[bytes], pairs_3P: np.ndarray) -> np.ndarray:
        """The share of equal hashes: the Jaccard index, within some hundredths."""
        hashes, count = _unpacked(values), pairs_3P.shape[1]
        parts = (pairs_3P[:2, start : start + _AT_ONCE] for start in range(0, count, _AT_ONCE))
        shares = [(hashes[first] == hashes[second]).mean(axis=1) for first, second in parts]
        return np.concatenate([np.empty(0), *shares])


def _unpacked(values: Sequence[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(values), np.uint32).reshape(len(values), _HASHES)
