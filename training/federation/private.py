"""Training that is differentially private for each row: DP-SGD (Abadi et al. 2016).

The gradient of each row is worked out by itself, shortened, summed and hidden under noise. Rows go through the model
one by one: hooks that give the gradients of a batch's rows at once know neither this model's own parameters nor weights
that two layers share. What is spent the accountant of opacus says (Renyi, Poisson sampling).

It is the epsilon of a row, for who sees every update of the silo. That the coordinator learns how many rows there are,
and of which modalities, is not covered, nor are the model's shape and labels.
"""

import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.federation.proximal import Proximal
from training.federation.settings import PrivacySettings
from training.files import write_text
from training.layers import BatchNorm


class Spent:
    """What all trainings on a silo's rows have spent, in a file: it adds up over rounds, runs and restarts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        steps = json.loads(path.read_text()) if path.is_file() else []
        self.steps: list[tuple[float, float, int]] = [(noise, rate, count) for noise, rate, count in steps]

    def add(self, noise: float, rate: float, count: int) -> None:
        """Before the steps are taken: a process that is killed within them has spent them."""
        if self.steps and self.steps[-1][:2] == (noise, rate):
            count += self.steps.pop()[2]
        self.steps.append((noise, rate, count))
        write_text(self._path, json.dumps(self.steps))

    def epsilon(self, delta: float, *more: tuple[float, float, int]) -> float:
        """Spent so far, and by `more` steps (noise, sampling rate, number of steps)."""
        from opacus.accountants import RDPAccountant

        accountant = RDPAccountant()
        accountant.history = [*self.steps, *more]
        return float(accountant.get_epsilon(delta)) if accountant.history else 0.0


def check_opacus() -> None:
    """Raises ValueError where it is not installed."""
    try:
        import opacus.accountants  # noqa: F401
    except ImportError:
        raise ValueError(
            "federation.privacy is set, and what counts epsilon is not installed: pip install 'triptych[federation]'"
        ) from None


def descend(
    trainer: Any, network: Any, steps: int, privacy: PrivacySettings, spent: Spent, held: Sequence[Proximal]
) -> None:
    """So many steps of the trainer's optimizer, each on rows that are drawn by themselves (Poisson).

    Raises:
        ValueError: more than `privacy.most` would be spent.
    """
    rows, optimizer, schedule = trainer.train_dataset, trainer.optimizer, trainer.lr_scheduler
    rate = min(1.0, trainer.args.train_batch_size / len(rows))
    now = (privacy.noise, rate, steps)
    if privacy.most is not None and (after := spent.epsilon(privacy.delta, now)) > privacy.most:
        most = f"federation.privacy.most is {privacy.most:g}"
        raise ValueError(f"a further round would bring epsilon to {after:.2f}, and {most}")
    spent.add(*now)
    trained = [p for p in network.parameters() if p.requires_grad]
    random = torch.Generator().manual_seed(secrets.randbits(63))  # who could tell the noise could take it off
    network.train()
    for module in network.modules():
        if isinstance(module, BatchNorm):
            module.eval()  # statistics of a batch would tell of rows past the noise
    expected = rate * len(rows)
    for step in range(steps):
        drawn = (torch.rand(len(rows), generator=random) < rate).nonzero()[:, 0].tolist()
        sums = [torch.zeros_like(p) for p in trained]
        for n in drawn:
            _add(sums, _gradient(trainer, network, trained, rows[step, n]), privacy.clip)
        for parameter, total in zip(trained, sums, strict=True):
            noise = torch.randn(total.shape, generator=random).to(total.device)
            parameter.grad = (total + privacy.noise * privacy.clip * noise) / expected
        for term in held:
            term.pull()
        optimizer.step()
        schedule.step()
    optimizer.zero_grad(set_to_none=True)


def _gradient(trainer: Any, network: Any, trained: list[Any], row: Any) -> list[Tensor | None]:
    batch = {name: tensor.to(network.device) for name, tensor in trainer.data_collator([row]).items()}
    loss = network(**batch).loss
    if not torch.isfinite(loss):  # a row whose label is none of the answers
        return [None] * len(trained)
    return list(torch.autograd.grad(loss, trained, allow_unused=True))


def _add(sums: list[Tensor], gradients: list[Tensor | None], clip: float) -> None:
    """Adds a row's gradient, no longer than `clip`."""
    parts = [g for g in gradients if g is not None]
    if not parts:
        return
    length = torch.stack([g.norm() for g in parts]).norm()
    if torch.isfinite(length):
        share = (clip / length.clamp(min=1e-12)).clamp(max=1.0)
        for total, gradient in zip(sums, gradients, strict=True):
            if gradient is not None:
                total.add_(gradient * share)
