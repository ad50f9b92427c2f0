"""What a silo learns in a round: a stretch of training on its own rows, from the weights of all."""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR

from training.catalog import AGGREGATIONS
from training.federation.parts import ALL, arrays, part_of, put, shared_tensors
from training.federation.private import Spent, descend
from training.federation.proximal import Proximal
from training.federation.settings import FederationSettings
from training.federation.wire import Learned, Task
from training.train import TrainingTask, make_trainer, new_model, scored_answers

_SEEDS = 1_000_003  # apart: each round draws its own order, augmentation and dropout
_JUDGED = 512  # validation rows, at most
_NEVER = 10**9  # steps


class Taught(NamedTuple):
    changes: dict[str, np.ndarray]  # of the weights that its rows trained
    learned: Learned


class LocalTraining:
    """The model of all at one silo."""

    def __init__(self, task: TrainingTask, settings: FederationSettings, rounds: int, folder: Path, spent: Spent):
        """Args: `task` of the silo's own rows, with what the plan says of labels and texts; `spent` of its privacy."""
        self.task, self.settings, self.rounds, self.folder, self.spent = task, settings, rounds, folder, spent
        self.network = new_model(task)
        self.rows = rows_of(task)

    def judge(self, weights: Mapping[str, np.ndarray]) -> tuple[int, int]:
        """How many validation rows the weights answer right, and of how many; nothing where that cannot be said."""
        metric, rows = self.network.output.right, self.task.validation
        if metric is None or not len(rows):
            return 0, 0
        put(self.network, weights)
        rows = rows.take(range(min(len(rows), _JUDGED)))
        answers = scored_answers(self.network, self.task.tokenizer, rows, self.task.features)
        labels = [self.network.output.read(label) for label in rows.labels]
        return sum(bool(metric.of(label, a.prediction)) for label, a in zip(labels, answers, strict=True)), len(rows)

    def teach(self, weights: Mapping[str, np.ndarray], task: Task) -> Taught:
        """Trains for a round.

        Raises:
            ValueError: no epsilon is left for it.
        """
        right, judged = self.judge(weights) if task.judged else (0, 0)
        put(self.network, weights)
        seed = (self.task.training.seed + 1) * _SEEDS + task.number
        training = replace(
            self.task.training,
            epochs=self.settings.epochs,
            evaluations=0,
            early_stopping=None,
            checkpoint_steps=_NEVER,
            seed=seed % 2**31,
        )
        here = replace(self.task, training=training)
        torch.manual_seed(training.seed)
        mu = AGGREGATIONS.make(self.settings.aggregation).proximal
        held = [Proximal(self.network, mu)] if mu else []
        trainer = make_trainer(here, self.network, self.folder, held, None)
        optimizer = trainer.create_optimizer()
        steps = max(1, math.ceil(math.ceil(len(here.train) / training.batch_size) * self.settings.epochs))
        begun = (task.number - 1) / self.rounds
        share = partial(_rate, begun=begun, per_step=1 / steps / self.rounds, warmup=training.warmup)
        trainer.lr_scheduler = LambdaLR(optimizer, share)
        if self.settings.privacy is None:
            trainer.train()
            losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
            loss = float(np.mean(losses)) if losses and not self.settings.hides else None
            epsilon = None
        else:
            descend(trainer, self.network, steps, self.settings.privacy, self.spent, held)
            loss, epsilon = None, self.spent.epsilon(self.settings.privacy.delta)
        after = arrays(shared_tensors(self.network))
        # What is not in its rows it did not learn of, whatever weight decay did to it.
        changes = {name: array - weights[name] for name, array in after.items() if part_of(name) in self.rows}
        learned = Learned(
            number=task.number,
            attempt=task.attempt,
            rows=dict(self.rows),
            loss=loss,
            right=right,
            validated=judged,
            epsilon=epsilon,
        )
        return Taught(changes, learned)


def rows_of(task: TrainingTask) -> dict[str, int]:
    """Part of the model -> training rows that it is learned from; without parts that no row trains."""
    columns = {m: task.train.index[f"{m}_id"] for m in task.modalities}
    counts = {m: len(column) - column.null_count for m, column in columns.items()}
    return {ALL: len(task.train)} | {m: count for m, count in counts.items() if count}


def _rate(step: int, begun: float, per_step: float, warmup: float) -> float:
    """The share of the learning rate: over all rounds as a training alone has it, up and then down along a cosine."""
    done = begun + step * per_step
    if done < warmup:
        return (done + per_step) / (warmup + per_step)
    return max(0.0, (1 + math.cos(math.pi * (done - warmup) / (1 - warmup))) / 2)
