"""Several steps, each brought back to within epsilon: PGD (Madry et al. 2018, "Towards Deep Learning Models Resistant
to Adversarial Attacks"), in L2."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from training.adversaries import options as options_module
from training.adversaries.base import NEARLY_NOTHING, Adversary, Changes, gradients, length

if TYPE_CHECKING:
    from training.model import FusionModel


class PgdAdversary(Adversary):
    """From what is there, without the paper's random start, so that an attack is the same each time."""

    Options = options_module.Pgd

    def __init__(self, options: options_module.Pgd) -> None:
        super().__init__(options)
        self.steps = options.steps
        self.step = 2.5 / options.steps if options.step is None else options.step

    def worsen(self, model: "FusionModel", batch: Mapping[str, Tensor], changes: Changes, plain: Tensor) -> None:
        loss = plain
        for n in range(self.steps):
            if n:
                loss = model(**batch).loss
            for modality, slope in gradients(loss, changes).items():
                most = self.epsilon * changes.lengths[modality]
                moved = changes.of[modality].detach() + self.step * most * slope
                within = moved * torch.clamp(most / length(moved).clamp(min=NEARLY_NOTHING), max=1)
                changes.of[modality] = within.to(slope.dtype).requires_grad_()
        changes.of = {modality: change.detach() for modality, change in changes.of.items()}
