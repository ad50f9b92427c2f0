"""A silo's part in the training of a model: asks the coordinator, learns from its own rows, sends what it learned.

What leaves it: its name and token, hashes of its settings, how many rows it has by modality, its labels if all agreed
to share them, changes of weights, mean loss and counts of right answers. No row, text, medium, file name or id.
"""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from training.building import own_tokenizer
from training.catalog import OUTPUTS
from training.federation import masks, wire
from training.federation.client import Coordinator
from training.federation.identity import parts_of
from training.federation.local import LocalTraining, Taught, rows_of
from training.federation.parts import ALL, weighed
from training.federation.private import Spent, check_opacus
from training.federation.settings import FederationSettings
from training.job import check_labels, open_splits, task_of
from training.records import SiloReport
from training.spec import JobSpec, RunSpec
from training.tokenizer import read_tokenizer
from training.tracking import log_round, open_experiment, open_part_run
from training.train import TrainingTask
from training.workers import Log


def take_part(spec: JobSpec, run: RunSpec, log: Log) -> SiloReport:
    """Stays until the coordinator says that all rounds are done; joins again where that was started anew.

    Raises:
        ValueError: the coordinator refuses the silo, there is no token, or no row to train on.
        ConnectionError: the coordinator does not answer.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    settings = run.federation
    assert settings is not None and settings.coordinator is not None and settings.silo is not None
    if settings.privacy is not None:
        check_opacus()
    splits, _ = open_splits(spec)
    if len(splits["train"]) == 0:
        raise ValueError(f"silo {settings.silo} has no training row: look at align.split")
    check_labels(run.model.output, {split: rows.labels for split, rows in splits.items()})
    task = replace(task_of(spec, run, splits), reads=settings.modalities, keep=frozenset(settings.modalities))
    coordinator = Coordinator(settings.coordinator, settings.silo, settings.wait_seconds)
    open_experiment(spec)
    with open_part_run(spec, "silo", run.fingerprint, name=f"silo {settings.silo}") as active:
        silo = _Silo(spec, run, settings, task, coordinator, log)
        while not silo.ended:
            try:
                silo.take_part()
            except wire.UnknownSiloError:
                log("the coordinator was started anew: joining again")
        return SiloReport(
            silo=settings.silo,
            mlflow_run_id=active.info.run_id,
            rows=len(task.train),
            rounds=silo.rounds,
            epsilon=silo.epsilon,
            ended=silo.ended,
            seconds=round(time.monotonic() - silo.started, 2),
        )


class _Silo:
    def __init__(
        self,
        spec: JobSpec,
        run: RunSpec,
        settings: FederationSettings,
        task: TrainingTask,
        coordinator: Coordinator,
        log: Log,
    ) -> None:
        self.spec, self.run, self.settings, self.task = spec, run, settings, task
        self.coordinator, self.log = coordinator, log
        self.started, self.ended, self.rounds = time.monotonic(), "", 0
        self.epsilon: float | None = None
        self.folder = Path(spec.checkpoints) / f"{run.fingerprint}-silo"
        self.spent = Spent(Path(spec.checkpoints).parent / "privacy.json")  # of all that was ever trained on these rows

    def take_part(self) -> None:
        """One session of the coordinator. Raises UnknownSiloError: another one has begun."""
        settings, key = self.settings, masks.new_key() if self.settings.secure else None
        self.coordinator.join(self._joining("" if key is None else masks.public(key)))
        self.log(f"silo {settings.silo}: joined; waiting for the others")
        plan = self.coordinator.plan()
        task = replace(self.task, tokenizer=self._tokenizer(plan), fitted=plan.fitted)
        with self.coordinator.kept_alive():
            training = LocalTraining(task, settings, plan.rounds, self.folder, self.spent)
        taught: Taught | None = None
        while True:
            said = self.coordinator.next_round()
            if isinstance(said, str):
                self.ended = said
                return
            weights, of = said
            with self.coordinator.kept_alive():
                # A round that is repeated is the same training, perhaps under other masks.
                if taught is None or taught.learned.number != of.number:
                    try:
                        taught = training.teach(weights, of)
                    except ValueError as error:
                        self.ended = f"left after {self.rounds} rounds: {error}"
                        return
                    self.rounds += 1
                learned = replace(taught.learned, attempt=of.attempt)
                tensors = taught.changes
                if key is not None:
                    attempt = (plan.session, of.number, of.attempt)
                    numbers = weighed(tensors, learned.rows, weights)
                    tensors = {"masked": masks.masked(numbers, key, of.keys, str(settings.silo), attempt)}
                    learned = replace(learned, rows={})
                self._send(tensors, learned, plan.rounds)

    def _send(self, tensors: Mapping[str, np.ndarray], learned: wire.Learned, rounds: int) -> None:
        loss = "" if learned.loss is None else f", loss {learned.loss:.4f}"
        epsilon = "" if learned.epsilon is None else f", epsilon {learned.epsilon:.2f} spent"
        self.epsilon = learned.epsilon
        values = {"loss": learned.loss, "epsilon": learned.epsilon}
        log_round(learned.number, {name: value for name, value in values.items() if value is not None})
        try:
            self.coordinator.send(tensors, learned)
            self.log(f"silo {self.settings.silo}: round {learned.number} of {rounds}{loss}{epsilon}")
        except (wire.NotAllowedError, wire.UnknownSiloError):
            raise
        except wire.RefusedError as error:
            self.log(f"silo {self.settings.silo}: round {learned.number} does not count: {error}")

    def _joining(self, key: str) -> wire.Joining:
        settings = self.settings
        rows = rows_of(self.task)
        modalities = {m: rows.get(m, 0) for m in settings.modalities}
        if settings.secure:  # how many there are stays here
            rows, modalities = {ALL: -1}, {m: -1 if count else 0 for m, count in modalities.items()}
        labels = sorted({label for label in self.task.train.labels if label is not None})
        return wire.Joining(
            silo=str(settings.silo),
            parts=parts_of(self.spec, self.run),
            modalities=modalities,
            rows=rows[ALL],
            labels=labels if settings.share_labels else [],
            key=key,
        )

    def _tokenizer(self, plan: wire.Plan) -> PreTrainedTokenizerBase:
        self._tell_unknown(plan)
        return read_tokenizer(plan.tokenizer) if plan.tokenizer else own_tokenizer(self.run.model)

    def _tell_unknown(self, plan: wire.Plan) -> None:
        """Rows whose label is none of the answers teach nothing."""
        known = set(getattr(OUTPUTS.make(self.run.model.output, plan.fitted), "classes", ()))
        others = Counter(label for label in self.task.train.labels if label is not None and label not in known)
        if known and others:
            named = ", ".join(f"{label!r} ({n:,})" for label, n in others.most_common(5))
            self.log(
                f"rows with labels that the model does not know teach nothing: {named}; name them in federation.labels"
            )
