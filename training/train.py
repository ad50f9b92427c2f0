"""Training with transformers.Trainer, and prediction. A stopped training resumes from its last whole checkpoint and
ends with the same weights, bit for bit, on the same machine."""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from training.data import Collator, EpochSampler, Row, SampleDataset
from training.model import FusionModel, build_model
from training.schema import fingerprint, subset_name
from training.settings import FeatureSettings, ModelSettings, TrainingSettings, to_dict
from training.tokenizer import fit_tokenizer, load_tokenizer

_WHOLE = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
_VALIDATION_ROWS = 512  # of each validation during training; the evaluation afterwards takes all
_LOGS = 50  # points of the loss curve


@dataclass(frozen=True)
class Trained:
    model: FusionModel  # in eval mode
    history: list[dict[str, float]]  # step, epoch and loss, or step, epoch and validation metrics


def make_tokenizer(train: SampleDataset, model: ModelSettings, training: TrainingSettings) -> PreTrainedTokenizerBase:
    """The language model's tokenizer; for `tiny` fitted on the training rows' texts and labels."""
    if model.llm != "tiny":
        return load_tokenizer(model.llm)
    labels = sorted({label for label in train.labels if label is not None})
    return fit_tokenizer((*train.texts(), *labels), training.vocabulary)


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
) -> Trained:
    """Trains a new model; resumes where `folder` holds a whole checkpoint of the same training.

    Args:
        train, validation: labelled rows; validation may be empty.
        folder: checkpoints lie here; the caller removes it when the model is stored.
        keep: modalities the model may read (for baselines); default: all that the training rows have.

    Raises:
        ValueError: no row to train on, or the checkpoints belong to another training.
    """
    modalities = tuple(m for m in train.modalities if keep is None or m in keep)
    if len(train) == 0 or not modalities:
        wanted = "some modality" if keep is None else subset_name(keep)
        raise ValueError(f"training has {len(train)} rows with {wanted}, expected at least one: look at the splits")
    torch.manual_seed(training.seed)
    classes = sorted({label for label in train.labels if label is not None}) if model.output == "class" else None
    network = build_model(model, features, tokenizer, modalities, classes)
    collator = make_collator(network, features, tokenizer)
    _claim(folder, fingerprint(to_dict(model), to_dict(training), to_dict(features), modalities, train.identity()))
    steps = math.ceil(math.ceil(len(train) / training.batch_size) / training.gradient_accumulation * training.epochs)
    trainer = _Trainer(
        model=network,
        args=_arguments(training, steps, folder, run_name, len(validation) > 0),
        train_dataset=train,
        eval_dataset=_sample(validation, training.seed),
        data_collator=collator.for_training(model.modality_dropout, training.seed),
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )
    trainer.collator = collator
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    return Trained(network.eval(), _history(trainer.state.log_history))
