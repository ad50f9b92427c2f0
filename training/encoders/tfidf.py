"""TF-IDF: what a term's count weighs is how rare the term is in the training rows.

Shapes: B rows, K terms of a row, T tokens, D width.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from training.encoders.base import Encoder, all_real
from training.featurizers.base import FeatureShape
from training.layers import ModelShape


class TfidfEncoder(Encoder):
    """Counts (B, K, 2) times ln((1 + n) / (1 + d)) + 1, where d of n training rows have the term; each row brought to
    length 1 (as scikit-learn's TfidfVectorizer), then two linear layers: columns to D, D to T tokens."""

    idf: Tensor

    def __init__(self, source: FeatureShape, shape: ModelShape) -> None:
        super().__init__(source, shape)
        self.tokens = shape.tokens
        self.register_buffer("idf", torch.ones(source.width))
        self.embed = nn.Embedding(source.width, shape.width)
        self.dropout = nn.Dropout(shape.dropout)
        self.projection = nn.Linear(shape.width, shape.tokens * shape.width)

    def fit(self, rows: Iterable[np.ndarray]) -> None:
        documents, frequency = 0, np.zeros(len(self.idf))
        for terms_K2 in rows:
            documents += 1
            frequency[terms_K2[:, 0]] += 1  # a row has a term once
        self.idf.copy_(torch.from_numpy(np.log((1 + documents) / (1 + frequency)) + 1))

    def forward(self, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        assert mask is not None
        columns_BK, counts_BK = values.unbind(2)
        weights_BK = counts_BK * mask * self.idf[columns_BK]
        weights_BK = nn.functional.normalize(weights_BK, dim=1).to(self.embed.weight.dtype)
        x_BD = (weights_BK[:, None] @ self.embed(columns_BK))[:, 0]
        return all_real(self.projection(self.dropout(x_BD)).unflatten(1, (self.tokens, -1)))
