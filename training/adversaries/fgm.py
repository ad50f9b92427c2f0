"""One step along the gradient: FGM (Miyato et al. 2017, "Adversarial Training Methods for Semi-Supervised Text
Classification")."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from training.adversaries.base import Adversary, Changes, gradients

if TYPE_CHECKING:
    from training.model import FusionModel


class FgmAdversary(Adversary):
    """r = epsilon ||x|| g / ||g||, g the gradient of the loss at x."""

    def worsen(self, model: "FusionModel", batch: Mapping[str, Tensor], changes: Changes, plain: Tensor) -> None:
        for modality, slope in gradients(plain, changes).items():
            changes.of[modality] = (self.epsilon * changes.lengths[modality] * slope).to(slope.dtype)
