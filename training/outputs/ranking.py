"""The answer is the items of the training labels in an order, the best first.

Shapes: B rows, C items.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from training.metrics import CLASSES
from training.outputs.linear import LinearOutput
from training.outputs.string import finite, names_of
from training.ranking_metrics import ECE, KENDALL_TAU, NDCG, TOP_1
from training.records import Answer
from training.validation import check

if TYPE_CHECKING:
    from torch import Tensor
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    from training.settings import ModelSettings


class RankingOutput(LinearOutput):
    """A linear layer on what the language model makes of all positions, a score of each item (B, C). Targets (B, C)
    are places from 0, and C where the label does not name the item: that comes after all it names, in no order.

    The loss is the mean surprise at each named item as the next one, by the scores of those that are left: the model of
    Plackett (1975) and Luce, as ListMLE trains it (Xia et al. 2008).
    """

    metrics = (KENDALL_TAU, NDCG, TOP_1, ECE)
    share = NDCG
    arrow_type = pa.list_(pa.string())
    has_probabilities = True

    @dataclass(frozen=True, kw_only=True)
    class Options:
        separator: str = ">"  # of the items in a cell; a list (of Parquet or JSON) needs none

        def __post_init__(self) -> None:
            check(self.separator.strip() != "", "separator", self.separator, "a sign between items, such as > or ;")

    def __init__(self, fitted: Mapping[str, Any], options: Options | None = None) -> None:
        self.options = options or self.Options()
        self.items: list[str] = list(fitted.get("items", ()))
        self.temperature = float(fitted.get("temperature", 1.0))
        self._numbers = {item: number for number, item in enumerate(self.items)}

    def read(self, label: str) -> list[str]:
        """The items, the best first."""
        names = names_of(label, self.options.separator)
        if not names:
            raise ValueError("it names no item")
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise ValueError(f"it names {twice[0]!r} twice")
        return names

    def fit(
        self, labels: Sequence[str], tokenizer: "PreTrainedTokenizerBase | None", settings: "ModelSettings"
    ) -> dict[str, Any]:
        """items: the distinct ones, sorted."""
        items = sorted({item for label in labels for item in self.read(label)})
        if len(items) < 2:
            raise ValueError(f"output is 'ranking' and training rows name {len(items)} items, expected two at least")
        return {"items": items}

    def targets(self, labels: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> "Tensor":
        import torch

        targets_BC = torch.full((len(labels), len(self.items)), len(self.items))
        for row, label in enumerate(labels):
            # One that training never saw has no score: the places of the others close up.
            known = [self._numbers[item] for item in self.read(label) if item in self._numbers]
            targets_BC[row, known] = torch.arange(len(known))
        return targets_BC

    @property
    def width(self) -> int:
        return len(self.items)

    @property
    def target_width(self) -> int:
        return len(self.items)

    @property
    def loss_of_nothing(self) -> float:
        return math.lgamma(len(self.items) + 1) / max(1, len(self.items))  # all orders alike, of all items

    def loss(self, logits: "Tensor", targets: "Tensor", smoothing: float = 0.0) -> "Tensor":
        places, order = targets.sort(stable=True, dim=1)
        sorted_BC = logits.float().gather(1, order)
        left_BC = sorted_BC.flip(1).logcumsumexp(1).flip(1)  # of this item and all that come later
        named_BC = places < len(self.items)
        surprise_BC = (left_BC - sorted_BC) * named_BC
        return (surprise_BC.sum(1) / named_BC.sum(1).clamp(min=1)).mean()

    def surprises_of(self, logits: "Tensor", targets: "Tensor", temperatures: Sequence[float]) -> "Tensor":
        """Of the first item being the first."""
        import torch
        from torch.nn import functional

        place, best = targets.min(1)
        known = place < len(self.items)
        lost = [functional.cross_entropy(logits / t, best, reduction="none") * known for t in temperatures]
        return torch.stack(lost)

    def answers_of(self, logits: "Tensor") -> list[Answer]:
        """All items; the probability is that the first is the first, and the best are items with that of their own."""
        chances, order = (logits / self.temperature).softmax(-1), logits.argsort(stable=True, dim=-1, descending=True)
        rows = zip(order.tolist(), chances.gather(1, order)[:, :CLASSES].tolist(), strict=True)
        return [
            Answer(
                [self.items[n] for n in numbers],
                finite(best[0]),
                tuple((self.items[n], p) for n, p in zip(numbers, best, strict=False) if math.isfinite(p)),
            )
            for numbers, best in rows
        ]

    def constant(self, labels: Sequence[Any]) -> Any:
        """Items by their mean place (Borda), those that a label does not name being last together."""
        if not labels:
            return None
        items = sorted({item for label in labels for item in label})
        places = dict.fromkeys(items, 0.0)
        for label in labels:
            named = {item: n for n, item in enumerate(label)}
            last = (len(label) + len(items) - 1) / 2
            places = {item: place + named.get(item, last) for item, place in places.items()}
        return sorted(items, key=lambda item: (places[item], item))
