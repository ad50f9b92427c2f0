"""The contract of an encoder: one modality's features to tokens that the fusion reads."""

from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from training.featurizers.base import FeatureShape
from training.layers import ModelShape


class Start(NamedTuple):
    """What a pretrained encoder starts from."""

    facts: dict[str, Any]  # plain JSON-able values from which its modules are made: a saved model has them
    weights: dict[str, Tensor]


class Encoder(nn.Module):
    """Values and mask (B, S) of one modality to tokens (B, T, width) and their mask (B, T); a mask is true where real.

    The values have the form that `source` says. Every row has at least one real position; what the mask hides never
    changes the result, and every parameter gets a gradient. A kind with options takes them as `options`; one that is
    pretrained takes the facts of its `start` as `facts`.
    """

    looks_at: ClassVar[int | None] = None  # training rows that are enough for `fit`, drawn evenly; None: all
    reads_prompt = False  # true: the values are the language model's embeddings of the text, which it reads as prompt

    def __init__(self, source: FeatureShape, shape: ModelShape) -> None:
        super().__init__()
        self.width = shape.width  # of the tokens that it gives

    def fit(self, rows: Iterable[np.ndarray]) -> None:
        """Before the first step, once: what it takes over from the training rows, into buffers, which are saved, or as
        first values of its parameters. Moves no global random state.

        Args:
            rows: tensor `Featurizer.read` of each that has the modality. It takes long to go through them.
        """

    def forward(self, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    @classmethod
    def start(cls, options: Any) -> Start | None:
        """What an encoder of these options starts from; None where it is new. Raises ValueError: it is not there."""
        return None

    def take(self, start: Start, name: str, values: Tensor, mask: Tensor | None) -> None:
        """Takes the weights, and makes of them what is to be trained.

        Args:
            name: of the encoder, as the project file says it, for errors.
            values: of an example, with its mask.
        """


def all_real(tokens_BTD: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens, and a mask that says that each is real."""
    return tokens_BTD, torch.ones_like(tokens_BTD[..., 0], dtype=torch.bool)
