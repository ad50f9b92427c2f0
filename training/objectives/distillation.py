"""The fused representation should be a teacher's."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from training.objectives import options as options_module
from training.objectives.base import Objective

if TYPE_CHECKING:
    from training.model_config import ModelOutput


class DistillationObjective(Objective):
    """1/2 ||x_m - x_m*||^2, the mean over the rows that the teacher knows: x_m is the mean of the row's soft tokens,
    x_m* the teacher's, of all that the row has (`training.representations`). A row of which something is hidden, or
    that the student cannot read, so learns what it would be with it."""

    Options = options_module.Distillation

    def forward(self, output: "ModelOutput", batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        assert output.x_m is not None
        x_BXD, teacher_BD = output.x_m.float(), batch["teacher"]
        read_BX1 = (x_BXD.new_ones(x_BXD.shape[:2]) if output.x_m_mask is None else output.x_m_mask.float())[..., None]
        x_BD = (x_BXD * read_BX1).sum(1) / read_BX1.sum(1).clamp(min=1)
        known_B = teacher_BD.isfinite().all(1)
        distances_B = (x_BD - teacher_BD.nan_to_num()).square().sum(1) / 2
        return {"distillation": (distances_B * known_B).sum() / known_B.sum().clamp(min=1)}
