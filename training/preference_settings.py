"""What the project file says under `preference`. Needs no torch."""

from dataclasses import dataclass

from training.outputs.base import Output
from training.outputs.string import StringOutput
from training.validation import FORBID_EXTRA, check


@dataclass(frozen=True, kw_only=True)
class PreferenceSettings:
    """How the champion learns from what people say of answers."""

    __pydantic_config__ = FORBID_EXTRA
    least: int = 10  # pairs of answers; of fewer nothing is learned
    beta: float = 0.1  # how far it may move from what it answered: the less, the further
    # Weight of the training rows' own answers beside the pairs; 0: they are not learned again. Of 32 samples (vectors,
    # two classes) of which 8 were said to be the other class, the other 24 stayed right in 24 with it, in 16 without.
    answers: float = 1.0
    steps: int = 200
    batch_size: int = 16  # pairs, and as many training rows
    learning_rate: float | None = None  # null: that of training
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("least", "steps", "batch_size"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        check(self.beta > 0, "beta", self.beta, "over 0")
        rate = self.learning_rate
        check(rate is None or rate > 0, "learning_rate", rate, "null or over 0")
        check(self.answers >= 0, "answers", self.answers, "0 or more")


def check_preference(output: Output, kind: str) -> None:
    """Raises ValueError where answers of that output cannot be preferred to one another."""
    check(isinstance(output, StringOutput), "preference", f"beside model.output: {kind}", "an output of class or text")
