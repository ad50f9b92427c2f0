"""Gradient descent for what learns aside from the models: codecs, and encoders before they read labels.

It has no checkpoints: what did not end is begun anew.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn


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
    """AdamW for so many steps, of what takes gradients; `loss_of` gets the numbers of the rows of a batch."""
    was, parameters = module.training, [p for p in module.parameters() if p.requires_grad]
    module.train()
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
    module.train(was)


def _share(step: int, steps: int) -> float:
    return min(1.0, 10 * (step + 1) / steps) * (1 + math.cos(math.pi * step / steps)) / 2


def _batches(rows: int, size: int, seed: int) -> Iterator[Tensor]:
    """Numbers of rows, without end; each epoch in another order."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(rows, generator=generator).split(size)
