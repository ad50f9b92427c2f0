"""The answer is any number of the training labels.

Shapes: B rows, C labels.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from training.metrics import CLASSES
from training.multi_label_metrics import ECE, MACRO_F1, MAP, SAMPLE_F1, SUBSET_ACCURACY
from training.outputs.class_ import ClassWeights
from training.outputs.linear import LinearOutput
from training.outputs.string import finite, names_of
from training.records import Answer
from training.validation import check

if TYPE_CHECKING:
    from torch import Tensor
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    from training.settings import ModelSettings

_MOST_TRIED = 50  # names of a constant answer


class MultiLabelOutput(LinearOutput):
    """A linear layer on what the language model makes of all positions, a yes or no of each label. Targets are 0 or
    1, and logits, (B, C); the loss is their binary cross entropy."""

    metrics = (SAMPLE_F1, SUBSET_ACCURACY, MACRO_F1, MAP, ECE)
    share, right = SAMPLE_F1, SUBSET_ACCURACY
    arrow_type = pa.list_(pa.string())
    has_probabilities = True

    @dataclass(frozen=True, kw_only=True)
    class Options:
        separator: str = ";"  # of the labels in a cell; a list (of Parquet or JSON) needs none
        # balanced: as if each label stood in half of the rows
        weights: ClassWeights = "none"

        def __post_init__(self) -> None:
            check(self.separator.strip() != "", "separator", self.separator, "a sign between labels, such as ; or |")

    def __init__(self, fitted: Mapping[str, Any], options: Options | None = None) -> None:
        self.options = options or self.Options()
        self.labels: list[str] = list(fitted.get("labels", ()))
        self.weights: list[float] | None = fitted.get("weights")
        self.temperature = float(fitted.get("temperature", 1.0))
        self._numbers = {label: number for number, label in enumerate(self.labels)}

    def read(self, label: str) -> list[str]:
        """The names, each once, in their order; `[]`, or a separator alone, is none."""
        return sorted(set(names_of(label, self.options.separator)))

    def fit(
        self, labels: Sequence[str], tokenizer: "PreTrainedTokenizerBase | None", settings: "ModelSettings"
    ) -> dict[str, Any]:
        """labels: the distinct ones, sorted; weights: of a yes to each, where asked for."""
        counts = Counter(name for label in labels for name in self.read(label))
        if not counts:
            raise ValueError("output is 'multi_label' and there are no labels: no training row has any")
        names, rows = sorted(counts), len(labels)
        balanced = {"weights": [(rows - counts[name]) / counts[name] or 1.0 for name in names]}
        return {"labels": names, **(balanced if self.options.weights == "balanced" else {})}

    def targets(self, labels: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> "Tensor":
        import torch

        targets_BC = torch.zeros(len(labels), len(self.labels))
        for row, label in enumerate(labels):
            # One that training never saw has no column: it is left out of the loss, and counts as missed otherwise.
            targets_BC[row, [self._numbers[name] for name in self.read(label) if name in self._numbers]] = 1
        return targets_BC

    @property
    def width(self) -> int:
        return len(self.labels)

    @property
    def target_width(self) -> int:
        return len(self.labels)

    @property
    def loss_of_nothing(self) -> float:
        return math.log(2)

    def loss(self, logits: "Tensor", targets: "Tensor", smoothing: float = 0.0) -> "Tensor":
        import torch
        from torch.nn import functional

        weights = None if self.weights is None else torch.tensor(self.weights, device=logits.device)
        wanted = targets * (1 - smoothing) + smoothing / 2
        return functional.binary_cross_entropy_with_logits(logits.float(), wanted, pos_weight=weights)

    def surprises_of(self, logits: "Tensor", targets: "Tensor", temperatures: Sequence[float]) -> "Tensor":
        import torch
        from torch.nn import functional

        cross = functional.binary_cross_entropy_with_logits
        return torch.stack([cross(logits / t, targets, reduction="none").sum(1) for t in temperatures])

    def answers_of(self, logits: "Tensor") -> list[Answer]:
        """A label is answered where yes is likelier than no; the probability is that all of these are right, each taken
        by itself, and the best are labels with their own."""
        chances_BC = (logits / self.temperature).sigmoid()
        together_B = chances_BC.maximum(1 - chances_BC).double().prod(1)
        top, numbers = chances_BC.topk(min(CLASSES, len(self.labels)))
        rows = zip((logits > 0).tolist(), together_B.tolist(), top.tolist(), numbers.tolist(), strict=True)
        return [
            Answer(
                [name for name, yes in zip(self.labels, chosen, strict=True) if yes],
                finite(together),
                tuple((self.labels[n], chance) for n, chance in zip(of, best, strict=True) if math.isfinite(chance)),
            )
            for chosen, together, best, of in rows
        ]

    def constant(self, labels: Sequence[Any]) -> Any:
        """So many of the most frequent labels as have the best F1 by row."""
        if not labels:
            return None
        usual = [name for name, _ in Counter(name for label in labels for name in label).most_common(_MOST_TRIED)]
        tried = [sorted(usual[:most]) for most in range(len(usual) + 1)]
        return max(tried, key=lambda names: SAMPLE_F1.value(labels, [names] * len(labels)) or 0.0)
