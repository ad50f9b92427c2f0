"""The outer product of all modalities (Tensor Fusion Network, Zadeh et al. 2017).

Shapes: B rows, N modalities, T tokens of each, D width, R width of a factor.
"""

import torch
from torch import Tensor, nn

from training.fusions.base import Fusion
from training.fusions.options import Tensor as Options
from training.layers import ModelShape


class TensorFusion(Fusion):
    """x_m = W ([h_1, 1] x ... x [h_N, 1]) + b with h_n = U_n e_n + u_n of width R, token by token (X = T).

    The constant 1 keeps the products of fewer modalities, down to each alone. The product has (R + 1)^N values.
    """

    def __init__(self, modalities: int, shape: ModelShape, options: Options) -> None:
        super().__init__(modalities, shape)
        self.narrow = nn.ModuleList(nn.Linear(shape.width, options.width) for _ in range(modalities))
        self.projection = nn.Linear((options.width + 1) ** modalities, shape.width)

    def forward(self, tokens_BNTD: Tensor, mask_BNT: Tensor) -> Tensor:
        x_NBTD = self.filled(tokens_BNTD, mask_BNT).unbind(1)
        product = x_NBTD[0].new_ones(*x_NBTD[0].shape[:2], 1)
        for narrow, x_BTD in zip(self.narrow, x_NBTD, strict=True):
            h_BTR = narrow(x_BTD)
            h_BTR = torch.cat([h_BTR, torch.ones_like(h_BTR[..., :1])], dim=-1)
            product = (product[..., :, None] * h_BTR[..., None, :]).flatten(2)
        return self.projection(product)
