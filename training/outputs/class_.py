"""The answer is one of the training labels.

Shapes: B rows, C classes.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from training.label_metrics import AUROC, AVERAGE_PRECISION, BALANCED_ACCURACY, ECE, MACRO_F1
from training.metrics import ACCURACY, CLASSES
from training.outputs.linear import IGNORED, LinearOutput
from training.outputs.string import StringOutput, finite
from training.records import Answer

if TYPE_CHECKING:
    from torch import Tensor
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    from training.settings import ModelSettings

ClassWeights = Literal["none", "balanced"]
_LONGEST = 100  # characters of a class's name; more is a text


class ClassOutput(LinearOutput, StringOutput):
    """A linear layer on what the language model makes of all positions. Targets are classes (B,), logits (B, C)."""

    metrics = (ACCURACY, BALANCED_ACCURACY, MACRO_F1, AUROC, AVERAGE_PRECISION, ECE)
    share = right = ACCURACY

    @dataclass(frozen=True, kw_only=True)
    class Options:
        # balanced: the loss counts each class as if all had as many rows, which its probabilities then assume, too
        weights: ClassWeights = "none"

    def __init__(self, fitted: Mapping[str, Any], options: Options | None = None) -> None:
        super().__init__(fitted)
        self.options = options or self.Options()
        self.weights: list[float] | None = fitted.get("weights")
        self.classes: list[str] = list(fitted.get("classes", ()))
        self._numbers = {label: number for number, label in enumerate(self.classes)}

    def is_class(self, labels: Mapping[str, int]) -> bool:
        return True

    def doubt(self, label: str, settings: "ModelSettings") -> str | None:
        if len(label) > _LONGEST:
            return f"has {len(label):,} characters, which is no name of a class: does align.label name another column?"
        return "holds a line break" if "\n" in label or "\r" in label else None

    def fit(
        self, labels: Sequence[str], tokenizer: "PreTrainedTokenizerBase | None", settings: "ModelSettings"
    ) -> dict[str, Any]:
        """classes: the distinct labels, sorted; weights of these, where asked for."""
        if not (classes := sorted(set(labels))):
            raise ValueError("output is 'class' and there are no classes: no training row has a label")
        counts = Counter(labels)
        balanced = {"weights": [len(labels) / len(classes) / counts[name] for name in classes]}
        return {"classes": classes, **(balanced if self.options.weights == "balanced" else {})}

    def targets(self, labels: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> "Tensor":
        import torch

        # A label that training never saw has no class: it is left out of the loss, and counts as wrong otherwise.
        return torch.tensor([self._numbers.get(label, IGNORED) for label in labels])

    @property
    def width(self) -> int:
        return len(self.classes)

    @property
    def loss_of_nothing(self) -> float:
        return math.log(max(2, len(self.classes)))

    def loss(self, logits: "Tensor", targets: "Tensor", smoothing: float = 0.0) -> "Tensor":
        import torch
        from torch.nn import functional

        if self.weights is None:
            return super().loss(logits, targets.long(), smoothing)
        weights = torch.tensor(self.weights, device=logits.device)
        return functional.cross_entropy(logits.float(), targets.long(), weights, label_smoothing=smoothing)

    def surprises_of(self, logits: "Tensor", targets: "Tensor", temperatures: Sequence[float]) -> "Tensor":
        import torch
        from torch.nn import functional

        of = [functional.cross_entropy(logits / t, targets.long(), reduction="none") for t in temperatures]
        return torch.stack(of)

    def answers_of(self, logits: "Tensor") -> list[Answer]:
        probabilities_BC = (logits / self.temperature).softmax(-1)
        chances, numbers = (x.tolist() for x in probabilities_BC.topk(min(CLASSES, len(self.classes))))
        chosen = logits.argmax(-1).tolist()  # not of the probabilities, which may make ties
        return [
            Answer(
                self.classes[number],
                finite(probabilities[number]),
                tuple((self.classes[n], chance) for n, chance in zip(of, best, strict=True) if math.isfinite(chance)),
            )
            for number, probabilities, of, best in zip(chosen, probabilities_BC.tolist(), numbers, chances, strict=True)
        ]
