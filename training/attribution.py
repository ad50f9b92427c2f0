"""What of a row's contents an answer hangs on: how much the log-probability of the answer owes to each pixel, each cell
of a spectrogram, each word.

Where a gradient reaches what the encoder reads (pixels, log-mel frames) these are integrated gradients (Sundararajan et
al. 2017) from a grey picture, or from silence; elsewhere, as of words and of stored embeddings, the content is read
again with one of its pieces left out at a time (Zeiler and Fergus 2014). Both by captum.

Shapes: H, W pixels; F frames, M bands; P pieces.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from training.attribution_map import AttributionMap
from training.data import Row

if TYPE_CHECKING:
    from training.collator import Collator
    from training.model import FusionModel
    from training.processor import Processor

_STEPS = 64  # from the baseline to the content
GRADIENTS, OCCLUSION = "integrated gradients", "occlusion"


class Explainer:
    """A model whose answers to single rows are explained. Of an answer that is one string: a class, or a text."""

    def __init__(self, model: "FusionModel", collator: "Collator", processor: "Processor") -> None:
        self.model, self.collator, self.processor = model, collator, processor

    def __call__(self, row: Row, contents: Mapping[str, Any], answer: str) -> list[AttributionMap]:
        """A map of each modality that the model reads of the row; where it has several contents of one, of the first.

        Args:
            row: as `Processor.row` makes it of the contents.
            contents: modality -> the content, as `Processor.decode` gives it.
        """
        shown = [m for m in self.collator.shown(row) if m in contents]
        return [found for m in shown if (found := self._map(row, m, contents[m], answer)) is not None]

    def log_probability(self, row: Row, answer: str) -> float:
        with torch.inference_mode():
            return float(self._likelihood(self.batch(row), answer))

    def batch(self, row: Row) -> dict[str, Tensor]:
        return {name: x.to(self.model.device) for name, x in self.collator([row]).items() if name != "seeds"}

    def _likelihood(self, batch: Mapping[str, Tensor], answer: str) -> Tensor:
        """The log-probability of an answer to a batch of one row (1,); of a text, of a token of it in the mean."""
        targets = self.model.output.targets([answer], self.collator.tokenizer).to(self.model.device)
        loss = self.model(**batch, labels=targets).loss
        assert loss is not None
        return -loss[None]

    def _map(self, row: Row, modality: str, content: Any, answer: str) -> AttributionMap | None:
        kind, featurizer = self.processor.modalities[modality], self.processor.featurizers[modality]
        batch = self.batch(row)
        if kind.picture == featurizer.read and modality in batch and batch[modality].is_floating_point():
            values = gradients(lambda x: self._likelihood({**batch, modality: x}, answer), batch[modality])[0]
            drawn = kind.draw(np.asarray(row[modality][kind.picture]))
            return AttributionMap(modality=modality, how=GRADIENTS, values=kind.laid(values), pixels=drawn)
        if not (pieces := kind.pieces(content)):
            return None

        def of(without: np.ndarray) -> float:  # the content with these pieces only
            left = kind.keeping(content, without.astype(bool))
            columns = None if left is None else self.processor.columns(modality, left)
            return self.log_probability({**row, modality: columns}, answer)

        owed = occlusions(of, len(pieces))
        sketch = kind.sketch(content)
        if isinstance(sketch, np.ndarray):
            return AttributionMap(modality=modality, how=OCCLUSION, values=owed.reshape(kind.grid), pixels=sketch)
        return AttributionMap(modality=modality, how=OCCLUSION, values=owed, pieces=pieces)


def gradients(of: Callable[[Tensor], Tensor], values: Tensor) -> np.ndarray:
    """What `of` the values owes to each of them: they add up to the difference between it of the values and it of the
    baseline, the mean of each picture's channel, or the least of a spectrogram."""
    from captum.attr import IntegratedGradients

    baseline = values.mean((-2, -1), keepdim=True) if values.dim() == 4 else values.amin((-2, -1), keepdim=True)
    found = IntegratedGradients(of).attribute(
        values, baselines=baseline.expand_as(values), n_steps=_STEPS, internal_batch_size=len(values)
    )
    return found.detach().float().cpu().numpy()


def occlusions(of: Callable[[np.ndarray], float], pieces: int) -> np.ndarray:
    """(P,) by how much less `of` is without each piece. Args: `of` takes which pieces are there (P,), 1 or 0."""
    from captum.attr import FeatureAblation

    def scored(there: Tensor) -> Tensor:
        return torch.tensor([of(row) for row in there.numpy()])

    owed = FeatureAblation(scored).attribute(torch.ones(1, pieces), perturbations_per_eval=1)
    return owed[0].numpy()
