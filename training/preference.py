"""A model learns from pairs of answers to the same inputs, of which people prefer one: direct preference optimization
(Rafailov et al. 2023). `training.preference_run` does it to a registered version.

`trl`'s DPOTrainer is not used: its rows are text, or pictures for its own vision collators, tokenized by itself, and it
calls the model by `input_ids`; soft tokens of three modalities, made of stored features, have no way in. What is left
of it is one formula.

Shapes: B pairs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from training.collator import Collator
from training.data import SampleDataset
from training.descent import train
from training.model import FusionModel
from training.preference_settings import PreferenceSettings

_BATCH = 64  # pairs that are measured at once


@dataclass(frozen=True)
class Preferred:
    """What came of a training by preferences."""

    pairs: int
    held_before: int  # of them, whose chosen answer is more probable than the rejected one
    held: int  # afterwards


def preference_loss(
    chosen_B: Tensor, rejected_B: Tensor, was_chosen_B: Tensor, was_rejected_B: Tensor, beta: float
) -> Tensor:
    """-log sigmoid(beta * ((log pi(chosen) - log ref(chosen)) - (log pi(rejected) - log ref(rejected)))), the mean.

    Args:
        chosen_B, rejected_B: log-probabilities of the answers by the model that learns.
        was_chosen_B, was_rejected_B: the same by the model as it was (the reference, which takes no gradient).
    """
    return -functional.logsigmoid(beta * ((chosen_B - was_chosen_B) - (rejected_B - was_rejected_B))).mean()


def log_probabilities(
    network: FusionModel, collate: Collator, pairs: SampleDataset, rejected: Sequence[str], numbers: Sequence[int]
) -> Tensor:
    """Of the chosen and the rejected answers of these pairs (2, B), as the network would answer: what is beside the
    language model counts, dropout does not.

    Args:
        collate: with targets.
        pairs: rows, labelled with the chosen answers.
    """
    network.eval()
    rows = pairs.__getitems__(list(numbers))
    others = [{**row, "label": rejected[n]} for row, n in zip(rows, numbers, strict=True)]
    batch = {name: tensor.to(network.device) for name, tensor in collate([*rows, *others]).items()}
    logits = network(**batch).logits
    return network.output.log_probabilities(logits, batch["labels"]).unflatten(0, (2, -1))


def learn_preferences(
    network: FusionModel,
    collate: Collator,
    pairs: SampleDataset,
    rejected: Sequence[str],
    rows: SampleDataset,
    settings: PreferenceSettings,
    learning_rate: float,
    log: Callable[[str], None] = print,
) -> Preferred:
    """Trains the network, which is its own reference as it comes.

    Args:
        collate, pairs, rejected: see `log_probabilities`.
        rows: labelled training rows, of which as many as there are pairs in a batch are drawn for each step, so that
            what nobody complained of stays as it is.

    Raises:
        ValueError: the loss became no number.
    """

    def all_pairs() -> Tensor:
        parts = torch.arange(len(pairs)).split(_BATCH)
        with torch.no_grad():
            said = [log_probabilities(network, collate, pairs, rejected, part.tolist()) for part in parts]
        return torch.cat(said, 1)

    if network.adapters is not None:
        network.adapters.requires_grad_(False)  # what groups have is theirs
    was_2P = all_pairs()
    draws = torch.Generator().manual_seed(settings.seed)

    def loss(numbers: Tensor, batch_number: int) -> Tensor:
        chosen_B, rejected_B = log_probabilities(network, collate, pairs, rejected, numbers.tolist())
        was_chosen_B, was_rejected_B = was_2P[:, numbers]
        total = preference_loss(chosen_B, rejected_B, was_chosen_B, was_rejected_B, settings.beta)
        if settings.answers and len(rows):
            drawn = torch.randint(len(rows), (len(numbers),), generator=draws).tolist()
            batch: dict[str, Any] = collate(rows.__getitems__(drawn))
            total = total + settings.answers * network(**{n: x.to(network.device) for n, x in batch.items()}).loss
        return total

    train(network, loss, len(pairs), settings.steps, log, settings.seed, settings.batch_size, learning_rate)
    network.eval()
    now_2P = all_pairs()
    if not bool(now_2P.isfinite().all()):
        raise ValueError(f"the loss became no number; lower preference.learning_rate (it is {learning_rate})")
    held_before, held = (int((said_2P[0] > said_2P[1]).sum()) for said_2P in (was_2P, now_2P))
    return Preferred(len(pairs), held_before, held)
