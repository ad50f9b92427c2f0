"""Early and late fusion at once (hybrid fusion: Atrey et al. 2010; Baltrušaitis et al. 2019).

Shapes: B rows, N modalities, T tokens of each, X soft tokens, D width.
"""

from torch import Tensor, nn

from training.catalog import FUSIONS
from training.fusions.base import Fusion
from training.fusions.options import Hybrid
from training.layers import ModelShape


class HybridFusion(Fusion):
    """The language model reads each modality of a row as if the row had no other, as with `logit`, and all together as
    the fusion `joint` lays them; what it says is averaged over these: M(x_m) = mean of M(f(e_1, ..., e_N)) and each
    M(f(e_n)). What modalities say independently adds up, and what only all together say is there, too."""

    late = reads_whole = True

    def __init__(self, modalities: int, shape: ModelShape, options: Hybrid) -> None:
        nn.Module.__init__(self)  # the stand-ins are those of `joint`
        self.joint: Fusion = FUSIONS.make(options.joint, modalities, shape)

    @property
    def stand_in_NTD(self) -> nn.Parameter:  # type: ignore[override]
        return self.joint.stand_in_NTD

    def reset_parameters(self) -> None:
        self.joint.reset_parameters()

    def forward(self, tokens_BNTD: Tensor, mask_BNT: Tensor) -> Tensor:
        return self.joint(tokens_BNTD, mask_BNT)

    def soft_mask(self, mask_BNT: Tensor) -> Tensor | None:
        return self.joint.soft_mask(mask_BNT)
