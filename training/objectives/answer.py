"""The answer should be the label."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from training.objectives.base import Objective

if TYPE_CHECKING:
    from training.model_config import ModelOutput


class AnswerObjective(Objective):
    """The output's own loss of logits and labels."""

    def forward(self, output: "ModelOutput", batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        assert output.logits is not None
        return {"answer": self.answer_loss(output.logits, batch)}
