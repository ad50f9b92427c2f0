"""What the model reads should not tell a column of the samples: speakers, scanners, sites.

Shapes: B rows, T tokens, D width, F numbers that are read of a row, K values of the column, M rows in memory.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.distributed import beside
from training.objectives import options as options_module
from training.objectives.base import Objective
from training.outputs.linear import IGNORED

if TYPE_CHECKING:
    from training.model import FusionModel
    from training.model_config import FusionConfig, ModelOutput
    from training.settings import TrainingSettings

_MEMORY = 512  # rows that the critic is fitted on
_RIDGE = 0.01  # of features of deviation 1
_SHARP = 5.0  # at first, what its scores are multiplied by
_MOST = 4096  # numbers of a row


class CriticObjective(Objective):
    """A critic tells the column from all soft tokens x_m of a row, or from those of one modality, and the gradient of
    its loss is turned round before it reaches the model (Ganin & Lempitsky 2015, "Unsupervised Domain Adaptation by
    Backpropagation").

    Where the paper's critic learns by gradients, too, this one is, at each step, the linear classifier of least squares
    of the rows before (ridge regression). One that learns step by step lags behind: the model turns its representation
    where the critic does not look yet, which fools that one and no other.

    A row of which the column says nothing, or that lacks the modality, does not count.
    """

    Options = options_module.Critic
    read_MF: Tensor
    said_MK: Tensor
    count: Tensor

    def __init__(self, config: "FusionConfig", training: "TrainingSettings", options: options_module.Critic) -> None:
        super().__init__(config, training, options)
        self.options, self.classes = options, dict[str, int]()
        self.log_sharpness = nn.Parameter(
            torch.tensor(math.log(_SHARP))
        )  # of the scores, before they are probabilities

    def fit(self, model: "FusionModel", said: Mapping[str, str]) -> None:
        self.classes = {value: number for number, value in enumerate(sorted(set(said.values())))}
        if not 1 < len(self.classes) < len(said):
            raise ValueError(
                f"training.objectives: critic: column is {self.options.column!r}, expected one with several values, "
                f"which recur: {len(said):,} training rows have {len(self.classes):,} different ones"
            )
        tokens_BNTD = torch.zeros_like(model.fusion.stand_in_NTD)[None]
        read_BTD = tokens_BNTD[:, 0]
        if self.options.on == options_module.FUSED:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):  # dropout draws
                read_BTD = model.fuse(tokens_BNTD, torch.ones_like(tokens_BNTD[..., 0], dtype=torch.bool))
        size = side_by_side(read_BTD, None).shape[1]
        self.register_buffer("read_MF", torch.zeros(_MEMORY, size))
        self.register_buffer("said_MK", torch.zeros(_MEMORY, len(self.classes)))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))  # rows that were ever in it

    def numbers(self, said: Mapping[str, str]) -> dict[str, int]:
        return {sample: self.classes[value] for sample, value in said.items()}

    @property
    def strength(self) -> float:
        """What the gradient that is turned round is multiplied by."""
        growth = 2 / (1 + math.exp(-10 * self.progress)) - 1 if self.options.ramp else 1.0
        return self.options.strength * growth

    def forward(self, output: "ModelOutput", batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        assert output.tokens is not None and output.masks is not None and output.x_m is not None
        if (on := self.options.on) == options_module.FUSED:
            read, mask, there_B = output.x_m, output.x_m_mask, torch.ones_like(batch["column"], dtype=torch.bool)
        else:
            read, mask, there_B = output.tokens[on], output.masks[on], output.masks[on].any(1)
        kept = batch.get("mixing", read.new_ones(()))
        both = [(kept, batch["column"])] + ([(1 - kept, batch["other_column"])] if "mixing" in batch else [])
        wanted = [(share, wanted_B.masked_fill(~there_B, IGNORED)) for share, wanted_B in both]
        with torch.autocast(read.device.type, enabled=False):
            read_BF = side_by_side(read, mask).float()
            said = [share * functional.one_hot(w_B.clamp(min=0), len(self.classes)) for share, w_B in wanted]
            known_B = beside(torch.stack([w_B != IGNORED for _, w_B in wanted]).all(0))
            known = beside(read_BF.detach())[known_B], beside(torch.stack(said).sum(0).float())[known_B]
            scores_BK = self._scores(Reversal.apply(read_BF, self.strength), *known) * self.log_sharpness.exp()
            self._remember(*known)
            losses = [share * _mean_loss(scores_BK, w_B) for share, w_B in wanted]
        return {"critic": torch.stack(losses).sum()}

    def _scores(self, read_BF: Tensor, own_RF: Tensor, own_RK: Tensor) -> Tensor:
        """What the critic says of rows (B, K): that of those in memory, or where there are none yet, of the batch's."""
        size = min(int(self.count), _MEMORY)
        x_MF, y_MK = (self.read_MF[:size], self.said_MK[:size]) if size else (own_RF, own_RK)
        if not len(x_MF):
            return read_BF.sum(1, keepdim=True) * 0 + y_MK.new_zeros(y_MK.shape[1])
        with torch.no_grad():
            mean_F, deviation_F, share_K = x_MF.mean(0), x_MF.std(0, correction=0).clamp(min=1e-6), y_MK.mean(0)
            x_MF = (x_MF - mean_F) / deviation_F
            # In the space of the rows, which is never larger than the memory.
            gram_MM = x_MF @ x_MF.T / len(x_MF) + _RIDGE * torch.eye(len(x_MF), device=x_MF.device)
            weight_FK = x_MF.T @ torch.linalg.solve(gram_MM, y_MK - share_K) / len(x_MF)
        scores_BK: Tensor = (read_BF - mean_F) / deviation_F @ weight_FK + share_K
        return scores_BK

    def _remember(self, read_RF: Tensor, said_RK: Tensor) -> None:
        """In the place of the rows that are there the longest."""
        read_RF, said_RK = read_RF[-_MEMORY:], said_RK[-_MEMORY:]
        at_R = (self.count + torch.arange(len(read_RF), device=read_RF.device)) % _MEMORY
        self.read_MF[at_R], self.said_MK[at_R] = read_RF, said_RK
        self.count += len(read_RF)


def _mean_loss(scores_BK: Tensor, wanted_B: Tensor) -> Tensor:
    """Cross entropy of the rows that count; 0 where there are none."""
    loss = functional.cross_entropy(scores_BK, wanted_B, ignore_index=IGNORED, reduction="sum")
    return loss / (wanted_B != IGNORED).sum().clamp(min=1)


class Reversal(torch.autograd.Function):
    """Its input; and of a gradient minus `strength` times that."""

    @staticmethod
    def forward(context: Any, values: Tensor, strength: float) -> Tensor:
        context.strength = strength
        return values.view_as(values)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -context.strength * gradients[0], None


def side_by_side(tokens_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    """All that the tokens say (B, F), zero where they are not real; of very many the mean."""
    if mask_BT is None:
        mask_BT = torch.ones_like(tokens_BTD[..., 0], dtype=torch.bool)
    real_BTD = torch.where(mask_BT[..., None], tokens_BTD, 0)
    if real_BTD[0].numel() <= _MOST:
        return real_BTD.flatten(1)
    return real_BTD.sum(1) / mask_BT.sum(1, keepdim=True).clamp(min=1)
