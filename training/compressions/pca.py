"""Principal components: of each vector its place along the directions in which the vectors of the first run differ most
(Pearson 1901), in units of how far they spread there, as float16."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from training.compressions.base import Compression, Fit, enough
from training.validation import FORBID_EXTRA, check

_MOST = float(np.finfo(np.float16).max)


@dataclass(frozen=True, kw_only=True)
class PcaOptions:
    __pydantic_config__ = FORBID_EXTRA
    components: int = 64  # numbers that are stored of a vector
    fit: int = 1  # count up to fit anew, to what there is then: all contents are featurized again

    def __post_init__(self) -> None:
        check(self.components >= 1, "components", self.components, "at least 1")


class PcaCompression(Compression):
    version = 1
    parts: ClassVar[Mapping[str, str]] = {"pca": "float16"}
    is_fitted = True
    Options = PcaOptions

    def check(self, dtype: str, width: int | None) -> None:
        most = self.options.components if width is None else width
        expected = f"{most} at most, which is how many numbers a vector has"
        check(self.options.components <= most, "components", self.options.components, expected)

    def fitted(self, vectors_ND: np.ndarray) -> Fit:
        from sklearn.decomposition import PCA

        enough(vectors_ND, self.options.components, "components")
        pca = PCA(self.options.components, svd_solver="covariance_eigh").fit(vectors_ND)
        spread_K = np.sqrt(pca.explained_variance_).astype(np.float32)
        return {"mean": pca.mean_.astype(np.float32), "components": pca.components_.astype(np.float32)} | {
            "spread": np.where(spread_K > 0, spread_K, 1).astype(np.float32)
        }

    def compress(self, vectors_ND: np.ndarray) -> dict[str, np.ndarray]:
        assert self.fit is not None
        places_NK = (vectors_ND - self.fit["mean"]) @ self.fit["components"].T.astype(np.float64) / self.fit["spread"]
        return {"pca": np.clip(places_NK, -_MOST, _MOST).astype(np.float16)}

    def restore(self, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        assert self.fit is not None
        return (parts["pca"] * self.fit["spread"]) @ self.fit["components"] + self.fit["mean"]
