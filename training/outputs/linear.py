"""What outputs have in common that a linear layer gives.

Shapes: B rows, S positions, D width of the language model, C logits of a row.
"""

from typing import TYPE_CHECKING, Any

from training.outputs.base import AnsweringModel, Output

if TYPE_CHECKING:
    from torch import Tensor, nn


class LinearOutput(Output):
    """A linear layer on what the language model makes of the last position; logits are (B, C)."""

    @property
    def width(self) -> int:
        """C."""
        raise NotImplementedError

    def language_model(self) -> Any:
        from transformers import AutoModel

        return AutoModel

    def head(self, width: int) -> "nn.Module":
        from torch import nn

        return nn.Linear(width, self.width)

    def logits(
        self, model: AnsweringModel, embeddings_BSD: "Tensor", mask_BS: "Tensor", targets: "Tensor | None"
    ) -> "Tensor":
        assert model.head is not None
        return model.head(model.read(embeddings_BSD, mask_BS).last_hidden_state[:, -1])
