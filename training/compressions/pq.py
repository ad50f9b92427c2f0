"""Product quantization (Jegou, Douze and Schmid 2011): vectors are cut into stretches, and of each stretch the number
of the nearest of 256 centroids is stored, which k-means has found in the vectors of the first run.

Shapes: S stretches, C centroids.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from training.compressions.base import Compression, Fit, enough
from training.validation import FORBID_EXTRA, check

_STEPS = 25  # of k-means
_AT_ONCE = 4096  # vectors whose distances are in memory


@dataclass(frozen=True, kw_only=True)
class PqOptions:
    __pydantic_config__ = FORBID_EXTRA
    subspaces: int = 8  # stretches, and bytes that are stored of a vector
    centroids: int = 256  # of each
    fit: int = 1  # count up to fit anew, to what there is then: all contents are featurized again

    def __post_init__(self) -> None:
        check(self.subspaces >= 1, "subspaces", self.subspaces, "at least 1")
        check(2 <= self.centroids <= 256, "centroids", self.centroids, "2 to 256, whose numbers fit a byte")


class PqCompression(Compression):
    version = 1
    parts: ClassVar[Mapping[str, str]] = {"pq": "uint8"}
    is_fitted = True
    Options = PqOptions

    def check(self, dtype: str, width: int | None) -> None:
        most = self.options.subspaces if width is None else width
        expected = f"{most} at most, which is how many numbers a vector has"
        check(self.options.subspaces <= most, "subspaces", self.options.subspaces, expected)

    def fitted(self, vectors_ND: np.ndarray) -> Fit:
        """`centroids.S` (C, stretch) of each stretch."""
        from sklearn.cluster import KMeans

        enough(vectors_ND, self.options.centroids, "centroids")
        seeking = KMeans(self.options.centroids, n_init=1, max_iter=_STEPS, random_state=0, init="random")
        stretches = np.array_split(vectors_ND, self.options.subspaces, axis=1)
        return {f"centroids.{n}": _centroids(seeking, stretch) for n, stretch in enumerate(stretches)}

    def compress(self, vectors_ND: np.ndarray) -> dict[str, np.ndarray]:
        starts = range(0, len(vectors_ND), _AT_ONCE)
        codes = [self._codes(vectors_ND[start : start + _AT_ONCE]) for start in starts]
        return {"pq": np.concatenate([np.empty((0, self.options.subspaces), np.uint8), *codes])}

    def _codes(self, vectors_ND: np.ndarray) -> np.ndarray:
        stretches = np.array_split(vectors_ND, self.options.subspaces, axis=1)
        numbers = []
        for stretch, centroids in zip(stretches, self._centroids(), strict=True):
            wide = centroids.astype(np.float64)
            numbers.append((np.square(wide).sum(axis=1) - 2 * stretch @ wide.T).argmin(axis=1))
        return np.stack(numbers, axis=1).astype(np.uint8)

    def restore(self, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        codes_NS = parts["pq"]
        stretches = [centroids[codes_NS[:, n]] for n, centroids in enumerate(self._centroids())]
        return np.concatenate(stretches, axis=1)

    def _centroids(self) -> list[np.ndarray]:
        assert self.fit is not None
        return [self.fit[f"centroids.{n}"] for n in range(self.options.subspaces)]


def _centroids(seeking: "object", stretch: np.ndarray) -> np.ndarray:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of stretches that are fewer than the centroids: some then are the same
        return seeking.fit(stretch).cluster_centers_.astype(np.float32)  # type: ignore[attr-defined]
