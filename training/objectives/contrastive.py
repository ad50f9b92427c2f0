"""What one row has of two modalities should lie together."""

import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.distributed import beside
from training.objectives.base import Objective
from training.objectives.options import Options

if TYPE_CHECKING:
    from training.model_config import FusionConfig, ModelOutput
    from training.settings import TrainingSettings

_TEMPERATURE = 0.07  # at first, as of CLIP
_SHARPEST = math.log(100)


class ContrastiveObjective(Objective):
    """For each pair of modalities CLIP's loss (Radford et al. 2021): of the rows of the batch that have both, the mean
    token of each side, projected, is to find the other side of its own row among all, both ways.

    Needs no label. A content that stands in two rows of a batch is told to be two, so it suits data in which few do.
    """

    def __init__(self, config: "FusionConfig", training: "TrainingSettings", options: Options) -> None:
        super().__init__(config, training, options)
        modalities = config.modalities
        self.projections = nn.ModuleDict({m: nn.Linear(config.width, config.width, bias=False) for m in modalities})
        self.scale = nn.Parameter(torch.tensor(-math.log(_TEMPERATURE)))

    def forward(self, output: "ModelOutput", batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        assert output.tokens is not None and output.masks is not None
        places, present = {}, {}
        for modality, tokens_BTD in output.tokens.items():
            real_BT1 = output.masks[modality][..., None].to(tokens_BTD.dtype)
            mean_BD = (tokens_BTD * real_BT1).sum(1) / real_BT1.sum(1).clamp(min=1)
            places[modality] = beside(functional.normalize(self.projections[modality](mean_BD).float(), dim=1))
            present[modality] = beside(output.masks[modality].any(1))
        losses = {}
        for one, other in itertools.combinations(places, 2):
            both = present[one] & present[other]
            said_RR = self.scale.clamp(max=_SHARPEST).exp() * places[one][both] @ places[other][both].T
            own_R = torch.arange(len(said_RR), device=said_RR.device)
            loss = said_RR.sum() * 0  # of no rows, and of one, which has nothing to be told from
            if len(own_R) > 1:
                loss = (functional.cross_entropy(said_RR, own_R) + functional.cross_entropy(said_RR.T, own_R)) / 2
            losses[f"contrastive_{one}_{other}"] = loss
        return losses
