"""The answer is a content: a picture that is drawn, speech that is said, or one of them after the other is given.

Shapes: B rows, S positions of the context, K codes, V words of codes.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from training.catalog import CODECS, OUTPUTS
from training.codecs.options import Alphabet, Source
from training.metrics import Metric
from training.outputs.base import AnsweringModel, Asked, Look, Output
from training.records import Answer, Answered, Figure
from training.several_metrics import mean_score
from training.validation import check

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    from training.features import FeatureSettings
    from training.settings import ModelSettings

IGNORED = -100


def _near(label: Any, prediction: float | None) -> float:
    return 0.0 if prediction is None else float(prediction)


# The share of the other test contents that are less like the answer than the right one (`training.likeness`).
NEARNESS = Metric("nearness", _near)


class ContentsOutput(Output):
    """Written by the language model as discrete codes (`training.codes`), one after the other, which a codec
    (`training.codecs`) makes a picture or speech of.

    The label of a sample is its own content of the modality that is the answer, as JSON: name -> id. That modality is
    hidden from the inputs where it is the answer: training reads a sample once for each part, without what that part
    answers with, and a request is answered by the parts whose modality it does not give. Of one part the modality is no
    input at all.

    Targets and logits are those of `training.codes`. An answer is a data URL (`training.media_files`). It is judged by
    how near it comes to the right content, among those of all samples that are judged together.
    """

    has_labels, least_inputs = False, 2
    metrics: tuple[Metric, ...] = (NEARNESS,)
    arrow_type = pa.string()
    judged_type = pa.float64()
    modality: ClassVar[str] = ""  # of a single part

    @dataclass(frozen=True, kw_only=True)
    class Options:
        outputs: dict[str, Any] = field(default_factory=dict)  # name -> kind, of those that answer with a content

        def __post_init__(self) -> None:
            object.__setattr__(
                self, "outputs", {name: _member(name, self.outputs[name]) for name in sorted(self.outputs)}
            )
            modalities = [OUTPUTS.load(choice.kind).modality for choice in self.outputs.values()]
            check(len({*modalities}) == len(modalities), "outputs", ", ".join(modalities), "each modality once")

    def __init__(self, fitted: Mapping[str, Any], options: Any = None) -> None:
        self._fitted = dict(fitted)
        self.options: Any = options or self.Options()
        self.parts: dict[str, Any] = {self.modality: self}  # name -> output of a single one
        if not self.modality:
            outputs = self.options.outputs
            check(len(outputs) > 0, "outputs", outputs, "name: kind, at least one")
            made: dict[str, Any] = {name: OUTPUTS.make(choice, {}) for name, choice in outputs.items()}
            self.parts = self.members = made
            self.metrics = _metrics(tuple(self.parts))
            self.arrow_type = pa.struct([(name, pa.string()) for name in self.parts])
            self.judged_type = pa.struct([(name, pa.float64()) for name in self.parts])
        parts: list[Any] = [*self.parts.values()]
        self.answers_with = tuple(part.modality for part in parts)
        self.codec_choices = {part.modality: part.options.codec for part in parts}
        self.alphabets = {name: Alphabet(**values) for name, values in fitted.get("alphabets", {}).items()}
        self.codecs: dict[str, Any] = {}  # part -> Codec
        self.codes: dict[str, Mapping[str, np.ndarray]] = {}  # part -> content -> its codes

    def __reduce__(self) -> Any:
        return _restored, (type(self), self._fitted, self.options, self.codes)

    def inputs(self, modalities: Sequence[str]) -> tuple[str, ...]:
        return tuple(m for m in modalities if len(self.parts) > 1 or m not in self.answers_with)

    @property
    def answers_alone(self) -> bool:
        return len(self.parts) == 1

    @property
    def headlines(self) -> tuple[Metric, ...]:
        return self.metrics

    def own_label(self, contents: Mapping[str, str]) -> str | None:
        if len(contents) < self.least_inputs:
            return None
        there = {name: contents[m] for name, m in zip(self.parts, self.answers_with, strict=True) if m in contents}
        return json.dumps(there, sort_keys=True) if there else None

    def read(self, label: str) -> dict[str, str | None]:
        try:
            contents = json.loads(label)
        except ValueError as error:
            raise ValueError(f"it is no JSON object of contents: {error}") from None
        if not isinstance(contents, dict) or not contents.keys() <= self.parts.keys():
            raise ValueError(f"it is JSON, and no object of contents by name ({', '.join(self.parts)})")
        return {name: contents.get(name) for name in self.parts}

    def label_words(self, label: str) -> str:
        return "+".join(name for name, content in self.read(label).items() if content)

    def words(self, label: Any, prediction: Any) -> dict[str, tuple[str, str | None]]:
        told = {"": prediction} if self.modality else prediction or {}
        wanted = {"": label} if self.modality else label
        return {
            name: (f"{value:.2f}", None if (said := told.get(name)) is None else f"{said:.2f}")
            for name, value in wanted.items()
            if value is not None
        }

    def questions(self, index: pa.Table) -> pa.Table:
        asked = []
        labels = [None if label is None else self.read(label) for label in index["label"].to_pylist()]
        for name, part in self.parts.items():
            own = [None if label is None else label[name] for label in labels]
            rows = index
            for column in (f"{part.modality}_{end}" for end in ("id", "more", "views", "pool")):
                if column in index.column_names:
                    at, kind = index.column_names.index(column), index.schema.field(column).type
                    rows = rows.set_column(at, index.schema.field(column), pa.nulls(len(index), kind))
            said = pa.array([None if one is None else json.dumps({name: one}) for one in own], pa.string())
            rows = rows.set_column(index.column_names.index("label"), index.schema.field("label"), said)
            asked.append(rows.filter(said.is_valid()))
        return pa.concat_tables(asked)

    def of_features(self, features: "FeatureSettings") -> dict[str, Any]:
        found = {}
        for name, part in self.parts.items():
            source, modality = Source.of(features, part.modality), part.modality
            options = CODECS.options(CODECS.choose(part.options.codec, modality), modality)
            found[name] = asdict(options.alphabet(source))
        return {"alphabets": found}

    @property
    def _words(self) -> Any:
        from training.codes import words_of

        return words_of(self.alphabets)

    @property
    def positions(self) -> int:
        return max((alphabet.length + 2 for alphabet in self.alphabets.values()), default=0)

    def fit(
        self, labels: Sequence[str], tokenizer: "PreTrainedTokenizerBase | None", settings: "ModelSettings"
    ) -> dict[str, Any]:
        if not labels:
            raise ValueError(f"no training row has {' or '.join(self.answers_with)} and an input beside it")
        return {}

    def targets(self, labels: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> "Tensor":
        from training.codes import targets_of

        words, _ = self._words
        rows = []
        for label in labels:
            ((name, content),) = [(n, c) for n, c in self.read(label).items() if c]
            rows.append((words[name], self.codes[name][content]))
        return targets_of(rows)

    def language_model(self) -> Any:
        from transformers import AutoModel

        return AutoModel

    def head(self, width: int) -> "nn.Module":
        from training.codes import CodeWords

        return CodeWords(width, self._words[1])

    def logits(
        self, model: AnsweringModel, embeddings_BSD: "Tensor", mask_BS: "Tensor", targets: "Tensor | None"
    ) -> "Tensor":
        from training.codes import forced_logits

        if targets is None:
            raise ValueError("labels is None, expected codes: use `answer` to write some")
        return forced_logits(model, embeddings_BSD, mask_BS, targets)

    def loss(self, logits: "Tensor", targets: "Tensor", smoothing: float = 0.0) -> "Tensor":
        from torch.nn import functional

        real, wanted = targets[:, 1:] != IGNORED, targets[:, 1:]
        return functional.cross_entropy(logits[real].float(), wanted[real], label_smoothing=smoothing)

    @property
    def loss_of_nothing(self) -> float:
        return math.log(max((alphabet.codes for alphabet in self.alphabets.values()), default=math.e))

    def counted(self, targets: "Tensor") -> int:
        return int((targets[:, 1:] != IGNORED).sum())

    def scored_answers(self, asked: Asked) -> list[Answer]:
        import torch

        from training.codes import written

        said: list[dict[str, Any]] = [dict.fromkeys(self.parts) for _ in range(len(asked.mask_BS))]
        words, _ = self._words
        for name, part in self.parts.items():
            given = asked.present.get(part.modality)
            rows = torch.arange(len(said), device=asked.mask_BS.device)
            rows = rows if given is None else rows[~given]
            if not len(rows):
                continue
            if name not in self.codecs:
                raise ValueError(f"the model has no codec for {name}: load its whole folder (`Output.restore`)")
            contents = self.codecs[name].decode(written(asked, words[name], rows))
            for row, content in zip(rows.tolist(), contents, strict=True):
                said[row][name] = part.as_file(content, self.codecs[name].source)
        if self.modality:
            return [Answer(row[self.modality]) for row in said]
        return [Answer(row, parts={name: Answer(value) for name, value in row.items()}) for row in said]

    def as_file(self, content: np.ndarray, source: Source) -> str:
        """A content as a data URL. Of a single part."""
        raise NotImplementedError

    def asked(self, inputs: Sequence[str]) -> list[tuple[str, ...]]:
        without = [tuple(m for m in inputs if m != modality) for modality in self.answers_with]
        return [subset for subset in dict.fromkeys(without) if subset and len(subset) < len(inputs)] + [tuple(inputs)]

    def judged(self, answered: Sequence[Answered], look: Look | None = None) -> list[Answered]:
        """Of what a sample was given there is no label. Where it was given all, it is judged by its answers to all but
        what each part answers with."""
        labels: list[dict[str, float | None]] = [dict.fromkeys(self.parts) for _ in answered]
        said: list[dict[str, float | None]] = [dict.fromkeys(self.parts) for _ in answered]
        most = max((len(row.subset.split("+")) for row in answered), default=0)
        for name, part in self.parts.items():
            whole = {self._key(row, name): row for row in answered if self._file(row, name)}
            rows: dict[int, str] = {}
            for n, row in enumerate(answered):
                is_asked = part.modality not in row.subset.split("+") or len(row.subset.split("+")) == most
                if row.label is not None and row.label[name] and is_asked:
                    labels[n][name] = 1.0
                    found = row if self._file(row, name) else whole.get(self._key(row, name), row)
                    if url := self._file(found, name):
                        rows[n] = url
            for n, value in zip(rows, self._nearness(name, part.modality, rows, answered, look), strict=True):
                said[n][name] = value
        return [self._told(row, *pair) for row, pair in zip(answered, zip(labels, said, strict=True), strict=True)]

    @staticmethod
    def _key(row: Answered, name: str) -> tuple[str, Any]:
        return row.sample, row.label and row.label[name]

    def _file(self, row: Answered, name: str) -> str | None:
        said = row.answer.prediction
        return said if self.modality else (said or {}).get(name)

    def _nearness(
        self, name: str, modality: str, rows: Mapping[int, str], answered: Sequence[Answered], look: Any
    ) -> list[float | None]:
        from training.likeness import likenesses, nearness
        from training.media_files import content_of

        if not rows or look is None:
            return [None] * len(rows)
        contents = list(dict.fromkeys(row.label[name] for row in answered if row.label and row.label[name]))
        candidates, source = look(modality, contents)
        at = {content: n for n, content in enumerate(contents)}
        said = {url: content_of(url, source) for url in dict.fromkeys(rows.values())}
        small = dict(zip(said, likenesses(list(said.values()), source), strict=True))
        own = [at[answered[n].label[name]] for n in rows]
        return [*nearness(np.stack([small[url] for url in rows.values()]), candidates, own)]

    def _told(self, row: Answered, label: dict[str, float | None], said: dict[str, float | None]) -> Answered:
        is_there, is_said = any(label.values()), any(value is not None for value in said.values())
        told: Any = (said[self.modality] if self.modality else said) if is_said else None
        wanted: Any = (label[self.modality] if self.modality else label) if is_there else None
        return replace(row, label=wanted, answer=Answer(told))

    def constant(self, labels: Sequence[Any]) -> Any:
        """A content by chance."""
        return 0.5 if self.modality else dict.fromkeys(self.parts, 0.5)

    def figures(self, labels: Sequence[Any], answers: Sequence[Any], seed: int = 0) -> dict[str, Figure]:
        found = super().figures(labels, answers, seed)
        if not self.modality:
            found |= {f"{n}.n": Figure(float(sum(label[n] is not None for label in labels))) for n in self.parts}
        return found

    def take(self, codecs: Mapping[str, Any], codes: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """What training knows of a project. Args: by modality."""
        self.codecs = {name: codecs[part.modality] for name, part in self.parts.items()}
        self.codes = {name: codes[part.modality] for name, part in self.parts.items()}

    def save(self, folder: Path) -> None:
        from training.codecs.base import save_codec

        for name, codec in self.codecs.items():
            part = self.parts[name]
            save_codec(codec, part.options.codec, codec.source, part.modality, folder / f"{part.modality}_codec")

    def restore(self, folder: Path) -> None:
        from training.codecs.base import load_codec

        self.codecs = {name: load_codec(folder / f"{part.modality}_codec") for name, part in self.parts.items()}


def codec_choice(value: Any, modality: str) -> Any:
    """What the project file says of a codec, checked."""
    choice = CODECS.choose(value, modality)
    named = "model" not in CODECS.option_names(choice.kind, modality) or choice.options.get("model")
    check(bool(named), "codec", choice.plain(), f"{{kind: {choice.kind}, model: NAME_OR_FOLDER}}")
    return choice.plain()


def _restored(cls: Any, fitted: Any, options: Any, codes: Any) -> ContentsOutput:
    """In another process, which makes targets and answers nothing."""
    output: ContentsOutput = cls(fitted, options)
    output.codes = codes
    return output


def _member(name: Any, value: Any) -> Any:
    check(str(name).replace("_", "").replace("-", "").isalnum(), "outputs", name, "a name of letters, digits, _ and -")
    try:
        choice = OUTPUTS.choose(value)
    except ValueError as error:
        raise ValueError(f"outputs.{name}: {error}") from None
    kinds = [kind for kind in OUTPUTS.names() if getattr(OUTPUTS.load(kind), "modality", "")]
    check(choice.kind in kinds, f"outputs.{name}", choice.kind, f"one of {', '.join(kinds)} beside another of them")
    return choice


@cache  # one object each, as those of other outputs are
def _metrics(names: tuple[str, ...]) -> tuple[Metric, ...]:
    parts = tuple(NEARNESS.of_part(name) for name in names)
    return Metric("nearness", over=partial(mean_score, parts)), *parts
