"""The options that every objective has; here, where nothing is heavy, since project files are checked by them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from training.catalog import OBJECTIVES
from training.family import Choice
from training.validation import check

if TYPE_CHECKING:
    from training.outputs.base import Output


_TEACHER = re.compile(r"([\w-]+/)?\d+|[0-9a-f]{32}")

_EXPECTED = "a version such as 3 or shop/3, or an MLflow run id"


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


def check_objectives(objectives: Sequence[Choice], output: "Output", kind: str) -> None:
    """Raises ValueError where one reads modalities alone beside an output, of that kind, that has `views`; or has no
    teacher."""
    for objective in objectives:
        teacher = getattr(OBJECTIVES.options(objective), "teacher", None)
        check(teacher != "", f"training.objectives: {objective.kind}: teacher", teacher, _EXPECTED)
    for objective in objectives if output.views else ():
        expected = f"others than {objective.kind}: output {kind} reads parts of a row as it is"
        kinds = [choice.kind for choice in objectives]
        check(not OBJECTIVES.options(objective).reads_alone, "training.objectives", kinds, expected)
