"""What outputs have in common that a linear layer gives.

Shapes: B rows, S positions, D width of the language model, C logits of a row.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from training.outputs.base import AnsweringModel, Asked, Output
from training.records import Answer

if TYPE_CHECKING:
    from torch import Tensor, nn


IGNORED = -100  # a target that does not count


class HeadOutput(Output):
    """`model.head` on what the language model makes of all positions."""

    def language_model(self) -> Any:
        from transformers import AutoModel

        return AutoModel

    def logits(
        self, model: AnsweringModel, embeddings_BSD: "Tensor", mask_BS: "Tensor", targets: "Tensor | None"
    ) -> "Tensor":
        assert model.head is not None
        return model.head(model.read(embeddings_BSD, mask_BS).last_hidden_state, mask_BS)


class LinearOutput(HeadOutput):
    """A linear layer on what the language model makes of all positions (`training.layers.Readout`); logits are (B, C).

    What it answers can be one of several (`training.outputs.several`).
    """

    @property
    def width(self) -> int:
        """C."""
        raise NotImplementedError

    @property
    def target_width(self) -> int | None:
        """T where targets are (B, T); None: they are (B,)."""
        return None

    def head(self, width: int) -> "nn.Module | None":
        from training.layers import Readout

        return Readout(width, self.width)

    @property
    def parts(self) -> "dict[str, LinearOutput]":
        """Those that answer by themselves, in the order of their logits, by name; "": it is one."""
        return {"": self}

    def parted(self, logits: "Tensor", targets: "Tensor") -> "dict[str, tuple[Tensor, Tensor, Tensor]]":
        """Of each of the parts the numbers of the rows (R,) with a target of it, logits and targets of these."""
        import torch

        return {"": (torch.arange(len(logits), device=logits.device), logits, targets)}

    def answers_of(self, logits: "Tensor") -> list[Answer]:
        """What each row's logits (B, C) say."""
        raise NotImplementedError

    def surprises_of(self, logits: "Tensor", targets: "Tensor", temperatures: Sequence[float]) -> "Tensor":
        """As `surprises` (G, B), of the targets by the logits (B, C)."""
        raise NotImplementedError

    def scored_answers(self, asked: Asked) -> list[Answer]:
        return self.answers_of(self._said(asked))

    def said(self, asked: Asked, targets: "Tensor") -> "tuple[Tensor, list[Answer]]":
        logits = self._said(asked)
        return logits, self.answers_of(logits)

    def surprises(self, asked: Asked, labels: Sequence[str], temperatures: Sequence[float]) -> "Tensor":
        logits = self._said(asked)
        return self.surprises_of(logits, self.targets(labels, asked.tokenizer).to(logits.device), temperatures)

    def _said(self, asked: Asked) -> "Tensor":
        logits = self.logits(asked.model, asked.embeddings_BSD, asked.mask_BS, None).float()
        return logits if asked.beside is None else with_linear(logits, *asked.beside)


def with_linear(logits: "Tensor", said_BC: "Tensor", share_BC: "Tensor") -> "Tensor":
    """The logits (B, C or more), the first C of which are in part what a linear model says."""
    import torch

    own_BC, rest = logits.float().split([said_BC.shape[1], logits.shape[1] - said_BC.shape[1]], 1)
    return torch.cat([own_BC.lerp(said_BC, share_BC), rest], 1)
