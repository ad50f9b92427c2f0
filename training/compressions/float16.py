"""Half precision: 11 significant bits; what is beyond 65504 becomes that."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from training.compressions.base import Compression
from training.validation import check

_MOST = float(np.finfo(np.float16).max)


class Float16Compression(Compression):
    version = 1
    parts: ClassVar[Mapping[str, str]] = {"float16": "float16"}

    def check(self, dtype: str, width: int | None) -> None:
        check(dtype != "float16", "compression", "float16", "int8, pca or pq: these features are float16 already")

    def compress(self, vectors_ND: np.ndarray) -> dict[str, np.ndarray]:
        return {"float16": np.clip(vectors_ND, -_MOST, _MOST).astype(np.float16)}

    def restore(self, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        return parts["float16"].astype(np.float32)
