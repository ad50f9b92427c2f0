"""The layers of a language model compiled one by one: they are alike, so the code of one serves all of them, and it is
made in a minute where that of the whole model takes many (PyTorch's regional compilation).

Shapes: B rows, S positions, D width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_layers import GradientCheckpointingLayer

_MULTIPLE = 16  # positions: kernels read whole tiles, and few lengths leave little to compile anew


class CompiledLayers:
    """Used in training only: answers are generated in many more shapes."""

    def __init__(self, llm: nn.Module) -> None:
        layers: list[nn.Module] = [module for module in llm.modules() if isinstance(module, GradientCheckpointingLayer)]
        # As nn.Module.compile, which has no way back. Of any length: else the first one would be compiled for itself.
        self._compiled: list[tuple[Any, Any]] = [
            (layer, torch.compile(layer._call_impl, dynamic=True)) for layer in layers or [llm]
        ]

    def use(self, in_use: bool) -> None:
        for layer, compiled in self._compiled:
            layer._compiled_call_impl = compiled if in_use else None

    @staticmethod
    def padded(embeddings_BSD: Tensor, mask_BS: Tensor) -> tuple[Tensor, Tensor]:
        """The sequence with a length that is compiled for, padded on the left."""
        more = -embeddings_BSD.shape[1] % _MULTIPLE
        return functional.pad(embeddings_BSD, (0, 0, more, 0)), functional.pad(mask_BS, (more, 0))
