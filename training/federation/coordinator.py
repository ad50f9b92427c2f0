"""A model that silos train, from the coordinator's side: rounds of weights out and changes back."""

import json
import math
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from training.aggregations.base import Aggregation
from training.catalog import AGGREGATIONS, COMBINATIONS, OUTPUTS
from training.federation.board import Board, Log, Update
from training.federation.identity import parts_of
from training.federation.masks import summed
from training.federation.parts import (
    arrays,
    check_masked,
    check_update,
    combined,
    learned_names,
    mean_of_sums,
    put,
    shared_tensors,
)
from training.federation.server import serving
from training.federation.settings import FederationSettings
from training.federation.wire import Plan, Task, packed
from training.settings import TINY
from training.spec import JobSpec, RunSpec
from training.tracking import log_round
from training.train import Trained, TrainingTask, finished, make_trainer, new_model

_STATE = "federation.safetensors"  # weights after the last round, and what the aggregation remembers
_REMEMBERED = "aggregation/"  # before the names of the latter
_ATTEMPTS = 5  # at a round
_SLACK = 2**16  # bytes of an update beside its numbers


def federate(spec: JobSpec, run: RunSpec, task: TrainingTask, folder: Path, log: Log) -> Trained:
    """Waits for silos and trains with them; goes on from the last whole round where `folder` holds one.

    Args:
        task: of the coordinator's own rows: what silos need to know of labels and texts is of its training rows, and
            each look at the model of its validation rows. They train nothing.

    Raises:
        RuntimeError: there are too few silos.
        OSError: it cannot listen where it shall.
        ValueError: there is no token, or a label that no answer could be.
    """
    settings = run.federation
    assert settings is not None and settings.listen is not None
    board = Board(settings, parts_of(spec, run), log)
    size = 0  # numbers of the model

    def most() -> int:
        return _SLACK + (8 if settings.secure else 4) * size + 200 * names

    names = 0
    with serving(board, settings.listen, most) as url:
        log(f"{run.name}: waiting for silos ({', '.join(settings.silos)}) at {url}")
        board.gather(len(settings.silos))
        task = replace(task, fitted=_fitted(settings, task, board), reads=settings.modalities)
        network = new_model(task)
        trainer = make_trainer(task, network, folder / "validation", (), None)
        if settings.privacy is not None:
            _settle(network, trainer)
        weights = arrays(shared_tensors(network))
        size, names = sum(array.size for array in weights.values()), len(weights)
        board.plan = Plan(
            session=uuid.uuid4().hex,
            fitted=dict(task.fitted or {}),
            tokenizer=_tokenizer(task),
            rounds=settings.rounds,
        )
        rounds = Rounds(settings, board, learned_names(network), folder / _STATE, log)
        weights, begun = rounds.restored(weights)
        history: list[dict[str, float]] = []
        every = math.ceil(settings.rounds / max(1, task.training.evaluations))
        for number in range(begun + 1, settings.rounds + 1):
            looks = number % every == 0 or number == settings.rounds
            weights, said = rounds.hold(number, weights, looks)
            if looks:
                put(network, weights)
                found = trainer.evaluate() if len(task.validation) and task.training.evaluations else {}
                said |= {n.replace("eval_", "validation_", 1): float(value) for n, value in found.items()}
                network.train()
            plain = {n: v for n, v in said.items() if n == "loss" or n.startswith("validation_")}
            history.append({"step": number, "epoch": number * settings.epochs, **plain})
            log_round(number, said)
            shown = [f"{name.replace('_', ' ')} {value:.3f}" for name, value in plain.items()]
            log(f"{run.name}: round {number} of {settings.rounds}, {', '.join([rounds.words, *shown])}")
        board.ended = f"all {settings.rounds} rounds are done"
        put(network, weights)
        board.dismiss()
    return finished(task, network, history)


class Rounds:
    """Holds one round after the other."""

    def __init__(
        self, settings: FederationSettings, board: Board, learned: frozenset[str], state: Path, log: Log
    ) -> None:
        """Args: `learned` names what gradients move; `state` is the file that a killed coordinator goes on from."""
        self.settings, self.board, self.log = settings, board, log
        self.learned, self.state = learned, state
        self.aggregation: Aggregation = AGGREGATIONS.make(settings.aggregation)
        self.combination = COMBINATIONS.make(settings.combination)
        self.words = ""  # who took part in the last one

    def restored(self, weights: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], int]:
        """The weights after the last whole round, and its number; the first weights and 0 where there was none."""
        if not self.state.is_file():
            return weights, 0
        with safe_open(self.state, "numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            number = int(file.metadata()["round"])
        memory = {n.removeprefix(_REMEMBERED): x for n, x in tensors.items() if n.startswith(_REMEMBERED)}
        self.aggregation.restore(memory)
        self.log(f"going on after round {number}")
        return {name: tensors[name] for name in weights}, number

    def hold(
        self, number: int, weights: dict[str, np.ndarray], judged: bool
    ) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """The weights after a round, and what silos say of it. Raises RuntimeError: too few silos answer."""
        least, secure = self.settings.least, self.settings.secure
        silos = self.board.gather(least)
        for attempt in range(1, _ATTEMPTS + 1):
            keys = {silo: self.board.joined[silo].key for silo in silos} if secure else {}
            task = Task(number=number, attempt=attempt, keys=keys, judged=judged and not self.settings.hides)
            check = partial(check_masked if secure else check_update, weights)
            updates = self.board.hold_round(task, packed(weights, task), silos, check)
            # Where one of them lacks, its masks are left in the sum.
            if len(updates) >= least and (not secure or updates.keys() == set(silos)):
                break
            lacking = ", ".join(sorted(set(silos).difference(updates)))
            if attempt == _ATTEMPTS:
                raise RuntimeError(f"round {number} failed {_ATTEMPTS} times, the last time for {lacking}")
            self.log(f"round {number} is repeated, since {lacking} did not answer it")
            there = self.board.gather(least)
            answering = [silo for silo in there if silo in updates]
            silos = answering if secure and len(answering) >= least else there
        ordered = [updates[silo] for silo in sorted(updates)]
        change = self._change(weights, ordered)
        after = self.aggregation.step(weights, change, self.learned)
        memory = {_REMEMBERED + name: array for name, array in self.aggregation.state().items()}
        self.state.parent.mkdir(parents=True, exist_ok=True)
        beside = self.state.with_suffix(".new")
        save_file(after | memory, beside, {"round": str(number)})
        beside.replace(self.state)
        self.words = f"{len(ordered)} silos ({', '.join(update.silo for update in ordered)})"
        return after, _said(ordered)

    def _change(self, weights: Mapping[str, np.ndarray], updates: Sequence[Update]) -> dict[str, np.ndarray]:
        if not self.settings.secure:
            return combined(weights, updates, self.combination, self.learned)
        return mean_of_sums(summed([update.changes["masked"] for update in updates]), weights)


def _said(updates: Sequence[Update]) -> dict[str, float]:
    """What silos said of a round, as metrics."""
    said: dict[str, float] = {"silos": float(len(updates))}
    told = [(u.learned.loss, u.learned.rows[""]) for u in updates if u.learned.loss is not None]
    losses = [(loss, rows) for loss, rows in told if math.isfinite(loss)]
    if losses:
        said["loss"] = sum(loss * rows for loss, rows in losses) / sum(rows for _, rows in losses)
    for update in updates:
        learned = update.learned
        if learned.validated > 0:
            said[f"silo_right/{update.silo}"] = min(1.0, learned.right / learned.validated)
            said[f"silo_validated/{update.silo}"] = float(learned.validated)
        if learned.epsilon is not None and math.isfinite(learned.epsilon):
            said[f"silo_epsilon/{update.silo}"] = learned.epsilon
    return said


def _fitted(settings: FederationSettings, task: TrainingTask, board: Board) -> dict[str, Any]:
    """What the output has to know of labels: those of the coordinator's own training rows, those that the project file
    names, and those that silos say."""
    output = OUTPUTS.make(task.model.output, {})
    labels = [label for label in task.train.labels if label is not None]
    more = {*settings.labels, *(label for joining in board.joined.values() for label in joining.labels)}
    named = [*labels, *sorted(more.difference(labels))]
    return output.fit(named, task.tokenizer, task.model) | output.of_features(task.features)


def _tokenizer(task: TrainingTask) -> str:
    if task.model.llm.model != TINY:
        return ""
    return json.dumps(json.loads(task.tokenizer._tokenizer.to_str()))


def _settle(network: Any, trainer: Any) -> None:
    """Where silos' statistics would tell of single rows they stay as they are: those of the coordinator's own rows."""
    import torch

    network.train()
    seen: deque[Any] = deque(maxlen=1)
    with torch.no_grad():
        for batch in trainer.get_train_dataloader():
            seen.append(network(**{name: tensor.to(network.device) for name, tensor in batch.items()}))
