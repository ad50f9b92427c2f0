"""Training with transformers.Trainer, and prediction. A stopped training resumes from its last whole checkpoint and
ends with the same weights, bit for bit, on the same machine."""

import itertools
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from training.data import Collator, EpochSampler, Row, SampleDataset
from training.features import FeatureSettings
from training.files import write_text
from training.model import FusionModel, build_model
from training.schema import fingerprint, subset_name
from training.settings import ModelSettings, TrainingSettings, decisive
from training.spec import identity
from training.tokenizer import fit_tokenizer, load_tokenizer

_WHOLE = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
_VALIDATION_ROWS = 512  # of each validation during training; the evaluation afterwards takes all
_LOGS = 50  # points of the loss curve


@dataclass(frozen=True)
class Trained:
    model: FusionModel  # in eval mode
    history: list[dict[str, float]]  # step, epoch, loss and learning_rate; or step, epoch, validation_*


def make_tokenizer(train: SampleDataset, model: ModelSettings, training: TrainingSettings) -> PreTrainedTokenizerBase:
    """The language model's tokenizer; for `tiny` fitted on the training rows' texts and labels."""
    if model.llm != "tiny":
        return load_tokenizer(model.llm)
    labels = (label for label in train.labels if label is not None)
    return fit_tokenizer(itertools.chain(train.texts(), labels), training.vocabulary)


def fit(
    model: ModelSettings,
    training: TrainingSettings,
    features: FeatureSettings,
    train: SampleDataset,
    validation: SampleDataset,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    keep: frozenset[str] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    run_name: str | None = None,
    noise: Mapping[str, Sequence[np.ndarray]] | None = None,
) -> Trained:
    """Trains a new model; resumes where `folder` holds a whole checkpoint of the same training.

    Args:
        train, validation: labelled rows; validation may be empty.
        folder: checkpoints lie here; the caller removes it when the model is stored.
        keep: modalities the model may read (for baselines); default: all that the training rows have.
        noise: modality -> clips for augmentation.

    Raises:
        ValueError: no row to train on, a label that no answer could be, the checkpoints are of another training, or
            the loss is no number.
    """
    modalities = tuple(m for m in train.modalities if keep is None or m in keep)
    if len(train) == 0 or not modalities:
        wanted = "any modality" if keep is None else subset_name(keep)
        raise ValueError(f"no training row has {wanted} ({len(train)} rows): look at the splits and at keep")
    classes = sorted({label for label in train.labels if label is not None}) if model.output == "class" else None
    if model.output == "text":
        _check_labels(train, tokenizer, model.max_new_tokens)
    torch.manual_seed(training.seed)  # the weights' start; everything random in the data has keys of its own
    network = build_model(model, features, tokenizer, modalities, classes)
    collator = make_collator(network, tokenizer, features)
    parts = identity(model), decisive(training), features.plain(), list(modalities), train.identity()
    _claim(Path(folder), fingerprint(*parts))
    steps = math.ceil(math.ceil(len(train) / training.batch_size / training.gradient_accumulation) * training.epochs)
    trainer = _Trainer(
        model=network,
        args=_arguments(training, steps, Path(folder), run_name, len(validation) > 0),
        train_dataset=train,
        eval_dataset=_sample(validation, training.seed),
        data_collator=replace(
            collator,
            answers=True,
            modality_dropout=model.modality_dropout,
            augment=augmenters(training.augmentation, features, noise),
            seed=training.seed,
        ),
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.tokenizer, trainer.evaluation_collator = tokenizer, replace(collator, answers=True)
    trainer.train(resume_from_checkpoint=last_checkpoint(Path(folder)))
    history = _history(trainer.state.log_history)
    if any(not math.isfinite(entry.get("loss", 0.0)) for entry in history):
        raise ValueError(f"the loss became no number; lower training.learning_rate (it is {training.learning_rate})")
    return Trained(network.eval(), history)


def _check_labels(train: SampleDataset, tokenizer: PreTrainedTokenizerBase, most: int) -> None:
    """Raises ValueError where an answer is cut off before it can be the label; the end of sequence needs no room."""
    labels = sorted({label for label in train.labels if label})
    tokens = {label: len(tokenizer(label, add_special_tokens=False)["input_ids"]) for label in labels}
    longest = max(labels, key=tokens.__getitem__, default="")
    if (needed := tokens.get(longest, 0)) > most:
        raise ValueError(
            f"the training label {longest[:80]!r} has {needed} tokens, and answers end after "
            f"model.max_new_tokens ({most}): set it to at least {needed}"
        )


def predict(
    model: FusionModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: SampleDataset | Sequence[Row],
    features: FeatureSettings,
    keep: frozenset[str] | None = None,
    batch_size: int = 256,
    shuffle_seed: int | None = None,
) -> list[str]:
    """The model's answer to each row, in order.

    Args:
        keep: only these modalities are shown to the model.
        shuffle_seed: give every row the soft tokens of another row of its batch: a model that listens to its fusion
            then answers by chance.
    """
    collator = make_collator(model, tokenizer, features, keep)
    random = None if shuffle_seed is None else np.random.default_rng(shuffle_seed)
    model.eval()
    answers = []
    for batch in _loader(rows, collator, batch_size):
        size = len(batch["present"])
        other = None if random is None else torch.arange(size).roll(int(random.integers(1, max(2, size))))
        answers += model.answer(batch, tokenizer, other)
    return answers


def make_collator(
    model: FusionModel,
    tokenizer: PreTrainedTokenizerBase,
    features: FeatureSettings,
    keep: frozenset[str] | None = None,
) -> Collator:
    """The collator that makes batches for `model`, without labels and dropout."""
    classes = None if model.config.output == "text" else tuple(model.config.classes)
    return Collator(tokenizer, features, tuple(model.config.modalities), model.config.prompt, classes, keep)


def augmenters(
    settings: Mapping[str, Any], features: FeatureSettings, noise: Mapping[str, Sequence[np.ndarray]] | None = None
) -> dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]]:
    """What changes the training rows' values, by modality."""
    clips = noise or {}
    return {m: features.featurizer(m).augmenter(section, clips.get(m, ())) for m, section in settings.items()}


class _Trainer(Trainer):
    """With order and evaluation of our own: see `EpochSampler` and `predict`."""

    tokenizer: PreTrainedTokenizerBase
    evaluation_collator: Collator

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        return EpochSampler(len(train_dataset), self.args.seed)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        folder = output_dir or self.args.output_dir
        assert folder is not None
        (Path(folder) / "training_args.bin").unlink(missing_ok=True)  # a pickle that nobody reads

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(**inputs)
        loss = outputs.loss
        if smoothing := self.args.label_smoothing_factor:
            logits, labels = outputs.logits.flatten(0, -2).float(), inputs["labels"].flatten()
            loss = functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        return (loss, outputs) if return_outputs else loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss, and accuracy of the generated answers."""
        rows = self.eval_dataset
        assert isinstance(rows, SampleDataset)
        model = self.accelerator.unwrap_model(self.model)
        model.eval()
        losses, answers = [], []
        for batch in _loader(rows, self.evaluation_collator, self.args.eval_batch_size):
            with torch.inference_mode():
                losses += [float(model(**self._prepare_inputs(dict(batch))).loss)] * len(batch["present"])
            answers += model.answer(batch, self.tokenizer)
        right = sum(answer == (label or "").strip() for answer, label in zip(answers, rows.labels, strict=True))
        metrics = {"eval_loss": float(np.mean(losses)), "eval_accuracy": right / len(rows)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _loader(rows: Any, collator: Collator, batch_size: int) -> DataLoader:
    # A generator of its own: the loader would draw from the global one, which training resumes from.
    return DataLoader(rows, batch_size, collate_fn=collator, generator=torch.Generator())


def _arguments(
    training: TrainingSettings, steps: int, folder: Path, run_name: str | None, validate: bool
) -> TrainingArguments:
    validate = validate and training.evaluations > 0
    return TrainingArguments(
        output_dir=str(folder),
        run_name=run_name,
        num_train_epochs=training.epochs,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=256,
        gradient_accumulation_steps=training.gradient_accumulation,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        adam_beta2=0.95,  # as language models are trained: a small one learns arithmetic sooner
        warmup_steps=training.warmup,  # below 1: a share of all steps
        lr_scheduler_type="cosine",
        optim="adamw_torch_fused",
        max_grad_norm=training.max_grad_norm,
        label_smoothing_factor=training.label_smoothing,
        bf16=training.precision == "bfloat16",
        seed=training.seed,
        logging_steps=max(1, steps // _LOGS),
        logging_nan_inf_filter=False,
        eval_strategy="steps" if validate else "no",
        eval_steps=math.ceil(steps / training.evaluations) if validate else None,
        save_steps=training.checkpoint_steps,
        save_total_limit=2,
        dataloader_num_workers=training.workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        report_to=list(training.report_to) or "none",
        disable_tqdm=True,
    )


def _sample(validation: SampleDataset, seed: int) -> SampleDataset:
    if len(validation) <= _VALIDATION_ROWS:
        return validation
    rows = np.random.default_rng(seed).permutation(len(validation))[:_VALIDATION_ROWS]
    return validation.take(np.sort(rows))


def _claim(folder: Path, identity: str) -> None:
    """Marks the folder as this training's; raises ValueError where it is another's."""
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / "training.json"
    if marker.exists():
        if json.loads(marker.read_text())["identity"] != identity:
            raise ValueError(f"{folder} holds checkpoints of another training (other settings or rows): delete it")
        return
    write_text(marker, json.dumps({"identity": identity}))


def last_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint; what a killed process left unfinished is removed."""
    found = sorted(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for path in reversed(found):
        if _is_whole(path):
            return str(path)
        shutil.rmtree(path)
    return None


def _is_whole(checkpoint: Path) -> bool:
    if not all((checkpoint / name).is_file() for name in _WHOLE):
        return False
    try:  # the Trainer writes this file last
        json.loads((checkpoint / "trainer_state.json").read_text())
    except ValueError:
        return False
    return True


def _history(log: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    history = []
    for entry in log:
        names = {"loss": "loss", "learning_rate": "learning_rate"}
        names |= {name: name.replace("eval_", "validation_", 1) for name in entry if name.startswith("eval_")}
        values = {new: float(entry[old]) for old, new in names.items() if old in entry}
        if values:
            history.append({"step": entry["step"], "epoch": entry["epoch"]} | values)
    return history
