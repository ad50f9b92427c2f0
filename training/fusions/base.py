"""The contract of a fusion: the projected tokens of all modalities to soft tokens x_m = f(e_t, e_v, e_s).

Shapes: B rows, N modalities, T tokens of each, X soft tokens, D width.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization

from training.layers import ModelShape


class Fusion(nn.Module):
    """Tokens (B, N, T, D) and mask (B, N, T), true where a token is real, to soft tokens x_m (B, X, D).

    A modality that a row lacks has no real token. A learned stand-in takes its place, and what its tokens hold never
    changes the result. A kind with options takes them as `options`.
    """

    # true: the language model reads the modalities of a row one by one, each as if the row had no other, and what it
    # says is averaged over them (`training.readings`)
    late: ClassVar[bool] = False
    # true, of a late one: and once more all together, where the row has several
    reads_whole: ClassVar[bool] = False

    def __init__(self, modalities: int, shape: ModelShape) -> None:
        super().__init__()
        self.stand_in_NTD = nn.Parameter(torch.empty(modalities, shape.tokens, shape.width))

    def reset_parameters(self) -> None:
        """First values of the parameters that are not a layer's."""
        initialization.normal_(self.stand_in_NTD, std=0.5)

    def filled(self, tokens_BNTD: Tensor, mask_BNT: Tensor) -> Tensor:
        """The tokens, zero where not real, and the stand-ins of absent modalities (B, N, T, D)."""
        real_BNTD = torch.where(mask_BNT[..., None], tokens_BNTD, 0)
        present_BN = mask_BNT.any(2)
        return torch.where(present_BN[..., None, None], real_BNTD, self.stand_in_NTD.to(tokens_BNTD.dtype))

    @staticmethod
    def readable(mask_BNT: Tensor) -> Tensor:
        """Which of the `filled` tokens say something (B, N, T): the real ones, and a stand-in's."""
        return mask_BNT | ~mask_BNT.any(2, keepdim=True)

    def forward(self, tokens_BNTD: Tensor, mask_BNT: Tensor) -> Tensor:
        raise NotImplementedError

    def soft_mask(self, mask_BNT: Tensor) -> Tensor | None:
        """Which soft tokens the language model reads (B, X), at least one of each row; None: all."""
        return None


class TokenFusion(Fusion):
    """A fusion that keeps the tokens of each modality, one modality after the other (X = N T); those that are not real
    are not read."""

    def soft_mask(self, mask_BNT: Tensor) -> Tensor:
        return self.readable(mask_BNT).flatten(1)
