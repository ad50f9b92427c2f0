"""The outer product of all modalities, never written out (Low-rank Multimodal Fusion, Liu et al. 2018).

Shapes: B rows, N modalities, T tokens of each, D width, R rank.
"""

import torch
from torch import Tensor, nn
from transformers import initialization

from training.fusions.base import Fusion
from training.fusions.options import LowRank
from training.layers import ModelShape


class LowRankFusion(Fusion):
    """x_m = b + sum over the rank r of the product over n of (F_nr e_n + f_nr), token by token (X = T): the tensor
    fusion whose W has rank R. F_nr and f_nr are one factor, of [e_n, 1]."""

    def __init__(self, modalities: int, shape: ModelShape, options: LowRank) -> None:
        super().__init__(modalities, shape)
        width, self.rank = shape.width, options.rank
        self.factor_NRDD = nn.Parameter(torch.empty(modalities, self.rank, width, width))  # from, to
        self.constant_NRD = nn.Parameter(torch.empty(modalities, self.rank, width))  # the factor's row of the 1
        self.bias_D = nn.Parameter(torch.empty(width))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        # Around 1 the product is nearly a sum, which learns; around 0 each modality would wait for the others.
        initialization.normal_(self.factor_NRDD, std=self.factor_NRDD.shape[2] ** -0.5 / self.rank)
        initialization.ones_(self.constant_NRD)
        initialization.constant_(self.bias_D, -self.rank)

    def forward(self, tokens_BNTD: Tensor, mask_BNT: Tensor) -> Tensor:
        x_BNTD = self.filled(tokens_BNTD, mask_BNT)
        read_NRBTD = torch.einsum("bntd,nrde->nrbte", x_BNTD, self.factor_NRDD) + self.constant_NRD[:, :, None, None]
        return read_NRBTD.prod(0).sum(0) + self.bias_D
