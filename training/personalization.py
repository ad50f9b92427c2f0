"""Personalization: a small adapter for each group (a speaker, a household, a site) over a frozen model that all share.

An adapter changes the tokens e_m that the fusion reads of each modality m of a row of its group g, by what LoRA adds to
a linear layer (Hu et al. 2022) and a bias: e_m + e_m D_gm U_gm + b_gm. At first U and b are zero, so that it answers as
the model does; rows of no known group are left as they are. All groups lie in three tensors of the model's own file.

Shapes: B rows, G groups, N modalities, T tokens of each, D their width, R rank.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from training.collator import Collator, make_collator
from training.data import SampleDataset
from training.descent import train
from training.features import FeatureSettings
from training.personalization_settings import PersonalizationSettings

if TYPE_CHECKING:
    from training.model import FusionModel

_BATCH = 256  # rows that are judged at once
_HELD_OUT = 4  # of the training rows of a group without validation rows every fourth judges its adapter


class GroupAdapters(nn.Module):
    """See the module. `group` of a batch is the number of each row's group (B,), -1 of none."""

    def __init__(self, groups: int, modalities: int, width: int, rank: int) -> None:
        super().__init__()
        self.bias_GND = nn.Parameter(torch.empty(groups, modalities, width))
        self.down_GNDR = nn.Parameter(torch.empty(groups, modalities, width, rank))
        self.up_GNRD = nn.Parameter(torch.empty(groups, modalities, rank, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.bias_GND)
        nn.init.zeros_(self.up_GNRD)
        nn.init.normal_(self.down_GNDR, std=self.down_GNDR.shape[2] ** -0.5)

    def forward(self, tokens_BNTD: Tensor, group_B: Tensor) -> Tensor:
        n_B, known_B = group_B.clamp(min=0), (group_B >= 0).to(tokens_BNTD.dtype)
        added_BNTD = tokens_BNTD @ self.down_GNDR[n_B] @ self.up_GNRD[n_B] + self.bias_GND[n_B][:, :, None]
        return tokens_BNTD + added_BNTD * known_B[:, None, None, None]


@dataclass(frozen=True)
class Adapted:
    """What came of a group's adapter."""

    group: str
    rows: int  # that it was trained on
    judged: int  # rows that it was judged by
    shared: float  # mean score of the shared model there, by the output's first metric
    own: float  # and of the adapter
    kept: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def group_of(row: Mapping[str, Any], column: str) -> str:
    """ "" where a row says none."""
    return str((row.get("columns") or {}).get(column) or "")


def add_adapters(network: "FusionModel", column: str, names: Sequence[str], rank: int) -> None:
    """New adapters, which change nothing yet."""
    network.config.groups = {"column": column, "names": list(names), "rank": rank}
    network.adapters = GroupAdapters(len(names), len(network.config.modalities), network.config.width, rank).to(
        network.device
    )


def personalize(
    network: "FusionModel",
    tokenizer: PreTrainedTokenizerBase,
    features: FeatureSettings,
    rows: SampleDataset,
    validation: SampleDataset,
    settings: PersonalizationSettings,
    log: Callable[[str], None] = print,
) -> list[Adapted]:
    """Gives a trained model an adapter for each group with enough training rows; those that are worse than the model
    itself on the group's validation rows are dropped. Of a group without any, training rows are held out for that.

    Args:
        rows, validation: labelled, opened with the column of the group (`SampleDataset.columns`).
    """
    train_of, judge_of = _parted(rows, validation, settings)
    names = list(train_of)
    if not names:
        return []
    add_adapters(network, settings.group, names, settings.rank)
    learn_adapters(
        network, tokenizer, features, rows.take(sorted(n for of in train_of.values() for n in of)), settings, log
    )
    found, kept = [], []
    for number, name in enumerate(names):
        judged = judge_of[name]
        own, shared = (_worth(network, tokenizer, features, judged, is_own) for is_own in (True, False))
        is_kept = own[0] >= shared[0] and own[1] < shared[1]
        kept += [number] if is_kept else []
        counts = len(train_of[name]), len(judged)
        found.append(Adapted(name, *counts, shared=round(shared[0], 4), own=round(own[0], 4), kept=is_kept))
    _keep(network, [names[n] for n in kept], kept, settings)
    return found


def learn_adapters(
    network: "FusionModel",
    tokenizer: PreTrainedTokenizerBase,
    features: FeatureSettings,
    rows: SampleDataset,
    settings: PersonalizationSettings,
    log: Callable[[str], None] = print,
) -> None:
    """Trains the adapters of a model on rows of their groups; all else of it takes no gradient."""
    assert network.adapters is not None
    collate = _collator(network, tokenizer, features)
    learning = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    network.requires_grad_(False)
    network.adapters.requires_grad_(True)

    def loss(numbers: Tensor, batch_number: int) -> Tensor:
        network.eval()  # no dropout: few rows, and what they change is small
        return _said(network, collate(rows.__getitems__(numbers.tolist()))).loss

    steps = max(1, round(settings.epochs * -(-len(rows) // settings.batch_size)))
    train(network, loss, len(rows), steps, log, settings.seed, settings.batch_size, settings.learning_rate)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in learning)
    network.eval()


def _parted(
    rows: SampleDataset, validation: SampleDataset, settings: PersonalizationSettings
) -> tuple[dict[str, list[int]], dict[str, SampleDataset]]:
    """Group -> numbers of the rows that its adapter learns from; and -> the rows that judge it."""
    of = {name: some for name, some in _groups(rows, settings.group).items() if len(some) >= settings.minimum}
    held = _groups(validation, settings.group)
    train_of, judge_of = {}, {}
    for name, numbers in sorted(of.items()):
        if name in held:
            train_of[name], judge_of[name] = numbers, validation.take(held[name])
        else:
            train_of[name] = [n for at, n in enumerate(numbers) if (at + 1) % min(_HELD_OUT, len(numbers))]
            judge_of[name] = rows.take([n for n in numbers if n not in train_of[name]])
    return train_of, judge_of


def _groups(rows: SampleDataset, column: str) -> dict[str, list[int]]:
    """Group -> numbers of its rows; rows that say none are in none."""
    groups: dict[str, list[int]] = {}
    for number, name in enumerate(rows.column(column)):
        groups.setdefault(name, []).append(number)
    groups.pop("", None)
    return groups


def _collator(network: "FusionModel", tokenizer: PreTrainedTokenizerBase, features: FeatureSettings) -> Collator:
    targets = partial(network.output.targets, tokenizer=tokenizer)
    return replace(make_collator(network, tokenizer, features), targets=targets, seeds=False)


def _said(network: "FusionModel", batch: Mapping[str, Tensor]) -> Any:
    return network(**{name: tensor.to(network.device) for name, tensor in batch.items()})


def _worth(
    network: "FusionModel",
    tokenizer: PreTrainedTokenizerBase,
    features: FeatureSettings,
    rows: SampleDataset,
    own: bool,
) -> tuple[float, float]:
    """How good answers to rows are by the output's first metric (more is better), and their loss."""
    from training.trainer import even_batches

    metric, collate = network.output.metrics[0], _collator(network, tokenizer, features)
    collate = collate if own else replace(collate, groups={})
    answers, losses = [], []
    with torch.no_grad():
        for batch in even_batches(rows, collate, _BATCH):
            answers += network.scored_answers(batch, tokenizer)
            losses.append(float(_said(network, batch).loss) * len(batch["present"]))
    value = metric.value([network.output.read(label) for label in rows.labels if label is not None], answers) or 0.0
    return (value if metric.higher_is_better else -value), sum(losses) / len(rows)


def _keep(
    network: "FusionModel", names: Sequence[str], numbers: Sequence[int], settings: PersonalizationSettings
) -> None:
    """Drops the adapters of all other groups."""
    assert network.adapters is not None
    was = network.adapters.state_dict()
    if not names:
        network.adapters, network.config.groups = None, {}
        return
    add_adapters(network, settings.group, names, settings.rank)
    network.adapters.load_state_dict({name: tensor[list(numbers)] for name, tensor in was.items()})
