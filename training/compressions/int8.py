"""Whole numbers from -127 to 127, and of each vector the scale that they are multiplied by."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from training.compressions.base import Compression


class Int8Compression(Compression):
    version = 1
    parts: ClassVar[Mapping[str, str]] = {"int8": "int8", "scale": "float32"}

    def compress(self, vectors_ND: np.ndarray) -> dict[str, np.ndarray]:
        scale_N1 = (np.abs(vectors_ND).max(axis=1, keepdims=True, initial=0) / 127).astype(np.float32)
        return {"int8": np.rint(vectors_ND / np.where(scale_N1, scale_N1, 1)).astype(np.int8), "scale": scale_N1}

    def restore(self, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        return parts["int8"] * parts["scale"]
