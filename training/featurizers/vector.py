"""Vectors that another program made (`training.vectors`), as they are: in the place of any modality's own items.

Shapes: B rows, N vectors of a row, D numbers of a vector.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from training.featurizers.base import FeatureShape, Featurizer
from training.modalities.base import Modality
from training.validation import FORBID_EXTRA, check
from training.vectors import VectorModality

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class VectorOptions:
    __pydantic_config__ = FORBID_EXTRA
    width: int = 0  # has to be given: numbers of a vector

    def __post_init__(self) -> None:
        check(self.width >= 0, "width", self.width, "how many numbers each vector has")


class VectorFeaturizer(Featurizer):
    form = "vectors"
    described = "vectors from elsewhere"
    version = 1
    read = "vector"
    tensors: Mapping[str, str] = {"vector": "float32"}
    Options = VectorOptions

    def __init__(self, options: VectorOptions) -> None:
        super().__init__(options)
        check(options.width > 0, "width", options.width, "how many numbers each vector has, as in width: 768")

    @classmethod
    def stand_in(cls, modality: str, options: VectorOptions) -> Modality:
        return VectorModality(modality, options.width)

    def featurize(self, content: np.ndarray) -> dict[str, np.ndarray]:
        return {"vector": content}

    def shape(self) -> FeatureShape:
        return FeatureShape(self.form, self.options.width)

    def batch(self, rows: Sequence[np.ndarray | None]) -> "tuple[Tensor, Tensor]":
        """float32 (B, N, D), zero where there is nothing, and a mask (B, N)."""
        from training.padding import padded_frames

        return padded_frames(rows, self.options.width)
