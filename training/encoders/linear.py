"""A linear layer: all that the vectors of a pretrained encoder need.

Shapes: B rows, S vectors, M features of a vector, T tokens, D width, R vectors of training rows.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from training.encoders.base import Encoder, all_real
from training.featurizers.base import FeatureShape
from training.layers import BatchNorm, ModelShape, stretches

_LOOKED_AT = 8192  # training vectors that the axes are of, at most
_LEAST = 1e-3  # of the largest deviation: what moves less along an axis is rounding


class LinearEncoder(Encoder):
    """Vectors (B, S, M), each feature brought to zero mean and unit variance over the batch: a few of a pretrained
    encoder's are a hundred times larger than the others. A token is the mean of one of T stretches of equal length."""

    looks_at = _LOOKED_AT

    def __init__(self, source: FeatureShape, shape: ModelShape) -> None:
        super().__init__(source, shape)
        self.tokens = shape.tokens
        self.norm = BatchNorm(source.width)
        self.projection = nn.Linear(source.width, shape.width)
        self.dropout = nn.Dropout(shape.dropout)

    @torch.no_grad()
    def fit(self, rows: Iterable[np.ndarray]) -> None:
        """The projection starts at the principal axes of the training vectors, each at unit variance. A few hundred
        rows cannot move a random one of a thousand features to a hundred far: of clothing photos a linear model reads
        0.66 from the random one's result, and 0.79 from the axes as from all features."""
        x_RM = torch.from_numpy(_some(rows)).float()
        if len(x_RM) < 2:
            return
        x_RM = (x_RM - x_RM.mean(0)) / x_RM.std(0).clamp(min=1e-6)
        with torch.random.fork_rng(devices=[]):  # it draws, and shall not move what is drawn next
            torch.manual_seed(0)
            _, sizes, axes_MD = torch.svd_lowrank(x_RM, min(len(self.projection.weight), *x_RM.shape), niter=4)
        count = int((sizes > _LEAST * sizes[0]).sum())
        self.projection.weight[:count] = axes_MD.T[:count] * (len(x_RM) ** 0.5 / sizes[:count, None])
        self.projection.bias.zero_()

    def forward(self, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        assert mask is not None
        if torch.onnx.is_in_onnx_export():  # no shape of a graph is decided by values
            x_BSM = self.norm(values.transpose(1, 2)[..., None])[..., 0].transpose(1, 2) * mask[..., None]
        else:
            real_RM = self.norm(values[mask][..., None, None])[..., 0, 0]
            x_BSM = torch.zeros_like(values).masked_scatter(mask[..., None], real_RM.to(values.dtype))
        stretches_BTS = stretches(mask.sum(1), mask.shape[1], self.tokens).to(x_BSM.dtype)
        return all_real(self.dropout(self.projection(stretches_BTS @ x_BSM)))


def _some(rows: Iterable[np.ndarray]) -> np.ndarray:
    """Vectors of the rows (R, M), drawn evenly where there are too many (reservoir sampling, Vitter 1985)."""
    random, kept, seen = np.random.default_rng(0), list[np.ndarray](), 0
    for row_SM in rows:
        for vector_M in row_SM:
            seen += 1
            if len(kept) < _LOOKED_AT:
                kept.append(vector_M)
            elif (place := int(random.integers(seen))) < _LOOKED_AT:
                kept[place] = vector_M
    return np.array(kept)
