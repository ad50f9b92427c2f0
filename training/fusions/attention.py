"""The tokens of all modalities read one another.

Shapes: B rows, N modalities, T tokens of each, X soft tokens, D width.
"""

import torch
from torch import Tensor, nn
from transformers import initialization

from training.fusions.base import TokenFusion
from training.layers import Block, ModelShape


class AttentionFusion(TokenFusion):
    """The tokens of all modalities, each with an embedding of its place, read one another in a transformer layer
    (X = N T)."""

    def __init__(self, modalities: int, shape: ModelShape) -> None:
        super().__init__(modalities, shape)
        width, tokens, heads, dropout = shape.width, shape.tokens, shape.heads, shape.dropout
        self.place_NTD = nn.Parameter(torch.empty(modalities, tokens, width))
        self.block = Block(width, heads, dropout)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        initialization.normal_(self.place_NTD, std=0.1)

    def forward(self, tokens_BNTD: Tensor, mask_BNT: Tensor) -> Tensor:
        x_BXD = (self.filled(tokens_BNTD, mask_BNT) + self.place_NTD).flatten(1, 2)
        return self.block(x_BXD, self.soft_mask(mask_BNT))
