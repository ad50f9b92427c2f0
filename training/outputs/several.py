"""The answer is several at once: a class, another one, a number, a text, each of a column of its own.

Shapes: B rows, S positions of the context, C logits and T targets of all members that a linear layer gives side by
side, K texts, A tokens of one, V vocabulary, O tokens of an opening, G temperatures, M members that have probabilities.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from training.catalog import OUTPUTS
from training.metrics import Metric
from training.outputs.base import AnsweringModel, Asked, Output
from training.outputs.linear import IGNORED, LinearOutput, with_linear
from training.outputs.text import TextOutput
from training.records import Answer, Figure
from training.several_metrics import metrics_of
from training.validation import check

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    from training.settings import ModelSettings

_NAME_SIGNS = "_-. "  # beside letters and digits: what MLflow takes in the name of a metric


class SeveralOutput(LinearOutput):
    """One linear layer, whose logits (B, C) are parted among the members: outputs with labels, loss, temperature and
    metrics of their own. A label is a JSON object of the members' labels; a row may lack some of them.

    Members may be texts: the language model writes each behind the context, of which the linear layer reads all
    positions, and none of a text. In training both come of one reading, since a causal model makes of a context the
    same whatever stands behind it; logits are then (B, C + K * A * V), the texts' behind the others. Several texts are
    read and written one by one, none behind another, each behind its opening: its name.

    Targets (B, T), with texts (B, T + K * A), are the members' side by side, nan where a row has no label that the
    member knows: it is left out of that member's loss and metrics. The loss is the mean over the members of each one's,
    which is 1 for who knows nothing.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options:
        outputs: dict[str, Any] = field(default_factory=dict)  # column -> kind, of those that have a `share`

        def __post_init__(self) -> None:
            # By name: what stores settings as JSON may sort them, and the layer's logits have an order.
            ordered = {name: _member(name, self.outputs[name]) for name in sorted(self.outputs)}
            object.__setattr__(self, "outputs", ordered)
            texts = [name for name, choice in ordered.items() if OUTPUTS.load(choice.kind).reads_answers]
            only = next(iter(texts), "")
            alone = f"another output beside it; alone: `output: text` and `align.label: {only}`"
            check(not texts or len(ordered) > 1, f"outputs.{only}", "text", alone)

    def __init__(self, fitted: Mapping[str, Any], options: Options | None = None) -> None:
        self.options = options or self.Options()
        check(len(self.options.outputs) > 0, "outputs", self.options.outputs, "column: kind, at least one")
        self._fitted, parts = dict(fitted), fitted.get("members", {})
        self.members: dict[str, Output] = {
            name: OUTPUTS.make(choice, parts.get(name, {})) for name, choice in self.options.outputs.items()
        }
        self._linear = {name: m for name, m in self.members.items() if isinstance(m, LinearOutput)}
        self._texts = {name: m for name, m in self.members.items() if isinstance(m, TextOutput)}
        self.reads_answers = bool(self._texts)
        self._openings: dict[str, list[int]] = fitted.get("openings", {})
        self.opening = max(map(len, self._openings.values()), default=0)
        self.metrics = metrics_of(tuple((name, type(member)) for name, member in self.members.items()))
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
        """members: what each one learned of the labels that there are of it; of several texts openings: tokens."""
        fitted = {}
        for name, (member, column) in self.columns(labels).items():
            try:
                fitted[name] = member.fit([label for label in column if label is not None], tokenizer, settings)
            except ValueError as error:
                raise ValueError(f"outputs.{name}: {error}") from None
        if tokenizer is None or len(self._texts) < 2:
            return {"members": fitted}
        from training.tokenizer import encode

        openings = {name: encode(tokenizer, f"{name}:", around=False) for name in self._texts}
        return {"members": fitted, "openings": openings}

    def targets(self, labels: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> "Tensor":
        import torch

        parts, columns = [], self.columns(labels)
        for name, member in self._linear.items():
            given = {n: label for n, label in enumerate(columns[name][1]) if label is not None}
            known = member.targets(list(given.values()), tokenizer)
            part = torch.full((len(labels), *known.shape[1:]), math.nan)
            part[list(given)] = known.float().masked_fill(known == IGNORED, math.nan)
            parts.append(part.reshape(len(labels), math.prod(known.shape[1:])))
        texts = []
        for name, text in self._texts.items():
            column = columns[name][1]
            tokens = text.targets([label or "" for label in column], tokenizer).float()  # numbers of tokens are exact
            tokens[[label is None for label in column]] = math.nan
            texts.append(tokens)
        longest = max((tokens.shape[1] for tokens in texts), default=0)
        texts = [torch.nn.functional.pad(part, (0, longest - part.shape[1]), value=IGNORED) for part in texts]
        return torch.cat([*parts, *texts], 1)

    @property
    def width(self) -> int:
        return sum(member.width for member in self._linear.values())

    @property
    def target_width(self) -> int:
        return sum(member.target_width or 1 for member in self._linear.values())

    def head(self, width: int) -> "nn.Module | None":
        return super().head(width) if self._linear else None

    def language_model(self) -> Any:
        return next((text.language_model() for text in self._texts.values()), super().language_model())

    def logits(
        self, model: AnsweringModel, embeddings_BSD: "Tensor", mask_BS: "Tensor", targets: "Tensor | None"
    ) -> "Tensor":
        """Those of texts are of teacher forcing: without targets there are none."""
        if not self._texts:
            return super().logits(model, embeddings_BSD, mask_BS, targets)
        if targets is None:
            return self._read(model, model.read(embeddings_BSD, mask_BS, logits_to_keep=1), mask_BS)
        return self._with_texts(model, embeddings_BSD, mask_BS, targets)[0]

    def _with_texts(
        self, model: AnsweringModel, embeddings_BSD: "Tensor", mask_BS: "Tensor", targets: "Tensor", **options: Any
    ) -> "tuple[Tensor, Any]":
        """Logits, and what the language model said, of the context and each text behind it."""
        import torch

        tokens_BKA, opened = self._tokens(targets), self._opened(model, embeddings_BSD, mask_BS, list(self._texts))
        text = next(iter(self._texts.values()))
        sequence = text.with_answers(model, *opened, tokens_BKA.flatten(0, 1))
        said = model.read(*sequence, logits_to_keep=tokens_BKA.shape[2], **options)
        written = said.logits.unflatten(0, tokens_BKA.shape[:2]).flatten(1)
        return torch.cat([self._read(model, said, mask_BS), written], 1), said

    def _read(self, model: AnsweringModel, said: Any, mask_BS: "Tensor") -> "Tensor":
        """What the linear layer reads of a context (B, C), or of the same one before each text."""
        if model.head is None:
            return said.logits.new_zeros(len(mask_BS), 0)
        states = said.last_hidden_state
        return model.head(states[:: len(states) // len(mask_BS), : mask_BS.shape[1]], mask_BS)

    def _opened(
        self, model: AnsweringModel, embeddings_BSD: "Tensor", mask_BS: "Tensor", texts: Sequence[str]
    ) -> "tuple[Tensor, Tensor]":
        """What the language model reads before it writes each of these texts: K sequences of a row, and the next
        row's, (B * K, S + O)."""
        import torch

        from training.padding import padded

        if not self._openings:
            return embeddings_BSD, mask_BS
        ids_KO, real_KO = padded([self._openings[name] for name in texts], 0, left=True)
        rows, ids_KO, real_KO = len(mask_BS), ids_KO.to(mask_BS.device), real_KO.to(mask_BS.device)
        opening_KOD = model.get_input_embeddings()(ids_KO).to(embeddings_BSD.dtype)
        sequence = embeddings_BSD.repeat_interleave(len(texts), 0), opening_KOD.repeat(rows, 1, 1)
        mask = mask_BS.repeat_interleave(len(texts), 0), real_KO.repeat(rows, 1)
        return torch.cat(sequence, 1), torch.cat(mask, 1)

    def _asked(self, asked: Asked, name: str) -> Asked:
        """For a text."""
        embeddings_BSD, mask_BS = self._opened(asked.model, asked.embeddings_BSD, asked.mask_BS, [name])
        return replace(asked, embeddings_BSD=embeddings_BSD, mask_BS=mask_BS)

    def _tokens(self, targets: "Tensor") -> "Tensor":
        """Of the texts (B, K, A)."""
        return targets[:, self.target_width :].nan_to_num(nan=IGNORED).long().unflatten(1, (len(self._texts), -1))

    @property
    def parts(self) -> dict[str, LinearOutput]:
        """All members but texts."""
        return self._linear

    def parted(self, logits: "Tensor", targets: "Tensor") -> "dict[str, tuple[Tensor, Tensor, Tensor]]":
        widths = [member.width for member in self._linear.values()]
        target_widths = [member.target_width or 1 for member in self._linear.values()]
        said_BC, wanted_BT = logits[:, : self.width], targets[:, : self.target_width]
        parts = {}
        for (name, member), said, wanted in zip(
            self._linear.items(), said_BC.split(widths, 1), wanted_BT.split(target_widths, 1), strict=True
        ):
            rows = wanted.isfinite().all(1).nonzero()[:, 0]
            parts[name] = rows, said[rows], wanted[rows] if member.target_width else wanted[rows, 0]
        return parts

    def loss(self, logits: "Tensor", targets: "Tensor", smoothing: float = 0.0) -> "Tensor":
        total = logits[:, :0].float().sum()  # where no row has a label of a member, its part learns nothing
        for name, (rows, said, wanted) in self.parted(logits, targets).items():
            if len(rows):
                member = self._linear[name]
                total = total + member.loss(said.float(), wanted, smoothing) / member.loss_of_nothing
        if targets.shape[1] > self.target_width:  # else of what is read off alone (`training.linear_model`)
            tokens_BKA = self._tokens(targets)
            said_BKAV = logits[:, self.width :].unflatten(1, (*tokens_BKA.shape[1:], -1))
            for n, text in enumerate(self._texts.values()):
                if text.counted(tokens_BKA[:, n]):
                    total = total + text.loss(said_BKAV[:, n], tokens_BKA[:, n], smoothing) / text.loss_of_nothing
        return total / len(self.members)

    def scored_answers(self, asked: Asked) -> list[Answer]:
        """Their probability is that all are right, each taken by itself, as far as members say one."""
        return self._answers(asked, self._said(asked))

    def said(self, asked: Asked, targets: "Tensor") -> "tuple[Tensor, list[Answer]]":
        if len(self._texts) > 1:  # what is remembered of a row is remembered with each one's opening
            logits = self._with_texts(asked.model, asked.embeddings_BSD, asked.mask_BS, targets)[0]
        elif self._texts:
            logits, read = self._with_texts(asked.model, asked.embeddings_BSD, asked.mask_BS, targets, use_cache=True)
            asked = TextOutput.remembering(asked, read, self._tokens(targets).shape[2])
        else:
            logits = self._said(asked)
        if self._texts and asked.beside is not None:
            logits = with_linear(logits, *asked.beside)
        return logits, self._answers(asked, logits[:, : self.width].float())

    def _answers(self, asked: Asked, said_BC: "Tensor") -> list[Answer]:
        said = said_BC.split([member.width for member in self._linear.values()], 1)
        parted = zip(self._linear.items(), said, strict=True)
        columns = {name: member.answers_of(part) for (name, member), part in parted}
        for name, text in self._texts.items():
            columns[name] = text.scored_answers(self._asked(asked, name))
        rows = zip(*(columns[name] for name in self.members), strict=True)
        return [_together(dict(zip(self.members, row, strict=True))) for row in rows]

    def surprises(self, asked: Asked, labels: Sequence[str], temperatures: Sequence[float]) -> "Tensor":
        """(M, G, B)."""
        import torch

        logits, found = self._said(asked), {}
        targets = self.targets(labels, asked.tokenizer).to(logits.device)
        for name, (rows, said, wanted) in self.parted(logits, targets).items():
            if self._linear[name].has_probabilities:
                found[name] = logits.new_zeros(len(temperatures), len(logits))
                found[name][:, rows] = self._linear[name].surprises_of(said, wanted, temperatures)
        for name, text in self._texts.items():
            column = self.columns(labels)[name][1]
            known_B = torch.tensor([label is not None for label in column], device=logits.device)
            told_GB = text.surprises(self._asked(asked, name), [label or "" for label in column], temperatures)
            found[name] = told_GB * known_B
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
