"""What a model answers to rows that an adversary has changed: how far its accuracy holds."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from training.adversaries.base import Adversary
from training.collator import make_collator
from training.data import Row, SampleDataset
from training.features import FeatureSettings
from training.model import FusionModel
from training.records import Answer
from training.trainer import even_batches


def answers_under_attack(
    model: FusionModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: SampleDataset | Sequence[Row],
    features: FeatureSettings,
    adversary: Adversary,
    batch_size: int = 256,
) -> list[Answer]:
    """The model's answer to each row, in order, each with the change that the adversary finds worst for its label."""
    collator = make_collator(model, tokenizer, features)
    collator = replace(collator, targets=partial(model.output.targets, tokenizer=tokenizer), seeds=False)
    model.eval()
    answers = []
    for batch in even_batches(rows, collator, batch_size):
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        with adversary.at(model) as changes:
            adversary.worsen(model, batch, changes, model(**batch).loss)
            answers += model.scored_answers(batch, tokenizer)
    return answers
