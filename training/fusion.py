"""Fusions: the projected tokens of all modalities to soft tokens x_m = f(e_t, e_v, e_s) for the language model.

A fusion is a class here and a line in FUSIONS (and its name in `ModelSettings.fusion`).

Shapes: B rows, N modalities, T tokens of each, X soft tokens, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import initialization

from training.encoders import Block


class Fusion(nn.Module):
    """Tokens (B, N, T, D) and mask (B, N, T), true where a token is real, to soft tokens x_m (B, X, D).

    A modality that a row lacks has no real token. A learned stand-in takes its place, and what its tokens hold never
    changes the result.
    """

    def __init__(self, modalities: int, width: int, tokens: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.stand_in_NTD = nn.Parameter(torch.empty(modalities, tokens, width))

    def reset_parameters(self) -> None:
        """First values of the parameters that are not a layer's."""
        initialization.normal_(self.stand_in_NTD, std=0.5)

    def filled(self, tokens_BNTD: Tensor, mask_BNT: Tensor) -> Tensor:
        """The tokens, zero where not real, and the stand-ins of absent modalities (B, N, T, D)."""
        real_BNTD = torch.where(mask_BNT[..., None], tokens_BNTD, 0)
        present_BN = mask_BNT.any(2)
        return torch.where(present_BN[..., None, None], real_BNTD, self.stand_in_NTD.to(tokens_BNTD.dtype))

    def forward(self, tokens_BNTD: Tensor, mask_BNT: Tensor) -> Tensor:
        raise NotImplementedError


class WeightedFusion(Fusion):
    """Learnable weighted average x_m = a e_t + b e_v + c e_s, token by token (X = T).

    The weights are positive, start evenly, and sum to 1 over the modalities that a row has. The stand-ins of those it
    lacks are added to the average, from zero at the start: otherwise nothing would say what is missing.
    """

    def __init__(self, modalities: int, width: int, tokens: int, heads: int, dropout: float) -> None:
        super().__init__(modalities, width, tokens, heads, dropout)
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


class ConcatFusion(Fusion):
    """Concatenation of width d_t + d_v + d_s, token by token (X = T), then a projection."""

    def __init__(self, modalities: int, width: int, tokens: int, heads: int, dropout: float) -> None:
        super().__init__(modalities, width, tokens, heads, dropout)
        self.projection = nn.Linear(modalities * width, width)

    def concatenated(self, tokens_BNTD: Tensor, mask_BNT: Tensor) -> Tensor:
        """(B, T, N * D)."""
        return self.filled(tokens_BNTD, mask_BNT).transpose(1, 2).flatten(2)

    def forward(self, tokens_BNTD: Tensor, mask_BNT: Tensor) -> Tensor:
        return self.projection(self.concatenated(tokens_BNTD, mask_BNT))


class AttentionFusion(Fusion):
    """The tokens of all modalities, each with an embedding of its place, read one another in a transformer layer
    (X = N T)."""

    def __init__(self, modalities: int, width: int, tokens: int, heads: int, dropout: float) -> None:
        super().__init__(modalities, width, tokens, heads, dropout)
        self.place_NTD = nn.Parameter(torch.empty(modalities, tokens, width))
        self.block = Block(width, heads, dropout)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        initialization.normal_(self.place_NTD, std=0.1)

    def forward(self, tokens_BNTD: Tensor, mask_BNT: Tensor) -> Tensor:
        x_BXD = (self.filled(tokens_BNTD, mask_BNT) + self.place_NTD).flatten(1, 2)
        # A stand-in is always read; of a modality that is there, its real tokens.
        return self.block(x_BXD, (mask_BNT | ~mask_BNT.any(2, keepdim=True)).flatten(1))


FUSIONS: dict[str, type[Fusion]] = {"weighted": WeightedFusion, "concat": ConcatFusion, "attention": AttentionFusion}
