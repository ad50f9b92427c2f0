"""Each modality scales and shifts the others' tokens (FiLM, Perez et al. 2018).

Shapes: B rows, N modalities, T tokens of each, D width.
"""

import torch
from torch import Tensor, nn

from training.fusions.base import TokenFusion
from training.layers import ModelShape


class FilmFusion(TokenFusion):
    """y_n = (1 + g_n) * e_n + s_n for each token (X = N T), where (g_n, s_n) is the sum over the other modalities m of
    L_mn applied to the mean of m's tokens. The paper conditions pictures on a question; here all condition all."""

    def __init__(self, modalities: int, shape: ModelShape) -> None:
        super().__init__(modalities, shape)
        self.pairs = [(n, m) for n in range(modalities) for m in range(modalities) if n != m]  # changed, read
        self.condition = nn.ModuleList(nn.Linear(shape.width, 2 * shape.width) for _ in self.pairs)

    def forward(self, tokens_BNTD: Tensor, mask_BNT: Tensor) -> Tensor:
        x_BNTD = self.filled(tokens_BNTD, mask_BNT)
        mean_BND = x_BNTD.sum(2) / self.readable(mask_BNT).sum(2, keepdim=True)  # what is not readable is zero
        changed = list(x_BNTD.unbind(1))
        for (n, m), condition in zip(self.pairs, self.condition, strict=True):
            scale_B1D, shift_B1D = condition(mean_BND[:, m])[:, None].chunk(2, dim=-1)
            changed[n] = changed[n] + scale_B1D * x_BNTD[:, n] + shift_B1D
        return torch.cat(changed, dim=1)
