"""transformers.Trainer with order, losses and evaluation of our own."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, PreTrainedModel, TrainerCallback
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from training.adaptation import parameter_groups
from training.adversaries.base import Adversary
from training.batches import counted, parts
from training.collator import Collator
from training.data import EpochSampler, SampleDataset
from training.distributed import gathered, number, processes
from training.evaluate import mean_score
from training.metrics import Metric
from training.records import Answered
from training.schema import subset_name


class Trainer(transformers.Trainer):
    """With order and evaluation of our own: see `EpochSampler` and `predict`."""

    tokenizer: PreTrainedTokenizerBase
    evaluation_collator: Collator
    named_losses: dict[str, list[Tensor]]  # since the last log, where there is more than one objective
    clipped: list[nn.Parameter]
    watched: tuple[Metric, ...] = ()
    adversary: Adversary | None = None

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        return EpochSampler(len(train_dataset), self.args.seed)

    def get_train_dataloader(self) -> DataLoader:
        loader = super().get_train_dataloader()
        shard: Any = loader.batch_sampler
        if not hasattr(shard, "sampler"):  # of processes: else accelerate would not tell the epoch when one resumes
            shard.sampler = shard.batch_sampler.sampler
        return loader

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            trained: Any = self.model if model is None else model
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, trained)
            groups = parameter_groups(trained, set(self.get_decay_parameter_names(trained)), self.args.weight_decay)
            self.optimizer = kind(groups, **options)
        return self.optimizer

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        # What it does on one device or with DistributedDataParallel, without looking for the parameters at each step.
        self.clipped = self.clipped or list(model.parameters())
        return nn.utils.clip_grad_norm_(self.clipped, self.args.max_grad_norm)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Without a pickle of the arguments, which nobody reads, and without files of what is not trained; by the names
        that tensors have here, since it is loaded without the conversions of `from_pretrained`."""
        model: Any = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        folder: Any = output_dir or self.args.output_dir
        if self.args.should_save:
            PreTrainedModel.save_pretrained(model, folder, state_dict=state_dict, save_original_format=False)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if self.adversary is None:
            output = model(**inputs)
        else:
            network = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
            with self.adversary.at(network) as changes:
                output = model(**inputs)
                with self.accelerator.autocast():
                    worst = self.adversary.loss(network, inputs, changes, output.loss)
            output.losses["adversary"] = worst
            output.loss = (output.loss + self.adversary.weight * worst) / (1 + self.adversary.weight)
        if len(output.losses) > 1:
            for name, loss in output.losses.items():
                self.named_losses.setdefault(f"loss_{name}", []).append(loss.detach())
        loss = output.loss if processes() == 1 else output.loss * self._share(inputs["labels"])
        return (loss, output) if return_outputs else loss

    def _share(self, targets: Tensor) -> float:
        """The part of the batch that this process has, over an equal part: so the mean over processes, which is what
        they learn from, is that of the batch."""
        network: Any = self.model
        counts = gathered([network.output.counted(targets)])
        return counts[number()] * len(counts) / max(1, sum(counts))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= {name: float(torch.stack(losses).mean()) for name, losses in self.named_losses.items()}
            self.named_losses = {}
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The output's own loss, and of the answers its headlines and the metrics that are watched."""
        rows = self.eval_dataset
        assert isinstance(rows, SampleDataset)
        model = self.accelerator.unwrap_model(self.model)
        model.eval()
        answered, losses = [], []
        labels, samples = [model.output.read(label) for label in rows.labels], rows.index["sample_id"].to_pylist()
        mine = rows.take(np.array_split(np.arange(len(rows)), processes())[number()])
        for subset in model.output.asked(model.config.modalities):
            collator, name = replace(self.evaluation_collator, keep=frozenset(subset)), subset_name(subset)
            said, is_whole = [], set(subset) == set(model.config.modalities)
            for batch in even_batches(mine, collator, self.args.eval_batch_size):
                with torch.inference_mode(), self.accelerator.autocast():  # frozen weights may be bfloat16
                    if is_whole:
                        loss, answers = model.loss_and_answers(batch, self.tokenizer)
                        losses += [float(loss)] * len(answers)
                    else:
                        answers = model.scored_answers(batch, self.tokenizer)
                    said += answers
            told = zip(samples, labels, gathered(said), strict=True)
            answered += [Answered(sample, name, label, answer) for sample, label, answer in told]
        losses = gathered(losses)
        look = rows.look(self.evaluation_collator.features)
        judged = model.output.judged(answered, look)[-len(samples) :]
        labels, answers = [row.label for row in judged], [row.answer for row in judged]
        metrics = {"eval_loss": float(np.mean(losses))}
        for metric in dict.fromkeys([*model.output.headlines, *self.watched]):
            if metric in self.watched or metric.rows(labels):
                metrics[f"eval_{metric.name}"] = mean_score(metric, labels, answers)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def check_reports(names: Sequence[str]) -> None:
    """Raises ValueError where one of `training.report_to` is not known to transformers, or not installed."""
    from transformers.integrations import get_reporting_integration_callbacks

    try:
        for callback in get_reporting_integration_callbacks([n for n in names if n not in ("all", "none")]):
            callback()
    except (ValueError, RuntimeError, ImportError) as error:
        raise ValueError(f"training.report_to is {', '.join(names)}: {error}") from error


class EarlyStopping(EarlyStoppingCallback):
    """As that of transformers; and a training that was killed after it had stopped does not go on from there."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop, control.should_evaluate, control.should_save = True, False, False


class Progress(TrainerCallback):
    """Tells the model's objectives how much of the training is done."""

    def __init__(self, network: Any) -> None:
        self.network = network

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for objective in self.network.objectives:
            objective.progress = state.global_step / max(1, state.max_steps)


def even_batches(rows: Any, collator: Collator, batch_size: int) -> DataLoader:
    """Batches of `rows` in order, as even as can be, so that no row is alone in the last one.

    Args:
        batch_size: contents that are held at once of a modality: as many rows, where each has one of it.
    """
    modalities = collator.modalities
    counts = rows.counts(modalities) if isinstance(rows, SampleDataset) else counted(rows, modalities)
    # A generator of its own: the loader would draw from the global one, which training resumes from.
    return DataLoader(rows, batch_sampler=parts(counts, batch_size), collate_fn=collator, generator=torch.Generator())
