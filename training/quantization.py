"""Vectors to one of a finite set, and the training of what stands before and behind that.

Shapes: L numbers of a code, ... any.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

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


def train(
    module: nn.Module,
    loss_of: Callable[[Tensor], Tensor],
    rows: int,
    steps: int,
    log: Callable[[str], None],
    seed: int = 0,
    batch_size: int = 32,
    learning_rate: float = 2e-3,
) -> None:
    """AdamW for so many steps; `loss_of` gets the numbers of the rows of a batch."""
    was, parameters = module.training, [*module.parameters()]
    module.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
    # Up over the first tenth of the steps, then down along a cosine.
    share = partial(_share, steps=steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    every = max(1, steps // 4)
    for step, batch in zip(range(1, steps + 1), _batches(rows, batch_size, seed), strict=False):
        loss = loss_of(batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % every == 0:
            log(f"step {step:,} of {steps:,}, loss {float(loss.detach()):.4f}")
    module.train(was).requires_grad_(False)


def _share(step: int, steps: int) -> float:
    return min(1.0, 10 * (step + 1) / steps) * (1 + math.cos(math.pi * step / steps)) / 2


def _batches(rows: int, size: int, seed: int) -> Iterator[Tensor]:
    """Numbers of rows, without end; each epoch in another order."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(rows, generator=generator).split(size)
