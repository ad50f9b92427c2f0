"""What outputs have in common whose answer is a string that is right or wrong."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from training.metrics import most_frequent
from training.outputs.base import Output

if TYPE_CHECKING:
    from torch import Tensor


class StringOutput(Output):
    """Right where it is the label but for space around it. The loss is the cross entropy of classes or tokens (B, ...),
    where -100 does not count."""

    arrow_type = pa.string()
    has_probabilities = True

    def __init__(self, fitted: Mapping[str, Any]) -> None:
        super().__init__(fitted)
        self.temperature = float(fitted.get("temperature", 1.0))

    def read(self, label: str) -> str:
        return label

    def loss(self, logits: "Tensor", targets: "Tensor", smoothing: float = 0.0) -> "Tensor":
        from torch.nn import functional

        return functional.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), label_smoothing=smoothing)

    def log_probabilities(self, logits: "Tensor", targets: "Tensor") -> "Tensor":
        """Of each row's answer (B,), in nats: of a text the sum of those of its tokens."""
        from torch.nn import functional

        flat = functional.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), reduction="none")
        return -flat.unflatten(0, (len(targets), -1)).sum(1)

    def counted(self, targets: "Tensor") -> int:
        return int((targets != -100).sum())

    def constant(self, labels: Sequence[Any]) -> Any:
        return most_frequent(labels)


def finite(probability: float) -> float | None:
    """None for nan, which a model that diverged gives, and JSON has no word for."""
    return probability if math.isfinite(probability) else None


def names_of(label: str, separator: str) -> list[str]:
    """The names that a cell holds: between separators, or as a JSON list. Raises ValueError: it is neither."""
    text = label.strip()
    if not (text.startswith("[") and text.endswith("]")):
        names = text.split(separator)
    else:
        try:
            names = json.loads(text)
        except ValueError as error:
            raise ValueError(f"it looks like a list and is none that JSON knows: {error}") from None
        if not all(isinstance(name, str | int | float) for name in names):
            raise ValueError("it is a list with other things than names of labels")
    return [name for name in (str(name).strip() for name in names) if name]
