"""Each modality's own tokens should answer, too."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from training.objectives.base import Objective
from training.objectives.options import Unimodal

if TYPE_CHECKING:
    from training.model_config import FusionConfig, ModelOutput
    from training.settings import TrainingSettings


class UnimodalObjective(Objective):
    """The output's own loss of what the model says of each modality as if the row had no other, summed over modalities.

    With `balance` a, the encoder of a modality that answers better than the others do is slowed down (on-the-fly
    gradient modulation, Peng et al. 2022): the gradient of its tokens is multiplied by 1 - tanh(a * r), where r > 1 is
    its probability of the right answer over the mean of the others'. The noise of the paper (GE) is left out.
    """

    def __init__(self, config: "FusionConfig", training: "TrainingSettings", options: Unimodal) -> None:
        super().__init__(config, training, options)
        self.balance = options.balance

    def forward(self, output: "ModelOutput", batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        assert output.alone is not None and output.tokens is not None
        losses = {
            modality: self.answer_loss(logits, batch, rows)
            for modality, (rows, logits) in output.alone.items()
            if len(rows)
        }
        if self.balance > 0:
            for modality, share in shares(losses, self.balance).items():
                if output.tokens[modality].requires_grad:
                    output.tokens[modality].register_hook(lambda gradient, share=share: gradient * share)
        return {f"unimodal_{modality}": loss for modality, loss in losses.items()}


def shares(losses: Mapping[str, Tensor], balance: float) -> dict[str, Tensor]:
    """How much of its gradient each modality keeps, in (0, 1], from its mean loss in nats."""
    right = {modality: torch.exp(-loss.detach()) for modality, loss in losses.items()}
    kept = {}
    for modality, own in right.items():
        others = [value for other, value in right.items() if other != modality]
        ratio = own / torch.stack(others).mean().clamp(min=1e-9) if others else own.new_ones(())
        kept[modality] = torch.where(ratio > 1, 1 - torch.tanh(balance * ratio), torch.ones_like(ratio))
    return kept
