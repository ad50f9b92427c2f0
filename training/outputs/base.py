"""The contract of an output: everything that depends on what a model's answer is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import pyarrow as pa

from training.metrics import Metric
from training.records import Answer, Answered, Figure

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    from training.codecs.options import Source
    from training.features import FeatureSettings
    from training.settings import ModelSettings


# A modality and contents of it, to what they look like (`training.likeness.likenesses`), and what they were read from.
Look = Callable[[str, Sequence[str]], "tuple[Any, Source]"]


class AnsweringModel(Protocol):
    """What an output uses of the fused model."""

    llm: Any  # the language model
    head: Any  # what `Output.head` made
    config: Any  # training.model_config.FusionConfig

    def get_input_embeddings(self) -> "nn.Module":
        """Of the language model."""

    def read(self, embeddings_BSD: "Tensor", mask_BS: "Tensor", **options: Any) -> Any:
        """What the language model says of a padded sequence; `options` are its forward's."""


@dataclass(frozen=True)
class Asked:
    """What an answer is made of: B rows as the language model reads them, padded on the left, and who reads them."""

    model: AnsweringModel
    embeddings_BSD: "Tensor"
    mask_BS: "Tensor"
    tokenizer: "PreTrainedTokenizerBase"
    # What a linear model says beside it (B, C), and its share in the answer (B, C): `training.linear_model`.
    beside: "tuple[Tensor, Tensor] | None" = None
    # What the language model remembers of all but the last position (a cache of transformers), for who asks next.
    past: Any = None
    present: "Mapping[str, Tensor]" = field(default_factory=dict)  # modality -> which rows (B,) are given it


class Output:
    """What a model answers with: its labels, its part of the model, its loss, and how answers are measured.

    Labels lie in the tables as strings; `read` says what a string means, and from there on labels and predictions are
    values of the output's type. An object is plain, light and can be pickled: project files are checked by the class,
    so its module imports torch inside methods only. A kind with options takes them as `options`.

    What single answers are worth, metrics say of each label and prediction. Where answers say something beside one
    another only (embeddings: which are near), three things differ. A sample is asked as `asked` says, with several
    subsets of its inputs; `judged` makes of all answers together the labels and predictions that metrics and tables of
    results hold, of `judged_type`; and training reads parts of a row one by one (`views`). Where no column says what is
    right, `own_label` does.

    Shapes: B rows, S positions of what the language model reads (soft tokens, then the prompt), D its width.
    """

    metrics: tuple[Metric, ...] = ()  # the first one is what people are shown, and the gate's unless it is told
    arrow_type: pa.DataType  # of a label and a prediction in tables, answers and the served model's signature
    reads_answers: bool = False  # true: the language model is given the answer's tokens, also in training
    opening: int = 0  # tokens that stand before an answer that the language model writes, beside what it is asked
    has_probabilities: bool = False  # true: `scored_answers` says how probable each answer is
    members: Mapping[str, "Output"] = MappingProxyType({})  # column -> output, where several answer at once
    answers_with: tuple[str, ...] = ()  # modalities whose contents it makes: `training.outputs.contents`
    codec_choices: Mapping[str, Any] = MappingProxyType({})  # of each of these its codec, as the project file says it
    has_labels: ClassVar[bool] = True  # false: no column holds labels, they are `own_label`s
    is_embedding: ClassVar[bool] = False  # true: answers are lists of floats, and near is what belongs together
    least_inputs: ClassVar[int] = 1  # of a row to be trained or tested on: with fewer a model cannot answer
    views: tuple[tuple[str, ...], ...] = ()  # of the modalities: what training reads of a row, as if it had no other
    temperature: float = 1.0  # what logits are divided by (Guo et al. 2017), from `fitted`; see `training.calibration`
    # As one of several (`training.outputs.several`), what it adds to their mean score: 1 is perfect, and more is
    # better; None: it answers alone.
    share: ClassVar[Metric | None] = None
    right: ClassVar[Metric | None] = None  # whether a single answer is right, where that can be said

    def __init__(self, fitted: Mapping[str, Any]) -> None:
        """`fitted` is what `fit` returned for the model that this output is part of; empty where there is none yet."""

    def metric(self, name: str | None = None) -> Metric:
        """The metric of that name (it must be there); without a name, the first."""
        return next(metric for metric in self.metrics if name in (None, metric.name))

    @property
    def headlines(self) -> tuple[Metric, ...]:
        """The first of the metrics, and the first of each member's: shown beside the majority answer's."""
        return self.metrics[:1]

    def inputs(self, modalities: Sequence[str]) -> tuple[str, ...]:
        """Those of a project's modalities that a model reads."""
        return tuple(modalities)

    @property
    def answers_alone(self) -> bool:
        """Whether a model that reads one modality can answer all that this one does."""
        return self.least_inputs == 1

    def questions(self, index: pa.Table) -> pa.Table:
        """The rows (`training.schema.DATASET`) that training reads, of those of samples."""
        return index

    def columns(self, labels: Sequence[str | None]) -> "dict[str, tuple[Output, list[str | None]]]":
        """The labels by the column that they are from, each with the output that reads it; "": all are of one."""
        return {"": (self, list(labels))}

    def own_label(self, contents: Mapping[str, str]) -> str | None:
        """The label of a sample where no column holds it, by its contents (modality -> id); None: it has none."""
        return None

    def read(self, label: str) -> Any:
        """The value that a label means. Raises ValueError: it means none."""
        raise NotImplementedError

    def is_class(self, labels: Mapping[str, int]) -> bool:
        """Whether labels (label -> rows) name classes, which recur; else each is a number or a text of its own."""
        return False

    def doubt(self, label: str, settings: "ModelSettings") -> str | None:
        """Why a label can hardly be an answer, as the end of a sentence about it; None: it can."""
        try:
            self.read(label)
        except ValueError as error:
            return f"cannot be read: {error}"
        return None

    def label_words(self, label: str) -> str:
        """A label as people read it in a table of labels."""
        return label

    def words(self, label: Any, prediction: Any) -> dict[str, tuple[str, str | None]]:
        """Label and prediction of `judged_type`, None where there is none, as people read them; of several, each that
        has a label, by name. "": they are of one."""
        return {"": (str(label), None if prediction is None else str(prediction))}

    def fit(
        self, labels: Sequence[str], tokenizer: "PreTrainedTokenizerBase | None", settings: "ModelSettings"
    ) -> dict[str, Any]:
        """What a model must know of the training labels before it is made, as JSON-able values.

        Args:
            tokenizer: what only it tells is left out where there is none yet.

        Raises:
            ValueError: no such model can be trained on them; the message says which label, and what to do.
        """
        return {}

    def of_features(self, features: "FeatureSettings") -> dict[str, Any]:
        """What a model must know of the features beside that. Raises ValueError: they do not go with this output."""
        return {}

    @property
    def positions(self) -> int:
        """How many positions of the language model an answer takes at most, where it does not generate text."""
        return 0

    def targets(self, labels: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> "Tensor":
        """The labels as `loss` takes them, one row each (B, ...)."""
        raise NotImplementedError

    def language_model(self) -> Any:
        """The AutoModel class of transformers that makes and loads the language model."""
        raise NotImplementedError

    def head(self, width: int) -> "nn.Module | None":
        """What the model has after the language model of that width, as `model.head`; None: nothing."""
        return None

    def logits(
        self, model: AnsweringModel, embeddings_BSD: "Tensor", mask_BS: "Tensor", targets: "Tensor | None"
    ) -> "Tensor":
        """What the model says before it is turned into an answer (B, ...); `model.read` runs the language model.

        Raises:
            ValueError: there are no targets, and this output needs them.
        """
        raise NotImplementedError

    def loss(self, logits: "Tensor", targets: "Tensor", smoothing: float = 0.0) -> "Tensor":
        """A scalar in nats or in a unit of its own. `smoothing` is `training.label_smoothing`, where it has a sense.

        Where there are `views`, logits are (B, V, ...) of these, zeros where a row was not read so: where it lacks a
        part of the view, or has nothing else.
        """
        raise NotImplementedError

    @property
    def loss_of_nothing(self) -> float:
        """What the loss is, about, where a model knows nothing of its rows."""
        return 1.0

    def counted(self, targets: "Tensor") -> int:
        """How many things the loss of these targets is the mean of: processes that share a batch are weighed by it."""
        return len(targets)

    def surprises(self, asked: Asked, labels: Sequence[str], temperatures: Sequence[float]) -> "Tensor":
        """How unlikely the labels are by each of G temperatures, in nats (G, B), or (M, G, B) of M members that have
        temperatures of their own; 0 where a row has none that the model knows. The best temperature makes the sum as
        small as can be. Only of outputs that have probabilities."""
        raise NotImplementedError

    def calibrated(self, fitted: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """`fitted` with what calibration found: `temperature` and `calibration_rows`, of each whose `surprises` were
        told; empty where it found nothing."""
        (one,) = found
        return {**fitted, **one}

    def answers(self, asked: Asked) -> list[Any]:
        """A prediction for each row, without looking at any label."""
        return [answer.prediction for answer in self.scored_answers(asked)]

    def scored_answers(self, asked: Asked) -> list[Answer]:
        """The same with probabilities. A kind says one of the two: this one where it has probabilities."""
        return [Answer(value) for value in self.answers(asked)]

    def said(self, asked: Asked, targets: "Tensor") -> "tuple[Tensor, list[Answer]]":
        """`logits` with these targets, and `scored_answers`: of one reading of what is asked, where that can be."""
        logits = self.logits(asked.model, asked.embeddings_BSD, asked.mask_BS, targets)
        return logits, self.scored_answers(asked)

    @property
    def judged_type(self) -> pa.DataType:
        """Of label and prediction in tables of results."""
        return self.arrow_type

    def asked(self, inputs: Sequence[str]) -> list[tuple[str, ...]]:
        """The subsets of the inputs that a sample is asked with, the last being all, to judge what a model is worth
        that is given all of them."""
        return [tuple(inputs)]

    def judged(self, answered: Sequence[Answered], look: Look | None = None) -> list[Answered]:
        """The same, in order, with label and prediction of `judged_type`.

        Args:
            answered: of all samples that are judged together, each with the subsets that it was asked with; labels are
                of `read`, predictions of `arrow_type`.
            look: what shows contents, where answers are (`answers_with`).
        """
        return list(answered)

    def constant(self, labels: Sequence[Any]) -> Any:
        """The one answer that is best whatever the inputs, from the training labels; None where there are none."""
        raise NotImplementedError

    def figures(self, labels: Sequence[Any], answers: Sequence[Any], seed: int = 0) -> dict[str, Figure]:
        """Each of `metrics`, in that order, and what else can be said, of answers (`Answer`, or predictions alone);
        `seed` is the bootstrap's."""
        return {metric.name: metric.figure(labels, answers, seed) for metric in self.metrics}

    def take(self, codecs: Mapping[str, Any], codes: Mapping[str, Mapping[str, Any]]) -> None:
        """What training has of the contents that answers are (`answers_with`): modality -> codec, and -> content -> its
        codes."""

    def save(self, folder: Path) -> None:
        """Writes the files that `restore` needs beside the model's weights, if any."""

    def restore(self, folder: Path) -> None:
        """Takes the files of `save`."""
