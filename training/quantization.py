"""Vectors to one of a finite set.

Shapes: L numbers of a code, ... any.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class FiniteScalars(nn.Module):
    """Vector quantization whose codebook is a lattice: each number of a vector is bounded and rounded to one of a few
    levels (finite scalar quantization, Mentzer et al. 2023), so that no code lies unused and nothing has to be kept
    apart. Gradients go straight through the rounding."""

    bases_L: Tensor
    levels_L: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.size = math.prod(levels)
        self.register_buffer("levels_L", torch.tensor(levels), persistent=False)
        bases = [math.prod(levels[:n]) for n in range(len(levels))]
        self.register_buffer("bases_L", torch.tensor(bases), persistent=False)

    def forward(self, numbers: Tensor) -> Tensor:
        """(..., L) of any size to the nearest of the lattice, within [-1, 1]."""
        steps = self._steps(numbers)
        return self._scaled(steps + (steps.round() - steps).detach())

    def codes(self, numbers: Tensor) -> Tensor:
        """(..., L) to (...) of int64, below `size`."""
        return (self._steps(numbers).round().long() * self.bases_L).sum(-1)

    def numbers(self, codes: Tensor) -> Tensor:
        """(...) to the (..., L) that they stand for."""
        return self._scaled(((codes[..., None] // self.bases_L) % self.levels_L).float())

    def _steps(self, numbers: Tensor) -> Tensor:
        """0 to level - 1."""
        return (numbers.tanh() + 1) / 2 * (self.levels_L - 1)

    def _scaled(self, steps: Tensor) -> Tensor:
        return 2 * steps / (self.levels_L - 1) - 1
