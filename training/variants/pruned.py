"""Weights of little size set to zero (magnitude pruning, Han et al. 2015), and stored without the zeros."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from training.validation import FORBID_EXTRA, check
from training.variants.base import WeightsVariant, matrices, own_weights

if TYPE_CHECKING:
    from torch import Tensor

    from training.model import FusionModel


class PrunedVariant(WeightsVariant):
    """Of each matrix (linear layers, convolutions, embeddings) the smallest weights become 0. The file holds the others
    one after the other, and a bit for each weight that says whether it is there; loaded, matrices are dense again, so
    that answers take as long as the full model's."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        __pydantic_config__ = FORBID_EXTRA
        sparsity: float = 0.5  # share of each matrix that becomes 0

        def __post_init__(self) -> None:
            check(0 < self.sparsity < 1, "sparsity", self.sparsity, "above 0, below 1")

    def __init__(self, options: Options) -> None:
        self.sparsity = options.sparsity

    def stored(self, model: "FusionModel") -> "dict[str, Tensor]":
        from torch import nn

        tensors = own_weights(model)
        layers = matrices(model, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding))
        for name in layers.keys() & tensors.keys():
            tensors |= _sparse(name, tensors.pop(name), self.sparsity)
        return tensors

    def restore(self, model: "FusionModel", tensors: "dict[str, Tensor]") -> "dict[str, Tensor]":
        shapes = {name: weight.shape for name, weight in own_weights(model).items()}
        for name in self._names(tensors) & shapes.keys():
            bits, values = tensors.pop(f"{name}/bits"), tensors.pop(f"{name}/values")
            tensors[name] = _dense(bits, values, shapes[name])
        return tensors


def _sparse(name: str, weight: "Tensor", sparsity: float) -> "dict[str, Tensor]":
    """bits, uint8, and values, in the order of the flat weight."""
    import numpy as np
    import torch

    flat = weight.detach().flatten()
    least = flat.abs().float().argsort()[: math.floor(sparsity * len(flat))]
    kept = torch.ones(len(flat), dtype=torch.bool)
    kept[least] = False
    return {f"{name}/bits": torch.from_numpy(np.packbits(kept.numpy())), f"{name}/values": flat[kept]}


def _dense(bits: "Tensor", values: "Tensor", shape: "tuple[int, ...]") -> "Tensor":
    import numpy as np
    import torch

    kept = torch.from_numpy(np.unpackbits(bits.numpy(), count=math.prod(shape)).astype(bool))
    flat = values.new_zeros(math.prod(shape))
    flat[kept] = values
    return flat.reshape(shape)
