"""A row read several times by the language model, each time as if it had a part of its inputs only.

One modality each (`Readings`): so late fusion answers, and so an objective hears what each modality says by itself. Any
subset (`Views`): so an output is trained whose answers to parts of a row are held beside one another.

Shapes: B rows, R readings, V views, N modalities, T tokens of each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList

from training.outputs.base import AnsweringModel


class PromptTokens(NamedTuple):
    """What the language model reads of rows beside x_m: tokens (B, P) of the modality that it reads itself, and (B, C)
    of the columns that a template names, with their masks; None where there are none."""

    ids: Tensor | None = None
    mask: Tensor | None = None
    column_ids: Tensor | None = None
    column_mask: Tensor | None = None

    def of(self, rows_R: Tensor, shown_RN: Tensor, modalities: Sequence[str], prompt: str | None) -> "PromptTokens":
        """Those of parts of rows: the prompt's where the modality `prompt` is shown, the columns' of all."""
        ids, mask = self.ids, self.mask
        if ids is not None and mask is not None and prompt is not None:
            asked_R = shown_RN[:, modalities.index(prompt)]
            ids, mask = ids[rows_R], mask[rows_R] & asked_R[:, None]
        columns = (None if x is None else x[rows_R] for x in (self.column_ids, self.column_mask))
        return PromptTokens(ids, mask, *columns)


@dataclass(frozen=True)
class Readings:
    """Which rows are read: those of one row follow one another, and each row has at least one."""

    rows_R: Tensor  # the row that is read
    modality_R: Tensor  # number of the modality that is read; N where the row is read as it is

    @classmethod
    def of(cls, present_BN: Tensor, whole: bool = False) -> "Readings":
        """One of each modality that a row has, or of a row that has none.

        Args:
            whole: and one of all that a row has, where it has several.
        """
        count_B1 = present_BN.sum(1, keepdim=True)
        whole_B1 = (count_B1 != 1) if whole else (count_B1 == 0)
        return cls(*torch.cat([present_BN, whole_B1], dim=1).nonzero(as_tuple=True))

    def masked(self, mask_BNT: Tensor) -> Tensor:
        """The mask of each reading (R, N, T): that of its row and modality."""
        modalities = mask_BNT.shape[1]
        numbers_N, modality_R1 = torch.arange(modalities, device=mask_BNT.device), self.modality_R[:, None]
        return mask_BNT[self.rows_R] & ((numbers_N == modality_R1) | (modality_R1 == modalities))[..., None]

    @property
    def first_B(self) -> Tensor:
        """The first reading of each row."""
        starts_R = torch.ones_like(self.rows_R, dtype=torch.bool)
        starts_R[1:] = self.rows_R[1:] != self.rows_R[:-1]
        return starts_R.nonzero()[:, 0]

    def averaged(self, said: Tensor) -> Tensor:
        """What was said of each reading (R, ...), or of k beams of each (R * k, ...): the mean over its row's."""
        beams = len(said) // len(self.rows_R)
        rows = (self.rows_R[:, None] * beams + torch.arange(beams, device=said.device)).flatten()
        sums = said.new_zeros(len(self.first_B) * beams, *said.shape[1:]).index_add(0, rows, said)
        counts = rows.bincount().reshape(-1, *[1] * (said.ndim - 1))
        return (sums / counts)[rows]


@dataclass(frozen=True)
class Views:
    """Which views (`Output.views`) are read of which rows: of each row those that show a part of what it has.

    Where there is none the first row is read whole, and counts for nothing: no model reads a batch without rows.
    """

    rows_R: Tensor
    views_R: Tensor  # number of the view
    shown_RN: Tensor  # whether it shows a modality
    are_some: bool = True

    @classmethod
    def of(cls, views: Sequence[Sequence[str]], modalities: Sequence[str], present_BN: Tensor) -> "Views":
        shown = [[m in view for m in modalities] for view in views]
        shown_VN = torch.tensor(shown, device=present_BN.device)
        known = [set(view) <= set(modalities) for view in views]
        has_BVN = present_BN[:, None]
        is_part_BV = (has_BVN | ~shown_VN).all(2) & (has_BVN & ~shown_VN).any(2)
        rows_R, views_R = (is_part_BV & torch.tensor(known, device=present_BN.device)).nonzero(as_tuple=True)
        if len(rows_R) == 0:
            none_R = rows_R.new_zeros(1)
            return cls(none_R, none_R, present_BN[:1], False)
        return cls(rows_R, views_R, shown_VN[views_R])

    def spread(self, said: Tensor, rows: int, views: int) -> Tensor:
        """What was said of each reading (R, ...), by row and view (B, V, ...); zeros where nothing was read."""
        said = said if self.are_some else said * 0.0
        return said.new_zeros(rows, views, *said.shape[1:]).index_put((self.rows_R, self.views_R), said)


class AveragedModel(AnsweringModel):
    """A model as an output sees it to whom the readings of a row say the same: the mean of their logits.

    The mean of logits is, but for a constant that softmax does not see, the mean of log-probabilities. Answers that are
    generated greedily or by beams stay the same for all readings of a row, and so do drawn ones, by their one seed.
    """

    def __init__(self, model: AnsweringModel, readings: Readings) -> None:
        self.model, self.readings = model, readings
        self.llm, self.config = self, model.config  # it generates, see below

    @property
    def head(self) -> Any:
        return None if self.model.head is None else lambda *read: self.readings.averaged(self.model.head(*read))

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def read(self, embeddings_BSD: Tensor, mask_BS: Tensor, **options: Any) -> Any:
        said = self.model.read(embeddings_BSD, mask_BS, **options)
        if "logits" in said:
            said["logits"] = self.readings.averaged(said["logits"])
        return said

    def generate(self, **options: Any) -> Any:
        """The language model's own, with each next token chosen by all readings of a row."""
        processors = [_Averaged(self.readings), *options.pop("logits_processor", ())]
        return self.model.llm.generate(**options, logits_processor=LogitsProcessorList(processors))


class _Averaged(LogitsProcessor):
    def __init__(self, readings: Readings) -> None:
        self.readings = readings

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self.readings.averaged(scores)
