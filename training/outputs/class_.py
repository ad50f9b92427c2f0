"""The answer is one of the training labels.

Shapes: B rows, C classes.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from training.outputs.base import AnsweringModel
from training.outputs.string import StringOutput

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    from training.settings import ModelSettings

_LONGEST = 100  # characters of a class's name; more is a text


class ClassOutput(StringOutput):
    """A linear layer on what the language model makes of the last position. Targets are classes (B,), logits (B, C)."""

    def __init__(self, fitted: Mapping[str, Any]) -> None:
        super().__init__(fitted)
        self.classes: list[str] = list(fitted.get("classes", ()))
        self._numbers = {label: number for number, label in enumerate(self.classes)}

    def is_class(self, labels: Mapping[str, int]) -> bool:
        return True

    def doubt(self, label: str, settings: "ModelSettings") -> str | None:
        if len(label) > _LONGEST:
            return f"has {len(label):,} characters, which is no name of a class: does align.label name another column?"
        return "holds a line break" if "\n" in label or "\r" in label else None

    def fit(
        self, labels: Sequence[str], tokenizer: "PreTrainedTokenizerBase", settings: "ModelSettings"
    ) -> dict[str, Any]:
        """classes: the distinct labels, sorted."""
        if not (classes := sorted(set(labels))):
            raise ValueError("output is 'class' and there are no classes: no training row has a label")
        return {"classes": classes}

    def targets(self, labels: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> "Tensor":
        import torch

        # A label that training never saw has no class: it is left out of the loss, and counts as wrong otherwise.
        return torch.tensor([self._numbers.get(label, -100) for label in labels])

    def language_model(self) -> Any:
        from transformers import AutoModel

        return AutoModel

    def head(self, width: int) -> "nn.Module":
        from torch import nn

        return nn.Linear(width, len(self.classes))

    def logits(
        self, model: AnsweringModel, embeddings_BSD: "Tensor", mask_BS: "Tensor", targets: "Tensor | None"
    ) -> "Tensor":
        assert model.head is not None
        return model.head(model.read(embeddings_BSD, mask_BS).last_hidden_state[:, -1])

    def answers(
        self,
        model: AnsweringModel,
        embeddings_BSD: "Tensor",
        mask_BS: "Tensor",
        tokenizer: "PreTrainedTokenizerBase",
    ) -> list[str]:
        chosen = self.logits(model, embeddings_BSD, mask_BS, None).argmax(-1)
        return [self.classes[number] for number in chosen.tolist()]
