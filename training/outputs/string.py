"""What outputs have in common whose answer is a string that is right or wrong."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from training.metrics import ACCURACY, label_figures, most_frequent
from training.outputs.base import Output
from training.records import Figure

if TYPE_CHECKING:
    from torch import Tensor


class StringOutput(Output):
    """Right where it is the label but for space around it. The loss is the cross entropy of classes or tokens (B, ...),
    where -100 does not count."""

    metrics = (ACCURACY,)
    arrow_type = pa.string()

    def read(self, label: str) -> str:
        return label

    def loss(self, logits: "Tensor", targets: "Tensor", smoothing: float = 0.0) -> "Tensor":
        from torch.nn import functional

        return functional.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), label_smoothing=smoothing)

    def constant(self, labels: Sequence[Any]) -> Any:
        return most_frequent(labels)

    def figures(self, labels: Sequence[Any], predictions: Sequence[Any], seed: int = 0) -> dict[str, Figure]:
        """accuracy; and balanced_accuracy and f1 where there are 2 to 50 labels."""
        return {**super().figures(labels, predictions, seed), **label_figures(labels, predictions, seed)}
