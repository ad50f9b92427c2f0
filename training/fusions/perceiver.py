"""Learned queries read the tokens of all modalities (Perceiver, Jaegle et al. 2021).

Shapes: B rows, N modalities, T tokens of each, X latents, D width.
"""

import torch
from torch import Tensor, nn
from transformers import initialization

from training.fusions.base import Fusion
from training.fusions.options import Perceiver
from training.layers import Block, CrossAttention, ModelShape


class PerceiverFusion(Fusion):
    """In each layer the latents read all tokens, each with an embedding of its place, and then one another; they are
    x_m, as many however many tokens there are."""

    def __init__(self, modalities: int, shape: ModelShape, options: Perceiver) -> None:
        super().__init__(modalities, shape)
        width, tokens, heads, dropout = shape.width, shape.tokens, shape.heads, shape.dropout
        self.place_NTD = nn.Parameter(torch.empty(modalities, tokens, width))
        self.latent_XD = nn.Parameter(torch.empty(options.latents, width))
        self.attend = nn.ModuleList(CrossAttention(width, heads, dropout) for _ in range(options.layers))
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(options.layers))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        initialization.normal_(self.place_NTD, std=0.1)
        initialization.normal_(self.latent_XD, std=0.5)

    def forward(self, tokens_BNTD: Tensor, mask_BNT: Tensor) -> Tensor:
        x_BSD = (self.filled(tokens_BNTD, mask_BNT) + self.place_NTD).flatten(1, 2)
        real_BS = self.readable(mask_BNT).flatten(1)
        x_m = self.latent_XD.expand(x_BSD.shape[0], -1, -1)
        for attend, block in zip(self.attend, self.blocks, strict=True):
            x_m = block(x_m + attend(x_m, x_BSD, real_BS))
        return x_m
