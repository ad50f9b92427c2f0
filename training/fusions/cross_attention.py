"""Each modality reads each other one (crossmodal attention of MulT, Tsai et al. 2019).

Shapes: B rows, N modalities, T tokens of each, D width.
"""

import torch
from torch import Tensor, nn
from transformers import initialization

from training.fusions.base import TokenFusion
from training.layers import Block, CrossAttention, ModelShape


class CrossAttentionFusion(TokenFusion):
    """Attention of its own for each ordered pair of modalities, then a transformer layer for each modality (X = N T).

    y_n = Block_n(e_n + sum over the other m of Attention_mn(e_n, e_m)), where only modalities that are present read
    and are read. MulT joins what was read of several side by side; here it is added, so that width does not grow.
    """

    def __init__(self, modalities: int, shape: ModelShape) -> None:
        super().__init__(modalities, shape)
        width, tokens, heads, dropout = shape.width, shape.tokens, shape.heads, shape.dropout
        self.place_NTD = nn.Parameter(torch.empty(modalities, tokens, width))
        self.pairs = [(n, m) for n in range(modalities) for m in range(modalities) if n != m]  # reader, read
        self.attend = nn.ModuleList(CrossAttention(width, heads, dropout) for _ in self.pairs)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(modalities))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        initialization.normal_(self.place_NTD, std=0.1)

    def forward(self, tokens_BNTD: Tensor, mask_BNT: Tensor) -> Tensor:
        x_NBTD = (self.filled(tokens_BNTD, mask_BNT) + self.place_NTD).transpose(0, 1)
        real_NBT, present_NB11 = self.readable(mask_BNT).transpose(0, 1), mask_BNT.any(2).T[..., None, None]
        read_NBTD = list(x_NBTD)
        for (n, m), attend in zip(self.pairs, self.attend, strict=True):
            both = present_NB11[n] & present_NB11[m]
            read_NBTD[n] = read_NBTD[n] + both * attend(x_NBTD[n], x_NBTD[m], real_NBT[m])
        read = [block(x, real) for block, x, real in zip(self.blocks, read_NBTD, real_NBT, strict=True)]
        return torch.cat(read, dim=1)
