"""The answer is several at once: a class, another one, a number, a text, each of a column of its own.

Shapes: B rows, S positions of the context, C logits and T targets of all members that a linear layer gives side by
side, A tokens of a text, V vocabulary, G temperatures, M members that have probabilities.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from training.catalog import OUTPUTS
from training.label_metrics import mean_of_defined
from training.metrics import Metric, Statistic
from training.outputs.base import AnsweringModel, Asked, Output
from training.outputs.linear import IGNORED, LinearOutput
from training.outputs.text import TextOutput
from training.records import Answer, Figure
from training.validation import check

if TYPE_CHECKING:
    from torch import Tensor
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    from training.settings import ModelSettings

_NAME_SIGNS = "_-. "  # beside letters and digits: what MLflow takes in the name of a metric


class SeveralOutput(LinearOutput):
    """One linear layer, whose logits (B, C) are parted among the members: outputs with labels, loss, temperature and
    metrics of their own. A label is a JSON object of the members' labels; a row may lack some of them.

    One member may be a text: the language model writes it behind the context, of which the linear layer reads all
    positions, and none of the text. In training both come of one reading, since a causal model makes of a context the
    same whatever stands behind it; logits are then (B, C + A * V), the text's behind the others.

    Targets (B, T), with a text (B, T + A), are the members' side by side, nan where a row has no label that the member
    knows: it is left out of that member's loss and metrics. The loss is the mean over the members of each one's, which
    is 1 for who knows nothing.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options:
        outputs: dict[str, Any] = field(default_factory=dict)  # column -> kind, of those that have a `share`

        def __post_init__(self) -> None:
            # By name: what stores settings as JSON may sort them, and the layer's logits have an order.
            ordered = {name: _member(name, self.outputs[name]) for name in sorted(self.outputs)}
            object.__setattr__(self, "outputs", ordered)
            texts = [name for name, choice in ordered.items() if OUTPUTS.load(choice.kind).reads_answers]
            first, others = ", ".join(texts[:1]), ", ".join(texts[1:])
            other = f"another kind: {first} is a text, and a model writes one"
            check(not others, f"outputs.{others}", "text", other)
            alone = f"another output beside it; alone: `output: text` and `align.label: {first}`"
            check(not texts or len(ordered) > 1, f"outputs.{first}", "text", alone)

    def __init__(self, fitted: Mapping[str, Any], options: Options | None = None) -> None:
        self.options = options or self.Options()
        check(len(self.options.outputs) > 0, "outputs", self.options.outputs, "column: kind, at least one")
        self._fitted, parts = dict(fitted), fitted.get("members", {})
        self.members: dict[str, Output] = {
            name: OUTPUTS.make(choice, parts.get(name, {})) for name, choice in self.options.outputs.items()
        }
        self._linear = {name: m for name, m in self.members.items() if isinstance(m, LinearOutput)}
        self._text = next(((name, m) for name, m in self.members.items() if isinstance(m, TextOutput)), None)
        self.reads_answers = self._text is not None
        self.metrics = _metrics(tuple((name, type(member)) for name, member in self.members.items()))
        self.arrow_type = pa.struct([(name, member.arrow_type) for name, member in self.members.items()])
        self.has_probabilities = any(member.has_probabilities for member in self.members.values())

    def __reduce__(self) -> Any:
        return type(self), (self._fitted, self.options)  # metrics hold functions that cannot be pickled

    @property
    def headlines(self) -> tuple[Metric, ...]:
        firsts = [f"{name}.{member.metrics[0].name}" for name, member in self.members.items()]
        return self.metrics[0], *map(self.metric, firsts)

    def columns(self, labels: Sequence[str | None]) -> dict[str, tuple[Output, list[str | None]]]:
        objects = [{} if label is None else _object(label) for label in labels]
        return {name: (member, [o.get(name) for o in objects]) for name, member in self.members.items()}

    def read(self, label: str) -> dict[str, Any]:
        """Member -> value, None where the object lacks it. Names of others are left out."""
        values, parts = {}, _object(label)
        for name, member in self.members.items():
            try:
                values[name] = None if (part := parts.get(name)) is None else member.read(part)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        return values

    def words(self, label: Any, prediction: Any) -> dict[str, tuple[str, str | None]]:
        said = prediction or {}
        return {name: (str(value), str(said.get(name))) for name, value in label.items() if value is not None}

    def fit(
        self, labels: Sequence[str], tokenizer: "PreTrainedTokenizerBase | None", settings: "ModelSettings"
    ) -> dict[str, Any]:
        """members: what each one learned of the labels that there are of it."""
        fitted = {}
        for name, (member, column) in self.columns(labels).items():
            try:
                fitted[name] = member.fit([label for label in column if label is not None], tokenizer, settings)
            except ValueError as error:
                raise ValueError(f"outputs.{name}: {error}") from None
        return {"members": fitted}

    def targets(self, labels: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> "Tensor":
        import torch

        parts, columns = [], self.columns(labels)
        for name, member in self._linear.items():
            given = {n: label for n, label in enumerate(columns[name][1]) if label is not None}
            known = member.targets(list(given.values()), tokenizer)
            part = torch.full((len(labels), *known.shape[1:]), math.nan)
            part[list(given)] = known.float().masked_fill(known == IGNORED, math.nan)
            parts.append(part.reshape(len(labels), math.prod(known.shape[1:])))
        if self._text is not None:
            name, text = self._text
            column = columns[name][1]
            tokens = text.targets([label or "" for label in column], tokenizer).float()  # numbers of tokens are exact
            tokens[[label is None for label in column]] = math.nan
            parts.append(tokens)
        return torch.cat(parts, 1)

    @property
    def width(self) -> int:
        return sum(member.width for member in self._linear.values())

    @property
    def target_width(self) -> int:
        return sum(member.target_width or 1 for member in self._linear.values())

    def language_model(self) -> Any:
        return super().language_model() if self._text is None else self._text[1].language_model()

    def logits(
        self, model: AnsweringModel, embeddings_BSD: "Tensor", mask_BS: "Tensor", targets: "Tensor | None"
    ) -> "Tensor":
        """Those of a text are of teacher forcing: without targets there are none."""
        import torch

        if self._text is None:
            return super().logits(model, embeddings_BSD, mask_BS, targets)
        assert model.head is not None
        sequence, keep = (embeddings_BSD, mask_BS), 1
        if targets is not None:
            tokens_BA = self._tokens(targets)
            sequence, keep = self._text[1].with_answers(model, *sequence, tokens_BA), tokens_BA.shape[1]
        said = model.read(*sequence, logits_to_keep=keep)
        read_BC = model.head(said.last_hidden_state[:, : embeddings_BSD.shape[1]], mask_BS)
        return read_BC if targets is None else torch.cat([read_BC, said.logits.flatten(1)], 1)

    def _tokens(self, targets: "Tensor") -> "Tensor":
        """Of the text (B, A)."""
        return targets[:, self.target_width :].nan_to_num(nan=IGNORED).long()

    def _parted(self, logits: "Tensor", targets: "Tensor") -> "dict[str, tuple[LinearOutput, Tensor, Tensor, Tensor]]":
        """Of each member but a text: it, the numbers of the rows (R,) with a target of it, logits and targets of
        these."""
        widths = [member.width for member in self._linear.values()]
        target_widths = [member.target_width or 1 for member in self._linear.values()]
        said_BC, wanted_BT = logits[:, : self.width], targets[:, : self.target_width]
        parts = {}
        for (name, member), said, wanted in zip(
            self._linear.items(), said_BC.split(widths, 1), wanted_BT.split(target_widths, 1), strict=True
        ):
            rows = wanted.isfinite().all(1).nonzero()[:, 0]
            wanted_R = wanted[rows] if member.target_width else wanted[rows, 0]
            parts[name] = member, rows, said[rows], wanted_R
        return parts

    def loss(self, logits: "Tensor", targets: "Tensor", smoothing: float = 0.0) -> "Tensor":
        total = logits[:, :0].float().sum()  # where no row has a label of a member, its part learns nothing
        for member, rows, said, wanted in self._parted(logits, targets).values():
            if len(rows):
                total = total + member.loss(said.float(), wanted, smoothing) / member.loss_of_nothing
        if self._text is not None:
            text, tokens_BA = self._text[1], self._tokens(targets)
            if text.counted(tokens_BA):
                said = logits[:, self.width :].unflatten(1, (tokens_BA.shape[1], -1))
                total = total + text.loss(said, tokens_BA, smoothing) / text.loss_of_nothing
        return total / len(self.members)

    def scored_answers(self, asked: Asked) -> list[Answer]:
        """Their probability is that all are right, each taken by itself, as far as members say one."""
        said = self._said(asked).split([member.width for member in self._linear.values()], 1)
        parted = zip(self._linear.items(), said, strict=True)
        columns = {name: member.answers_of(part) for (name, member), part in parted}
        if self._text is not None:
            name, text = self._text
            columns[name] = text.scored_answers(asked)
        rows = zip(*(columns[name] for name in self.members), strict=True)
        return [_together(dict(zip(self.members, row, strict=True))) for row in rows]

    def surprises(self, asked: Asked, labels: Sequence[str], temperatures: Sequence[float]) -> "Tensor":
        """(M, G, B)."""
        import torch

        logits, found = self._said(asked), {}
        targets = self.targets(labels, asked.tokenizer).to(logits.device)
        for name, (member, rows, said, wanted) in self._parted(logits, targets).items():
            if member.has_probabilities:
                found[name] = logits.new_zeros(len(temperatures), len(logits))
                found[name][:, rows] = member.surprises_of(said, wanted, temperatures)
        if self._text is not None:
            name, text = self._text
            column = self.columns(labels)[name][1]
            known_B = torch.tensor([label is not None for label in column], device=logits.device)
            found[name] = text.surprises(asked, [label or "" for label in column], temperatures) * known_B
        return torch.stack([found[name] for name in self.members if name in found])

    def calibrated(self, fitted: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        sure = [name for name, member in self.members.items() if member.has_probabilities]
        learned = dict(zip(sure, found, strict=True))
        parts = {name: {**part, **learned.get(name, {})} for name, part in fitted["members"].items()}
        return {**fitted, "members": parts}

    def constant(self, labels: Sequence[Any]) -> Any:
        """That of each member."""
        given = {name: [row[name] for row in labels if row[name] is not None] for name in self.members}
        return {name: member.constant(given[name]) for name, member in self.members.items()}

    def figures(self, labels: Sequence[Any], answers: Sequence[Any], seed: int = 0) -> dict[str, Figure]:
        """Also `NAME.n`: how many rows have a label of the member, which its metrics are of."""
        rows = {f"{n}.n": Figure(float(sum(label[n] is not None for label in labels))) for n in self.members}
        return super().figures(labels, answers, seed) | rows


def _member(name: Any, value: Any) -> Any:
    """The choice of a member, checked."""
    signs = str(name).translate(str.maketrans("", "", _NAME_SIGNS))
    check(signs.isalnum(), "outputs", name, "the name of a column: letters, digits, _, -, . and space")
    try:
        choice = OUTPUTS.choose(value)
    except ValueError as error:
        raise ValueError(f"outputs.{name}: {error}") from None
    kinds = [kind for kind in OUTPUTS.names() if OUTPUTS.load(kind).share is not None]
    check(choice.kind in kinds, f"outputs.{name}", choice.kind, f"one of {', '.join(kinds)}: others stand alone")
    return choice


def _object(label: str) -> dict[str, str]:
    """The labels that a JSON object holds, as strings."""
    try:
        values = json.loads(label)
    except ValueError as error:
        raise ValueError(f"it is no JSON object: {error}") from None
    if not isinstance(values, dict):
        raise ValueError("it is JSON, and no object of labels by name")
    given = {name: value for name, value in values.items() if value is not None}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in given.items()}


def _together(parts: dict[str, Answer]) -> Answer:
    chances = [part.probability for part in parts.values() if part.probability is not None]
    prediction = {name: part.prediction for name, part in parts.items()}
    return Answer(prediction, math.prod(chances) if chances else None, parts=parts)


@cache  # one object each, as those of other outputs are
def _metrics(members: tuple[tuple[str, type[Output]], ...]) -> tuple[Metric, ...]:
    """The mean of what each member is measured by, whether all is right (where each can be right), and the members'."""
    own = [m.of_part(name) for name, member in members for m in member.metrics]
    shares = tuple(member.share.of_part(name) for name, member in members if member.share is not None)
    rights = tuple((name, member.right) for name, member in members if member.right is not None)
    whole = [Metric("mean_score", over=partial(mean_score, shares))]
    if len(rights) == len(members):
        whole.append(Metric("exact_match", partial(exact_match, rights)))
    return (*whole, *own)


def mean_score(metrics: Sequence[Metric], labels: Sequence[Any], answers: Sequence[Answer]) -> Statistic:
    """The mean of metrics of parts, each over the rows that have a label of its part; those that cannot be said of the
    rows are out."""
    parted = [(metric.rows(labels), metric.statistic(*metric.mine(labels, answers))) for metric in metrics]
    parted = [(rows, statistic) for rows, statistic in parted if len(rows)]

    def of(counts: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):  # a resample may have no row of a part
            return mean_of_defined([statistic(counts[rows]) for rows, statistic in parted])

    return of


def exact_match(rights: Sequence[tuple[str, Metric]], label: Any, prediction: Any) -> bool:
    """Every label that the row has is answered right."""
    said = prediction or {}
    return all(metric.of(label[name], said.get(name)) for name, metric in rights if label[name] is not None)
