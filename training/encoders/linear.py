"""A linear layer: all that the vectors of a pretrained encoder need.

Shapes: B rows, S vectors, M features of a vector, T tokens, D width.
"""

import torch
from torch import Tensor, nn

from training.encoders.base import Encoder, all_real
from training.featurizers.base import FeatureShape
from training.layers import BatchNorm, ModelShape, stretches


class LinearEncoder(Encoder):
    """Vectors (B, S, M), each feature brought to zero mean and unit variance over the batch: a few of a pretrained
    encoder's are a hundred times larger than the others. A token is the mean of one of T stretches of equal length."""

    def __init__(self, source: FeatureShape, shape: ModelShape) -> None:
        super().__init__(source, shape)
        self.tokens = shape.tokens
        self.norm = BatchNorm(source.width)
        self.projection = nn.Linear(source.width, shape.width)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        assert mask is not None
        real_RM = self.norm(values[mask][..., None, None])[..., 0, 0]
        x_BSM = torch.zeros_like(values).masked_scatter(mask[..., None], real_RM.to(values.dtype))
        stretches_BTS = stretches(mask.sum(1), mask.shape[1], self.tokens).to(x_BSM.dtype)
        return all_real(self.dropout(self.projection(stretches_BTS @ x_BSM)))
