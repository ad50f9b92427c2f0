"""A learnable weighted average of the modalities.

Shapes: B rows, N modalities, T tokens of each, X soft tokens, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import initialization

from training.fusions.base import Fusion
from training.layers import ModelShape


class WeightedFusion(Fusion):
    """Learnable weighted average x_m = a e_t + b e_v + c e_s, token by token (X = T).

    The weights are positive, start evenly, and sum to 1 over the modalities that a row has. The stand-ins of those it
    lacks are added to the average, from zero at the start: otherwise nothing would say what is missing.
    """

    def __init__(self, modalities: int, shape: ModelShape) -> None:
        super().__init__(modalities, shape)
        self.raw_weight_N = nn.Parameter(torch.empty(modalities))

    def reset_parameters(self) -> None:
        initialization.zeros_(self.stand_in_NTD)
        initialization.zeros_(self.raw_weight_N)

    def weights(self, present_BN: Tensor) -> Tensor:
        """Normalised weights (B, N): softplus of the raw ones, over their sum; 0 for what is absent."""
        weight_BN = functional.softplus(self.raw_weight_N) * present_BN
        return weight_BN / weight_BN.sum(1, keepdim=True).clamp(min=1e-9)

    def forward(self, tokens_BNTD: Tensor, mask_BNT: Tensor) -> Tensor:
        present_BN = mask_BNT.any(2)
        factor_BN = torch.where(present_BN, self.weights(present_BN), 1.0).to(tokens_BNTD.dtype)
        return torch.einsum("bn,bntd->btd", factor_BN, self.filled(tokens_BNTD, mask_BNT))
