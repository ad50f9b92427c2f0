"""The tokens of all modalities go straight into the language model (LLaVA, Liu et al. 2023).

Shapes: B rows, N modalities, T tokens of each, D width.
"""

from torch import Tensor

from training.fusions.base import TokenFusion


class InterleavedFusion(TokenFusion):
    """All tokens, one modality after the other (X = N T): the language model itself is what fuses them."""

    def forward(self, tokens_BNTD: Tensor, mask_BNT: Tensor) -> Tensor:
        return self.filled(tokens_BNTD, mask_BNT).flatten(1, 2)
