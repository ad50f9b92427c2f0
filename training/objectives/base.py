"""The contract of an objective: what the model says of a batch to named losses."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from training.objectives import options as options_module

if TYPE_CHECKING:
    from training.model_config import FusionConfig, ModelOutput
    from training.settings import TrainingSettings


class Objective(nn.Module):
    """A part of what training minimises: the sum of all objectives' losses, each times its objective's weight.

    It may have parameters (a projection, say): they train with the model's, lie in the checkpoints, and are dropped
    when training ends, so the model that answers never has them. Options of a kind are a subclass of `Options`.
    """

    Options: ClassVar = options_module.Options
    reads_alone: ClassVar[bool] = False  # true: `output.alone` is worked out, which costs a reading for each modality

    def __init__(self, config: "FusionConfig", training: "TrainingSettings", options: options_module.Options) -> None:
        super().__init__()
        self.weight = options.weight

    def forward(self, output: "ModelOutput", batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scalars by name, not weighted; no other objective uses the same name.

        Args:
            output: logits, x_m, and the tokens of each modality with their masks, through which all gradients of an
                encoder go; `loss` is not there yet.
            batch: what the model was given, labels included.
        """
        raise NotImplementedError
