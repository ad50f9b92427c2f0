"""Gradient descent for what learns aside from the models: codecs, and encoders before they read labels.

Where it is given a file for it, it keeps a checkpoint of each epoch, and what was killed goes on from there, to the
same weights on the same machine: what `loss_of` draws comes from generators of the step, or from torch's global one.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def train(
    module: nn.Module,
    loss_of: Callable[[Tensor, int], Tensor],
    rows: int,
    steps: int,
    log: Callable[[str], None],
    seed: int = 0,
    batch_size: int = 32,
    learning_rate: float = 2e-3,
    checkpoint: Path | None = None,
) -> None:
    """AdamW for so many steps, of what takes gradients.

    Args:
        loss_of: gets the numbers of the rows of a batch, and how many batches were before.
        checkpoint: a file; its folder is there, and holds no other training's.
    """
    was, parameters = module.training, [p for p in module.parameters() if p.requires_grad]
    module.train()
    optimizer = torch.optim.AdamW(parameters, learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
    # Up over the first tenth of the steps, then down along a cosine.
    share = partial(_share, steps=steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    every, epoch, done = max(1, steps // 4), -(-rows // batch_size), 0
    parts = {"module": module, "optimizer": optimizer, "schedule": schedule}
    if checkpoint is not None and checkpoint.is_file():
        done = _restore(checkpoint, parts)
        log(f"going on at step {done:,} of {steps:,}")
    for step, batch in enumerate(islice(_batches(rows, batch_size, seed), done, steps), done + 1):
        loss = loss_of(batch, step - 1)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % every == 0:
            log(f"step {step:,} of {steps:,}, loss {float(loss.detach()):.4f}")
        if checkpoint is not None and step % epoch == 0:
            _save(checkpoint, parts, step)
    module.train(was)


def _save(checkpoint: Path, parts: dict[str, Any], step: int) -> None:
    """Whole or not at all."""
    random = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}
    temporary = checkpoint.with_name(f".{checkpoint.name}.tmp")
    torch.save({name: part.state_dict() for name, part in parts.items()} | {"step": step, "random": random}, temporary)
    temporary.replace(checkpoint)


def _restore(checkpoint: Path, parts: dict[str, Any]) -> int:
    """Returns the steps that were done."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    torch.set_rng_state(state["random"]["cpu"])
    if state["random"]["cuda"]:
        torch.cuda.set_rng_state_all(state["random"]["cuda"])
    return int(state["step"])


def _share(step: int, steps: int) -> float:
    return min(1.0, 10 * (step + 1) / steps) * (1 + math.cos(math.pi * step / steps)) / 2


def _batches(rows: int, size: int, seed: int) -> Iterator[Tensor]:
    """Numbers of rows, without end; each epoch in another order."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(rows, generator=generator).split(size)
