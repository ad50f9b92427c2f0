"""The answer should be the label."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from training.objectives.base import Objective
from training.objectives.options import Options

if TYPE_CHECKING:
    from training.model_config import FusionConfig, ModelOutput
    from training.settings import TrainingSettings


class AnswerObjective(Objective):
    """The output's own loss of logits and labels, smoothed by `training.label_smoothing`."""

    def __init__(self, config: "FusionConfig", training: "TrainingSettings", options: Options) -> None:
        super().__init__(config, training, options)
        self.output, self.smoothing = config.make_output(), training.label_smoothing

    def forward(self, output: "ModelOutput", batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        assert output.logits is not None
        return {"answer": self.output.loss(output.logits, batch["labels"], self.smoothing)}
