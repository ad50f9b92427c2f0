"""The options that every objective has; here, where nothing is heavy, since project files are checked by them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from training.catalog import MODALITIES, OBJECTIVES
from training.family import Choice
from training.validation import check

if TYPE_CHECKING:
    from training.outputs.base import Output


_TEACHER = re.compile(r"([\w-]+/)?\d+|[0-9a-f]{32}")

_EXPECTED = "a version such as 3 or shop/3, or an MLflow run id"
_COLUMN = "a column of the samples, such as speaker"
FUSED = "fused"


@dataclass(frozen=True, kw_only=True)
class Options:
    reads_alone: ClassVar[bool] = False  # true: `output.alone` is worked out, which costs a reading for each modality
    weight: float = 1.0  # of the objective's losses in the sum that is minimised

    def __post_init__(self) -> None:
        check(self.weight > 0, "weight", self.weight, "a positive number")


@dataclass(frozen=True, kw_only=True)
class Unimodal(Options):
    reads_alone: ClassVar[bool] = True
    balance: float = 0.0  # how far the gradient of a modality that answers better than the others is damped; 0: not

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.balance <= 1, "balance", self.balance, "0 to 1")


@dataclass(frozen=True, kw_only=True)
class Distillation(Options):
    # Whose x_m the rows should have: a registered version of this project, such as 3, or of another one, such as
    # shop/3; or an MLflow run. Rows are told by their sample_id, and x_m is as wide as the language model.
    teacher: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        is_named = not self.teacher or _TEACHER.fullmatch(self.teacher) is not None
        check(is_named, "teacher", self.teacher, _EXPECTED)


@dataclass(frozen=True, kw_only=True)
class Critic(Options):
    column: str = ""  # has to be given: of the samples, what is not to be told
    on: str = FUSED  # what the critic reads: x_m, or a modality: its tokens e_m
    # What the gradient that reaches the model is multiplied by, beside `weight`; 0: the critic reads, and that is all
    strength: float = 1.0
    # true: it grows from 0 as 2 / (1 + exp(-10 p)) - 1, p the share of the training that is done (its authors' way)
    ramp: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        known = (FUSED, *MODALITIES.names())
        check(self.on in known, "on", self.on, f"one of {', '.join(known)}")
        check(0 <= self.strength <= 100, "strength", self.strength, "0 to 100")


def column_of(objectives: Sequence[Choice]) -> str:
    """The column of the samples that an objective asks for; "": none does."""
    columns = (getattr(OBJECTIVES.options(objective), "column", "") for objective in objectives)
    return next(filter(None, columns), "")


def check_objectives(objectives: Sequence[Choice], output: "Output", kind: str) -> None:
    """Raises ValueError where one reads modalities alone beside an output, of that kind, that has `views`; or has no
    teacher, or no column."""
    for objective in objectives:
        teacher = getattr(OBJECTIVES.options(objective), "teacher", None)
        check(teacher != "", f"training.objectives: {objective.kind}: teacher", teacher, _EXPECTED)
        column = getattr(OBJECTIVES.options(objective), "column", None)
        check(column != "", f"training.objectives: {objective.kind}: column", column, _COLUMN)
    for objective in objectives if output.views else ():
        expected = f"others than {objective.kind}: output {kind} reads parts of a row as it is"
        kinds = [choice.kind for choice in objectives]
        check(not OBJECTIVES.options(objective).reads_alone, "training.objectives", kinds, expected)
