"""Weights of linear layers in 8 bits, by torchao; what they read stays as it is."""

from typing import Any

from training.variants.int8 import Int8Variant


class Int8WeightsVariant(Int8Variant):
    """As `int8`, without its activations: files are as small, each answer is nearer to the full model's, and a layer
    turns its weight into floats whenever it reads."""

    def activations(self) -> Any:
        return None
