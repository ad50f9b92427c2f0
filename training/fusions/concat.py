"""Concatenation of the modalities, then a projection.

Shapes: B rows, N modalities, T tokens of each, X soft tokens, D width.
"""

from torch import Tensor, nn

from training.fusions.base import Fusion
from training.layers import ModelShape


class ConcatFusion(Fusion):
    """Concatenation of width d_t + d_v + d_s, token by token (X = T), then a projection."""

    def __init__(self, modalities: int, shape: ModelShape) -> None:
        super().__init__(modalities, shape)
        width = shape.width
        self.projection = nn.Linear(modalities * width, width)

    def concatenated(self, tokens_BNTD: Tensor, mask_BNT: Tensor) -> Tensor:
        """(B, T, N * D)."""
        return self.filled(tokens_BNTD, mask_BNT).transpose(1, 2).flatten(2)

    def forward(self, tokens_BNTD: Tensor, mask_BNT: Tensor) -> Tensor:
        return self.projection(self.concatenated(tokens_BNTD, mask_BNT))
