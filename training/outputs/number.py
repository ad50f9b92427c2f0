"""The answer is a number.

Shapes: B rows.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, median, pstdev
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from training.number_metrics import EXPLAINED, MAE, R2, RMSE, SPEARMAN
from training.outputs.linear import LinearOutput
from training.records import Answer

if TYPE_CHECKING:
    from torch import Tensor
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    from training.settings import ModelSettings


class NumberOutput(LinearOutput):
    """A linear layer on what the language model makes of all positions. Targets (B,) and logits (B, 1) are in
    deviations from the mean of the training labels, so that their unit is nothing to the learning rate; the loss is
    their mean square error."""

    metrics = (MAE, RMSE, R2, SPEARMAN)
    share = EXPLAINED
    arrow_type = pa.float64()

    def __init__(self, fitted: Mapping[str, Any]) -> None:
        self.mean, self.deviation = float(fitted.get("mean", 0.0)), float(fitted.get("deviation", 1.0))

    def read(self, label: str) -> float:
        try:
            value = float(label.strip().replace("_", "?"))  # Python would take 1_0
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError("it is no number, as 12, -3.5 and 1e6 are")
        return value

    def fit(
        self, labels: Sequence[str], tokenizer: "PreTrainedTokenizerBase | None", settings: "ModelSettings"
    ) -> dict[str, Any]:
        """mean and deviation."""
        if not (values := [self.read(label) for label in labels]):
            raise ValueError("output is 'number' and there is none: no training row has a label")
        return {"mean": fmean(values), "deviation": pstdev(values) or 1.0}

    def targets(self, labels: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> "Tensor":
        import torch

        return torch.tensor([(self.read(label) - self.mean) / self.deviation for label in labels])

    @property
    def width(self) -> int:
        return 1

    def loss(self, logits: "Tensor", targets: "Tensor", smoothing: float = 0.0) -> "Tensor":
        from torch.nn import functional

        return functional.mse_loss(logits.float().reshape(targets.shape), targets.float())

    def answers_of(self, logits: "Tensor") -> list[Answer]:
        values = (logits[:, 0].double() * self.deviation + self.mean).tolist()
        return [Answer(value if math.isfinite(value) else None) for value in values]

    def constant(self, labels: Sequence[Any]) -> Any:
        """The median, which has the least absolute error."""
        return median(labels) if labels else None
