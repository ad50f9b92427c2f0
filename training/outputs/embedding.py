"""The answer is a place in a space that all modalities share: what belongs together lies near.

Shapes: B rows, V views, M modalities that there are, R rows of a pair, W width of the space.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from training.metrics import Metric
from training.outputs.base import Asked, Look
from training.outputs.linear import HeadOutput
from training.records import Answered, Figure
from training.retrieval_metrics import DIRECTIONS, METRICS, PLACE, WHOLE, ranks
from training.schema import MODALITIES, subset_name, subsets
from training.validation import check

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    from training.settings import ModelSettings


class EmbeddingOutput(HeadOutput):
    """A linear layer on what the language model makes of all positions, of length 1 (B, W).

    It is trained by contrast, as CLIP is (Radford et al. 2021): each subset of a row's inputs, read by itself
    (`views`), shall be nearest to each other modality of that row among those of the batch, and the other way round;
    the loss is the mean of the symmetric cross entropies over all such pairs, with a learned temperature. Rows that
    lack a part of a pair are left out of it, and rows of equal content are not each other's negatives.
    Logits (B, V, W) are the views divided by the square root of the temperature; targets (B, M) say which content a row
    has of each modality, 0 where none.

    A sample's label is what it has, as JSON: modality -> id of the content. It is judged by search among the samples
    that are judged together: a subset of its inputs asks for each of its other modalities among all their contents;
    with all inputs given, each of its proper subsets does. Right is what a sample with the same asking content has.
    """

    metrics = METRICS
    arrow_type = pa.list_(pa.float64())
    judged_type = pa.struct([(name, PLACE) for name in DIRECTIONS])
    has_labels, is_embedding = False, True
    least_inputs: ClassVar[int] = 2
    views = tuple(subset for subset in subsets(MODALITIES) if len(subset) < len(MODALITIES))

    @dataclass(frozen=True, kw_only=True)
    class Options:
        width: int = 64  # of the shared space
        temperature: float = 0.07  # at first: it is learned

        def __post_init__(self) -> None:
            check(self.width >= 2, "width", self.width, "at least 2")
            check(0.01 <= self.temperature <= 1, "temperature", self.temperature, "0.01 to 1")

    def __init__(self, fitted: Mapping[str, Any], options: Options | None = None) -> None:
        self.options = options or self.Options()

    @property
    def headlines(self) -> tuple[Metric, ...]:
        return WHOLE[0], *(WHOLE[0].of_part(direction) for direction in DIRECTIONS)

    def own_label(self, contents: Mapping[str, str]) -> str | None:
        return json.dumps(dict(contents), sort_keys=True) if len(contents) >= self.least_inputs else None

    def read(self, label: str) -> dict[str, str]:
        """Modality -> id of the content."""
        try:
            contents = json.loads(label)
        except ValueError as error:
            raise ValueError(f"it is no JSON object of contents: {error}") from None
        if not isinstance(contents, dict) or not contents.keys() <= set(MODALITIES):
            raise ValueError(f"it is JSON, and no object of contents by modality ({', '.join(MODALITIES)})")
        return contents

    def label_words(self, label: str) -> str:
        return subset_name(self.read(label))

    def words(self, label: Any, prediction: Any) -> dict[str, tuple[str, str | None]]:
        """The places."""
        said = prediction or {}
        return {
            name: (f"{place['rank']:.0f}", said.get(name) and f"{said[name]['rank']:.0f}")
            for name, place in label.items()
            if place is not None
        }

    def fit(
        self, labels: Sequence[str], tokenizer: "PreTrainedTokenizerBase | None", settings: "ModelSettings"
    ) -> dict[str, Any]:
        if len(labels) < 2:
            raise ValueError(
                f"output is 'embedding' and {len(labels)} training rows have two modalities, expected two rows at least"
            )
        return {}

    def targets(self, labels: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> "Tensor":
        import torch

        rows = map(self.read, labels)
        return torch.tensor([[_number(row[m]) if m in row else 0 for m in MODALITIES] for row in rows])

    def head(self, width: int) -> "nn.Module":
        from training.layers import SharedSpace

        return SharedSpace(width, self.options.width, self.options.temperature)

    def loss(self, logits: "Tensor", targets: "Tensor", smoothing: float = 0.0) -> "Tensor":
        import torch
        from torch.nn import functional

        logits, losses = logits.float(), []
        real_BV = logits.detach().ne(0).any(-1)
        number = {view: n for n, view in enumerate(self.views)}
        for asking, found in DIRECTIONS.values():
            if asking not in number or (len(asking) == 1 and asking[0] > found):  # that pair is there the other way
                continue
            a, b = number[asking], number[found,]
            rows_R = (real_BV[:, a] & real_BV[:, b]).nonzero()[:, 0]
            if len(rows_R) < 2:
                continue
            near_RR = logits[rows_R, a] @ logits[rows_R, b].T
            same_RR = _equal(targets[rows_R], asking) | _equal(targets[rows_R], (found,))
            near_RR = near_RR.masked_fill(same_RR.fill_diagonal_(False), -math.inf)
            own_R = torch.arange(len(rows_R), device=logits.device)
            losses += [functional.cross_entropy(scores, own_R) for scores in (near_RR, near_RR.T)]
        return torch.stack(losses).mean() if losses else logits.sum() * 0.0

    def answers(self, asked: Asked) -> list[list[float] | None]:
        from torch.nn import functional

        said = self.logits(asked.model, asked.embeddings_BSD, asked.mask_BS, None).double()
        rows = functional.normalize(said, dim=-1).tolist()
        return [row if all(map(math.isfinite, row)) else None for row in rows]

    def asked(self, inputs: Sequence[str]) -> list[tuple[str, ...]]:
        return subsets(inputs)

    def judged(self, answered: Sequence[Answered], look: Look | None = None) -> list[Answered]:
        contents = {row.sample: row.label for row in answered if row.label is not None}
        places = _places(contents, _embedded(answered))
        return [self._placed(row, places) for row in answered]

    def _placed(self, row: Answered, places: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Answered:
        """Of the directions that were not asked the label is None, and the prediction an order by chance."""
        shown, label, said = _shown(row), dict.fromkeys(DIRECTIONS), dict.fromkeys(DIRECTIONS)
        for name, (asking, _) in DIRECTIONS.items():
            if (place := places[name].get(row.sample)) is None:
                continue
            if asking != shown and len(shown) < len(row.label):
                said[name] = {**place, "rank": None}
                continue
            label[name] = {**place, "rank": 1.0}
            said[name] = None if place["rank"] is None else place
        is_answered = any(said[name] for name in DIRECTIONS if label[name])
        answer = replace(row.answer, prediction=said if is_answered else None)
        return replace(row, label=None if row.label is None else label, answer=answer)

    def constant(self, labels: Sequence[Any]) -> Any:
        """An order by chance, of all there is."""
        return {name: {"rank": None, "candidates": None, "right": None} for name in DIRECTIONS}

    def figures(self, labels: Sequence[Any], answers: Sequence[Any], seed: int = 0) -> dict[str, Figure]:
        """Of the directions that a row has, with `DIRECTION.n`: how many rows have it."""
        rows = {name: sum(label[name] is not None for label in labels) for name in DIRECTIONS}
        told = [metric for metric in self.metrics if metric.part is None or rows[metric.part]]
        found = {metric.name: metric.figure(labels, answers, seed) for metric in told}
        return found | {f"{name}.n": Figure(float(count)) for name, count in rows.items() if count}


def _number(content: str) -> int:
    """A number of 63 bits above 0 that stands for a content."""
    return 1 + int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest()) // 4


def _equal(targets_RM: "Tensor", modalities: Sequence[str]) -> "Tensor":
    """Whether two rows have the same contents of all these modalities (R, R)."""
    of_RK = targets_RM[:, [MODALITIES.index(m) for m in modalities]]
    return (of_RK[:, None] == of_RK[None]).all(-1)


def _shown(row: Answered) -> tuple[str, ...]:
    """What a sample was asked with, of what it has."""
    return tuple(m for m in MODALITIES if m in (row.label or ()) and m in row.subset.split("+"))


def _embedded(answered: Sequence[Answered]) -> dict[tuple[str, ...], dict[str, Any]]:
    """What was shown -> sample -> its embedding."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in answered:
        if row.answer.prediction is not None:
            found.setdefault(_shown(row), {})[row.sample] = row.answer.prediction
    return found


def _places(
    contents: Mapping[str, Mapping[str, str]], embedded: Mapping[tuple[str, ...], Mapping[str, Any]]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Direction -> sample -> where what is right stands (`PLACE`); the rank is None where the sample has no answer."""
    places: dict[str, dict[str, dict[str, Any]]] = {}
    for name, (asking, found) in DIRECTIONS.items():
        samples = [sample for sample, given in contents.items() if {*asking, found} <= given.keys()]
        numbers: dict[str, int] = {}
        first: list[str] = []  # a sample of each candidate
        for sample, given in contents.items():
            if found in given and given[found] not in numbers:
                numbers[given[found]] = len(first)
                first.append(sample)
        keys = {sample: tuple(contents[sample][m] for m in asking) for sample in samples}
        right: dict[tuple[str, ...], set[int]] = {}
        for sample, key in keys.items():
            right.setdefault(key, set()).add(numbers[contents[sample][found]])
        there, candidates = embedded.get(asking, {}), embedded.get((found,), {})
        told = [sample for sample in samples if sample in there]
        placed: dict[str, float] = {}
        if told:
            width = len(there[told[0]])
            found_CW = np.array([candidates.get(sample) or [math.nan] * width for sample in first])
            hits = [sorted(right[keys[sample]]) for sample in told]
            placed = dict(zip(told, ranks(np.array([there[s] for s in told]), found_CW, hits), strict=True))
        places[name] = {
            sample: {"rank": placed.get(sample), "candidates": len(first), "right": len(right[keys[sample]])}
            for sample in samples
        }
    return places
