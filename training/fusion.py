"""Fusions: x_m = f(e_t, e_v, e_a). Tokens of all modalities to the soft tokens that the language model reads.

A fusion is a class here and a line in FUSIONS (and its name in `ModelSettings.fusion`).

Shapes: B rows, M modalities, T tokens of each modality, S soft tokens, D width.
"""

import torch
from torch import Tensor, nn

from training.encoders import Block


class Fusion(nn.Module):
    """Tokens (B, M, T, D) and which modalities are present (B, M) to soft tokens (B, S, D).

    A missing modality's values never reach the output: it has no weight, or a learned stand-in takes its place.
    """

    def __init__(self, modalities: int, width: int, tokens: int, heads: int, dropout: float) -> None:
        super().__init__()

    def reset_parameters(self) -> None:
        """Initial values of the fusion's own parameters; those of layers are the model's affair."""
        raise NotImplementedError

    def forward(self, tokens_BMTD: Tensor, present_BM: Tensor) -> Tensor:
        raise NotImplementedError


class Weighted(Fusion):
    """x_m = a e_v + b e_t + c e_s, token by token (S = T).

    The weights are positive, start evenly, and are normalised over the modalities present in the row.
    """

    def __init__(self, modalities: int, width: int, tokens: int, heads: int, dropout: float) -> None:
        super().__init__(modalities, width, tokens, heads, dropout)
        self.logit_M = nn.Parameter(torch.empty(modalities))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.logit_M)

    def weights(self, present_BM: Tensor) -> Tensor:
        """(B, M): rows that sum to 1, with 0 for an absent modality."""
        return self.logit_M.float().expand(len(present_BM), -1).masked_fill(~present_BM, -torch.inf).softmax(-1)

    def forward(self, tokens_BMTD: Tensor, present_BM: Tensor) -> Tensor:
        shown_BMTD = tokens_BMTD.masked_fill(~present_BM[..., None, None], 0)
        return torch.einsum("bm,bmtd->btd", self.weights(present_BM).to(shown_BMTD.dtype), shown_BMTD)


class StandInFusion(Fusion):
    """One that puts a learned embedding where a modality is missing."""

    def __init__(self, modalities: int, width: int, tokens: int, heads: int, dropout: float) -> None:
        super().__init__(modalities, width, tokens, heads, dropout)
        self.stand_in_MTD = nn.Parameter(torch.empty(modalities, tokens, width))

    def reset_parameters(self) -> None:
        nn.init.normal_(self.stand_in_MTD, std=0.02)

    def filled(self, tokens_BMTD: Tensor, present_BM: Tensor) -> Tensor:
        """(B, M, T, D) with the stand-ins in place."""
        return torch.where(present_BM[..., None, None], tokens_BMTD, self.stand_in_MTD.to(tokens_BMTD.dtype))


class Concat(StandInFusion):
    """x_m = [e_t, e_v, e_s], token by token, of width d_t + d_v + d_s; a linear layer brings it back to D (S = T)."""

    def __init__(self, modalities: int, width: int, tokens: int, heads: int, dropout: float) -> None:
        super().__init__(modalities, width, tokens, heads, dropout)
        self.projection = nn.Linear(modalities * width, width)

    def concatenated(self, tokens_BMTD: Tensor, present_BM: Tensor) -> Tensor:
        """(B, T, M * D)"""
        return self.filled(tokens_BMTD, present_BM).transpose(1, 2).flatten(2)

    def forward(self, tokens_BMTD: Tensor, present_BM: Tensor) -> Tensor:
        return self.projection(self.concatenated(tokens_BMTD, present_BM))


class Attention(StandInFusion):
    """Tokens of all modalities, named by an embedding, attend to each other in a transformer layer (S = M * T)."""

    def __init__(self, modalities: int, width: int, tokens: int, heads: int, dropout: float) -> None:
        super().__init__(modalities, width, tokens, heads, dropout)
        self.place_MTD = nn.Parameter(torch.empty(modalities, tokens, width))
        self.block = Block(width, heads, dropout)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.normal_(self.place_MTD, std=0.02)

    def forward(self, tokens_BMTD: Tensor, present_BM: Tensor) -> Tensor:
        return self.block((self.filled(tokens_BMTD, present_BM) + self.place_MTD.to(tokens_BMTD.dtype)).flatten(1, 2))


FUSIONS: dict[str, type[Fusion]] = {"weighted": Weighted, "concat": Concat, "attention": Attention}
