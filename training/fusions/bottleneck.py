"""A few tokens carry all that passes between modalities (Multimodal Bottleneck Transformer, Nagrani et al. 2021).

Shapes: B rows, N modalities, T tokens of each, X bottleneck tokens, D width.
"""

import torch
from torch import Tensor, nn
from transformers import initialization

from training.fusions.base import Fusion
from training.fusions.options import Bottleneck
from training.layers import Block, ModelShape


class BottleneckFusion(Fusion):
    """In each layer a modality's own tokens and the bottleneck read one another in a transformer of the modality's own;
    the bottleneck then is the mean of what the modalities made of it. After the last layer it is x_m."""

    def __init__(self, modalities: int, shape: ModelShape, options: Bottleneck) -> None:
        super().__init__(modalities, shape)
        width, tokens, heads, dropout = shape.width, shape.tokens, shape.heads, shape.dropout
        self.place_NTD = nn.Parameter(torch.empty(modalities, tokens, width))
        self.bottleneck_XD = nn.Parameter(torch.empty(options.tokens, width))
        self.layers = nn.ModuleList(
            nn.ModuleList(Block(width, heads, dropout) for _ in range(modalities)) for _ in range(options.layers)
        )

    def reset_parameters(self) -> None:
        super().reset_parameters()
        initialization.normal_(self.place_NTD, std=0.1)
        initialization.normal_(self.bottleneck_XD, std=0.5)

    def forward(self, tokens_BNTD: Tensor, mask_BNT: Tensor) -> Tensor:
        x_NBTD = list((self.filled(tokens_BNTD, mask_BNT) + self.place_NTD).unbind(1))
        x_m = self.bottleneck_XD.expand(tokens_BNTD.shape[0], -1, -1)
        count = x_m.shape[1]
        real_NBS = [torch.cat([real.new_ones(x_m.shape[:2]), real], 1) for real in self.readable(mask_BNT).unbind(1)]
        for blocks in self.layers:
            assert isinstance(blocks, nn.ModuleList)
            read_NBSD = [b(torch.cat([x_m, x], 1), r) for b, x, r in zip(blocks, x_NBTD, real_NBS, strict=True)]
            x_NBTD = [read[:, count:] for read in read_NBSD]
            x_m = torch.stack([read[:, :count] for read in read_NBSD]).mean(0)
        return x_m
