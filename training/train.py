"""Training with transformers.Trainer, and prediction. A stopped training resumes from its last whole checkpoint and
ends with the same weights, bit for bit, on the same machine."""

import gc
import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PrinterCallback, TrainerCallback, TrainingArguments
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_NAME

from training.adaptation import halve, merge, restore
from training.building import build_model, own_tokenizer
from training.calibration import calibrate
from training.catalog import ADVERSARIES, OBJECTIVES, OUTPUTS
from training.checkpoints import claim, last_checkpoint
from training.collator import Collator, make_collator
from training.compilation import CompiledLayers
from training.data import Row, SampleDataset
from training.device import chosen_device
from training.distributed import first_says, is_first, part_of, shards
from training.encoders.base import Encoder
from training.features import FeatureSettings
from training.linear_model import fit_linear
from training.mixing import can_mix, check_mixing
from training.model import FusionModel
from training.objectives.options import FUSED, check_objectives, column_of
from training.outputs.base import Output
from training.packing import keeps_rows_apart, unpackable
from training.processor import contents
from training.records import Answer
from training.schema import fingerprint, subset_name
from training.settings import TINY, ModelSettings, TrainingSettings, for_rows
from training.spec import identity, training_identity
from training.tokenizer import fit_tokenizer
from training.trainer import EarlyStopping, Progress, Trainer, even_batches
from training.validation import check
from training.variants.base import AnsweringBundle
from training.views import Places

_VALIDATION_ROWS = 512  # of each validation during training; the evaluation afterwards takes all
_CALIBRATION_BATCH = 64
_LINEAR_ROWS = 4096  # of the training, which a linear model is fitted on
_PATIENCE = 7 * 24 * 3600  # seconds; where a process ends, torchrun ends the others
_LOGS = 50  # points of the loss curve


@dataclass(frozen=True)
class Trained:
    model: FusionModel  # in eval mode
    history: list[dict[str, float]]  # step, epoch, loss (of several objectives loss_*, too), learning_rate; or
    # step, epoch, validation_*


def make_tokenizer(train: SampleDataset, model: ModelSettings, training: TrainingSettings) -> PreTrainedTokenizerBase:
    """The language model's tokenizer; for `tiny` fitted on the training rows' texts and labels."""
    if model.llm.model != TINY:
        return own_tokenizer(model)
    output = OUTPUTS.make(model.output, {})
    columns = output.columns(train.labels).values() if output.has_labels else ()  # else they are ids
    labels = (label for _, column in columns for label in column if label is not None)
    return fit_tokenizer(itertools.chain(train.texts(), labels), training.vocabulary)


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """A model to train: everything that decides its weights."""

    model: ModelSettings
    training: TrainingSettings
    features: FeatureSettings
    train: SampleDataset  # labelled rows
    validation: SampleDataset  # labelled rows; may be empty
    tokenizer: PreTrainedTokenizerBase
    test: Sequence[Row] | SampleDataset = ()  # answered afterwards; decides no weight
    keep: frozenset[str] | None = None  # modalities the model may read (for baselines); None: all of the training rows
    noise: Mapping[str, Sequence[np.ndarray]] = field(default_factory=dict)  # modality -> clips for augmentation
    # modality -> contents that a row may have, or its views, if not one
    several: Mapping[str, Places] = field(default_factory=dict)
    # Sample id -> x_m* (D,), where an objective learns from a teacher; its options say which one.
    teacher: Mapping[str, np.ndarray] = field(default_factory=dict)
    # Sample id -> what the column says that an objective's options name, of training and validation rows.
    said: Mapping[str, str] = field(default_factory=dict)
    # Of an output that makes contents: modality -> codec, and -> content -> its codes.
    codecs: Mapping[str, Any] = field(default_factory=dict)
    codes: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    start: Mapping[str, Tensor] = field(default_factory=dict)  # weights of `training.pretraining`, where there are some
    # Of a model that silos train (`training.federation`): what the output knows of labels, and the modalities that it
    # reads, whatever the rows here have.
    fitted: Mapping[str, Any] | None = None
    reads: tuple[str, ...] = ()
    watched: frozenset[str] = frozenset()  # metrics that validations say beside the output's headlines

    def __post_init__(self) -> None:
        output, several = OUTPUTS.make(self.model.output, {}), set(self.several).intersection(self.modalities)
        mixable = not self.teacher and can_mix(self.modalities, self.features, output, self.model.columns, several)
        counts = len(self.train), len(self.validation)
        object.__setattr__(self, "training", for_rows(self.training, self.model, *counts, mixable))

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those that the model reads."""
        return self.reads or tuple(m for m in self.train.modalities if self.keep is None or m in self.keep)

    def identity(self) -> str:
        """Names the training, so that it never goes on from another one's checkpoint."""
        settings = identity(self.model), training_identity(self.training), self.features.plain()
        # Where layers are parted the optimizer has other groups: neither goes on from the other's checkpoint.
        parted = ["shard"] if shards() else []
        several = [dict(self.several)] if self.several else []
        return fingerprint(*settings, list(self.modalities), self.train.identity(), *parted, *several)


def fit(
    task: TrainingTask,
    folder: Path,
    callbacks: Sequence[TrainerCallback] = (),
    run_name: str | None = None,
    refits: bool = True,
) -> Trained:
    """Trains a new model; resumes where `folder` holds a whole checkpoint of the same training.

    Args:
        folder: checkpoints lie here; the caller removes it when the model is stored.
        refits: whether a linear model beside the language model is fitted anew with the validation rows among its own
            in the end: not where these are to say what the model is worth.

    Raises:
        ValueError: no row to train on, none to validate on where early stopping needs them, a label that no answer
            could be, a prompt that is too long for the language model, the checkpoints are of another training, or the
            loss is no number.
    """
    if len(task.train) == 0 or not task.modalities:
        wanted = "any modality" if task.keep is None else subset_name(task.keep)
        raise ValueError(f"no training row has {wanted} ({len(task.train)} rows): look at the splits and at keep")
    if task.training.early_stopping is not None and len(task.validation) == 0:
        raise ValueError("training.early_stopping is set, and there is no validation row: look at align.split")
    network = new_model(task)
    collator = make_collator(network, task.tokenizer, task.features)
    for rows in (task.train, task.validation, task.test):
        collator.check_prompts(rows[n] for n in range(len(rows)))
    trainer = make_trainer(task, network, Path(folder), callbacks, run_name)
    checkpoint = first_says(partial(_claimed, folder, task))
    # The Trainer collects garbage first, and each collection would look through all that is imported; unless a search,
    # which trains again and again, has seen to it.
    if alone := gc.get_freeze_count() == 0:
        gc.freeze()
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        if alone:
            gc.unfreeze()
    if shards():
        network = _whole(task, trainer)
    history = _history(trainer.state.log_history)
    if any(not math.isfinite(entry.get("loss", 0.0)) for entry in history):
        rate = task.training.learning_rate
        raise ValueError(f"the loss became no number; lower training.learning_rate (it is {rate})")
    return finished(task, network, history, refits)


def finished(task: TrainingTask, network: FusionModel, history: list[dict[str, float]], refits: bool = True) -> Trained:
    """The model that answers, of the network whose training has ended; see `fit`."""
    collator = make_collator(network, task.tokenizer, task.features)
    network.leave_out_base()
    network.eval().compiled, network.packs = None, False
    network.whole = restore(network.whole)
    merge(network.encoders)  # what LoRA learned becomes part of the weights, so that a saved encoder is a plain one
    network.objectives = nn.ModuleList()  # they have served: the model that answers is without their parameters
    rows, refit = _sample(task.validation, task.training.seed), None
    if network.linear is not None and is_first():
        labelled = _with_targets(collator, network, task)
        trained_on = even_batches(_sample(task.train, task.training.seed, _LINEAR_ROWS), labelled, _CALIBRATION_BATCH)
        held_out = even_batches(rows, labelled, _CALIBRATION_BATCH) if len(rows) else ()
        refit = fit_linear(network.eval(), trained_on, held_out, task.model.linear_share)
    if is_first():
        fit_temperature(network, collator, task)
    if refit is not None and refits:
        refit()
    return Trained(network.eval(), history)


def fit_temperature(network: FusionModel, collator: Collator, task: TrainingTask) -> None:
    """Calibrates what answers on validation rows, where there are some. Args: `collator` makes no labels."""
    rows = _sample(task.validation, task.training.seed)
    if len(rows):
        labels = [label for label in rows.labels if label is not None]  # all have one
        calibrate(network.eval(), even_batches(rows, collator, _CALIBRATION_BATCH), labels, task.tokenizer)


def _whole(task: TrainingTask, trainer: Any) -> FusionModel:
    """The model of which layers were parted, in one piece: made anew, with the weights that were trained."""
    best = trainer.state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    weights = load_file(Path(best) / SAFE_WEIGHTS_NAME) if best else trainer.kept_weights()
    network = new_model(task)
    network.load_state_dict(weights, strict=False)  # what was not trained is as it was
    return network.to(trainer.args.device)


def _claimed(folder: Path, task: TrainingTask) -> str | None:
    """The checkpoint that the training goes on from."""
    claim(Path(folder), task.identity())
    return last_checkpoint(Path(folder))


def new_model(task: TrainingTask) -> FusionModel:
    """The model before its first step, with its objectives."""
    torch.manual_seed(task.training.seed)  # the weights' start; everything random in the data has keys of its own
    labels = [label for label in task.train.labels if label is not None]
    model = task.model
    if column_of(task.training.objectives):  # a linear model reads the vectors themselves, and what is to be forgotten
        model = replace(model, linear_share=0.0)
    facts = task.modalities, labels, task.several, task.fitted
    network = build_model(model, task.features, task.tokenizer, *facts)
    for modality in network.config.modalities:
        encoder: Encoder = network.encoders[modality]  # type: ignore[assignment]  # of a ModuleDict
        encoder.fit(_read_tensors(task, modality, encoder.looks_at))
    take_weights(network, task.start)
    if task.codecs:  # else it is made to learn encoders alone
        network.output.take(task.codecs, task.codes)
    check_objectives(task.training.objectives, network.output, task.model.output.kind)
    # A baseline may lack the modality that one reads.
    read = (FUSED, *task.modalities)
    chosen = [o for o in task.training.objectives if getattr(OBJECTIVES.options(o), "on", FUSED) in read]
    network.objectives = nn.ModuleList(OBJECTIVES.make(o, network.config, task.training) for o in chosen)
    for objective in network.objectives:
        objective.fit(network, _said(task))  # type: ignore[operator]  # of a ModuleList
    return network


def _said(task: TrainingTask) -> dict[str, str]:
    """What the column says of the training rows."""
    return {s: task.said[s] for s in task.train.index["sample_id"].to_pylist() if s in task.said} if task.said else {}


def take_weights(network: FusionModel, weights: Mapping[str, Tensor]) -> None:
    """What a model starts from, as far as it reads those modalities. Raises ValueError: it has other encoders."""
    own = network.state_dict() if weights else {}
    known = {name: weight for name, weight in weights.items() if name in own}
    for name, weight in known.items():
        if own[name].shape != weight.shape:
            raise ValueError(f"pretraining made {name} {tuple(weight.shape)}, the model has {tuple(own[name].shape)}")
    if known:
        network.load_state_dict(known, strict=False)


def _read_tensors(task: TrainingTask, modality: str, most: int | None) -> Iterator[np.ndarray]:
    """What the encoder of a modality reads of each content of the training rows, or of `most` of these."""
    name = task.features.featurizer(modality).read
    rows = task.train if most is None else _sample(task.train, 0, most)
    for n in range(len(rows)):
        for columns in contents(rows[n], modality):
            yield columns[name]


def make_trainer(
    task: TrainingTask, network: FusionModel, folder: Path, callbacks: Sequence[TrainerCallback], run_name: str | None
) -> Trainer:
    """What trains `network` as the task says; its checkpoints go to `folder`."""
    training, rows = task.training, len(task.train)
    assert training.epochs is not None
    mixing, config = training.mixing or 0.0, network.config
    read = task.modalities, task.features, network.output, config.columns, config.several
    check_mixing(mixing, *read, training.cutmix)
    _check_teacher(task, network)
    network.leave_out_base(of_encoders=True)
    network.packs = _packs(task, network)
    if training.compile:
        network.compiled = CompiledLayers(network.llm)
    if training.precision == "bfloat16":
        network.whole = halve(network)
    if torch.cuda.is_available():
        # It plans a kernel for each new shape, which takes longer than the step, and each batch has lengths of its own.
        torch.backends.cuda.enable_cudnn_sdp(False)
    steps = math.ceil(math.ceil(rows / training.batch_size / training.gradient_accumulation) * training.epochs)
    collator = make_collator(network, task.tokenizer, task.features)
    collator = _with_targets(collator, network, task)
    kind: type[Trainer] = Trainer
    if shards():
        from training import sharding  # heavy, and seldom needed

        kind = sharding.ShardingTrainer
    trainer = kind(
        model=network,
        args=_arguments(training, network.output, steps, folder, run_name, len(task.validation) > 0),
        train_dataset=task.train.paired(training.seed),
        eval_dataset=_sample(task.validation, training.seed),
        data_collator=replace(
            collator,
            seeds=False,
            modality_dropout=task.model.modality_dropout,
            item_dropout=task.model.item_dropout,
            augment=augmenters(training.augmentation, task.features, task.noise),
            teacher=task.teacher,
            column=_numbers(task, network),
            mixing=mixing,
            cutmix=training.cutmix,
            seed=training.seed,
        ),
        callbacks=[*callbacks, Progress(network), *_stopping(training)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.tokenizer, trainer.evaluation_collator = task.tokenizer, collator
    trainer.named_losses, trainer.clipped = {}, []
    if training.adversary is not None:
        check(not shards(), "training.adversary", str(training.adversary), "null where layers are parted (fsdp)")
        trainer.adversary = ADVERSARIES.make(training.adversary)
    watched = {training.metric, *task.watched}
    trainer.watched = tuple(metric for metric in network.output.metrics if metric.name in watched)
    return trainer


def _numbers(task: TrainingTask, network: FusionModel) -> dict[str, int]:
    """Sample id -> number of what the column says, where an objective reads it."""
    critics: list[Any] = [objective for objective in network.objectives if hasattr(objective, "numbers")]
    return critics[0].numbers(_said(task)) if critics else {}


def _check_teacher(task: TrainingTask, network: FusionModel) -> None:
    """Raises ValueError where a teacher's x_m cannot be learned."""
    if task.teacher:
        for name in ("mixing", "cutmix"):
            asked = getattr(task.training, name)
            check(not asked, f"training.{name}", asked, "0 beside the objective distillation")
        width, own = len(next(iter(task.teacher.values()))), network.config.llm_width
        expected = f"{own}, as the language model here"
        check(width == own, "the width of the teacher's x_m (training.objectives)", width, expected)
        if not task.teacher.keys() & set(task.train.index["sample_id"].to_pylist()):
            raise ValueError("training.objectives: the teacher knows none of these training rows by their sample_id")


def _with_targets(collator: Collator, network: FusionModel, task: TrainingTask) -> Collator:
    return replace(collator, targets=partial(network.output.targets, tokenizer=task.tokenizer), seeds=False)


def _packs(task: TrainingTask, network: FusionModel) -> bool:
    """Whether the language model reads packed rows. Raises ValueError: it shall, and cannot."""
    name, asked = task.model.llm.model, task.training.packing
    if asked is False or (asked is None and name == TINY):
        return False
    if keeps_rows_apart(network.llm):
        return True
    if asked:
        raise ValueError(unpackable(name))
    warnings.warn(f"{unpackable(name)}: they are padded", stacklevel=2)
    return False


def predict(
    model: FusionModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: SampleDataset | Sequence[Row],
    features: FeatureSettings,
    keep: frozenset[str] | None = None,
    batch_size: int = 256,
    shuffle_seed: int | None = None,
) -> list[Any]:
    """The prediction of each row, in order; see `scored_answers`."""
    answers = scored_answers(model, tokenizer, rows, features, keep, batch_size, shuffle_seed)
    return [answer.prediction for answer in answers]


def scored_answers(
    model: AnsweringBundle,
    tokenizer: PreTrainedTokenizerBase,
    rows: SampleDataset | Sequence[Row],
    features: FeatureSettings,
    keep: frozenset[str] | None = None,
    batch_size: int = 256,
    shuffle_seed: int | None = None,
) -> list[Answer]:
    """The model's answer to each row, in order.

    Args:
        keep: only these modalities are shown to the model.
        shuffle_seed: give every row the soft tokens of another row of its batch: a model that listens to its fusion
            then answers by chance.

    Raises:
        ValueError: a row that should get the tokens of another is alone.
    """
    collator = make_collator(model, tokenizer, features, keep)
    random = None if shuffle_seed is None else np.random.default_rng(shuffle_seed)
    model.eval()
    answers = []
    for batch in even_batches(rows, collator, batch_size):
        size = len(batch["present"])
        if random is not None and size == 1:
            raise ValueError(f"one of {len(rows)} rows is alone in its batch: no other has soft tokens for it")
        other = None if random is None else torch.arange(size).roll(int(random.integers(1, size)))
        answers += model.scored_answers(batch, tokenizer, other)
    return answers


def augmenters(
    settings: Mapping[str, Any], features: FeatureSettings, noise: Mapping[str, Sequence[np.ndarray]]
) -> dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]]:
    """What changes the training rows' values, by modality."""
    return {m: features.featurizer(m).augmenter(section, noise.get(m, ())) for m, section in settings.items()}


def _stopping(training: TrainingSettings) -> list[TrainerCallback]:
    return [] if training.early_stopping is None else [EarlyStopping(training.early_stopping)]


def _arguments(
    training: TrainingSettings, output: Output, steps: int, folder: Path, run_name: str | None, validate: bool
) -> TrainingArguments:
    assert training.epochs is not None
    validate = validate and training.evaluations > 0
    every = math.ceil(steps / training.evaluations) if validate else None
    more: dict[str, Any] = {"activation_checkpointing": True} if training.gradient_checkpointing else {}
    if training.early_stopping is not None:
        metric = None if training.metric == "loss" else output.metric(training.metric)
        more |= {
            "load_best_model_at_end": True,
            "metric_for_best_model": "loss" if metric is None else metric.name,
            "greater_is_better": metric is not None and metric.higher_is_better,
            "restore_callback_states_from_checkpoint": True,  # how many validations were no better
        }
    return TrainingArguments(
        **more,
        output_dir=str(folder),
        run_name=run_name,
        num_train_epochs=training.epochs,
        per_device_train_batch_size=part_of(training.batch_size),
        per_device_eval_batch_size=256,
        gradient_accumulation_steps=training.gradient_accumulation,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        adam_beta2=0.95,  # as language models are trained: a small one learns arithmetic sooner
        warmup_steps=training.warmup,  # below 1: a share of all steps
        lr_scheduler_type="cosine",
        optim="adamw_torch_fused",
        max_grad_norm=training.max_grad_norm,
        bf16=training.precision == "bfloat16",
        # A batch may lack a modality; and the others wait while the first process evaluates one model after another.
        ddp_find_unused_parameters=True,
        ddp_timeout=_PATIENCE,
        use_cpu=chosen_device().type == "cpu",  # said in so many words, or a CPU is refused bfloat16
        seed=training.seed,
        logging_steps=max(1, steps // _LOGS),
        logging_nan_inf_filter=False,
        eval_strategy="steps" if validate else "no",
        eval_steps=every,
        # What is best must be there to go back to.
        save_steps=every if training.early_stopping is not None and every else training.checkpoint_steps,
        save_total_limit=2,
        dataloader_num_workers=training.workers,
        dataloader_pin_memory=chosen_device().type == "cuda",
        remove_unused_columns=False,
        report_to=list(training.report_to) or "none",
        disable_tqdm=True,
    )


def _sample(rows: SampleDataset, seed: int, most: int = _VALIDATION_ROWS) -> SampleDataset:
    if len(rows) <= most:
        return rows
    return rows.take(np.sort(np.random.default_rng(seed).permutation(len(rows))[:most]))


def _history(log: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    history = []
    for entry in log:
        names = {name: name for name in entry if name in ("loss", "learning_rate") or name.startswith("loss_")}
        names |= {name: name.replace("eval_", "validation_", 1) for name in entry if name.startswith("eval_")}
        values = {new: float(entry[old]) for old, new in names.items()}
        if values:
            history.append({"step": entry["step"], "epoch": entry["epoch"]} | values)
    return history
