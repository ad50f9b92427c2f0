"""Temperature scaling: of the answers with a probability of 0.8 about four in five shall be right (Guo et al. 2017, "On
Calibration of Modern Neural Networks")."""

from collections.abc import Iterable, Sequence

import numpy as np
from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from training.model import FusionModel

TEMPERATURES = np.geomspace(0.5, 10, 31)


def calibrate(
    model: FusionModel,
    batches: Iterable[dict[str, Tensor]],
    labels: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Sets the temperature that makes the labels of the rows most likely, and stores it with the model, in `fitted`;
    where several answer, of each one.

    One pass, and nothing is kept of it but sums: a language model's logits would fill the memory. Which answer is given
    never changes. Nothing happens where the output has no probabilities, or no row has a label that the model knows.

    Args:
        batches, labels: of rows that trained nothing, in one order.
    """
    if not model.output.has_probabilities:
        return
    sums, rows, begun = np.zeros((1, len(TEMPERATURES))), np.zeros(1, int), 0
    for batch in batches:
        size = len(batch["present"])
        told = model.surprises(batch, tokenizer, labels[begun : begun + size], TEMPERATURES.tolist()).double().cpu()
        told_PGB = told.reshape(-1, *told.shape[-2:]).numpy()  # P: those that have a temperature of their own
        sums, rows = sums + told_PGB.sum(2), rows + (told_PGB != 0).any(1).sum(1)
        begun += size
    found = [
        {"temperature": _lowest(sum_G), "calibration_rows": int(n)} if n and np.isfinite(sum_G).all() else {}
        for sum_G, n in zip(sums, rows, strict=True)
    ]
    if begun and any(found):
        model.config.fitted = model.output.calibrated(model.config.fitted, found)
        model.output = model.config.make_output()


def _lowest(sums: np.ndarray) -> float:
    """Where a parabola through the least value and its neighbours is least; `sums` are of TEMPERATURES."""
    logs, n = np.log(TEMPERATURES), int(sums.argmin())
    if not 0 < n < len(sums) - 1:
        return float(TEMPERATURES[n])
    a, b, _ = np.polyfit(logs[n - 1 : n + 2] - logs[n], sums[n - 1 : n + 2], 2)
    return float(np.exp(logs[n] - b / (2 * a))) if a > 0 else float(TEMPERATURES[n])
