"""The contract of an objective: what the model says of a batch to named losses."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from training.distributed import beside
from training.objectives import options as options_module

if TYPE_CHECKING:
    from training.model import FusionModel
    from training.model_config import FusionConfig, ModelOutput
    from training.settings import TrainingSettings


class Objective(nn.Module):
    """A part of what training minimises: the sum of all objectives' losses, each times its objective's weight.

    It may have parameters (a projection, say): they train with the model's, lie in the checkpoints, and are dropped
    when training ends, so the model that answers never has them. Options of a kind are a subclass of `Options`.
    """

    Options: ClassVar = options_module.Options
    progress: float = 1.0  # the share of the training that is done; set before each step

    def __init__(self, config: "FusionConfig", training: "TrainingSettings", options: options_module.Options) -> None:
        super().__init__()
        self.weight, self.reads_alone = options.weight, options.reads_alone
        self.output, self.smoothing = config.make_output(), training.label_smoothing

    def fit(self, model: "FusionModel", said: Mapping[str, str]) -> None:
        """What it takes over of the model that it is part of, and of the training rows, before the first step.

        Args:
            said: sample id -> what the column says that the option `column` names, where it says something.

        Raises:
            ValueError: nothing can be learned of it.
        """

    def answer_loss(self, logits: Tensor, batch: Mapping[str, Tensor], rows: Any = slice(None)) -> Tensor:
        """The output's own loss, smoothed by `training.label_smoothing`, of logits of those rows of the batch; where
        rows are mixed, of both labels that a row has (`training.mixing`)."""
        # Answers that say something beside one another only are told from those of all processes.
        of = beside if self.output.views else lambda mine: mine
        logits = of(logits)
        loss = self.output.loss(logits, of(batch["labels"][rows]), self.smoothing)
        if "mixing" not in batch:
            return loss
        other = self.output.loss(logits, of(batch["other_labels"][rows]), self.smoothing)
        return batch["mixing"] * loss + (1 - batch["mixing"]) * other

    def forward(self, output: "ModelOutput", batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scalars by name, not weighted; no other objective uses the same name.

        Args:
            output: logits, x_m, and the tokens of each modality with their masks, through which all gradients of an
                encoder go; `loss` is not there yet.
            batch: what the model was given, labels included; see `answer_loss`.
        """
        raise NotImplementedError
