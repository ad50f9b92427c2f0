"""The options of adversaries; here, where nothing is heavy, since project files are checked by them."""

from dataclasses import dataclass
from typing import Literal

from training.validation import check


@dataclass(frozen=True, kw_only=True)
class Options:
    # What is changed: `tokens`, e_m of each modality, as the fusion reads them; or `inputs`, what the encoders read:
    # pixels, frames, vectors, the embeddings of a text's tokens. Of ids, which have no values between them, the tokens.
    on: Literal["tokens", "inputs"] = "tokens"
    epsilon: float = 0.1  # the length of a change, as a share of that of what is changed
    weight: float = 1.0  # of the loss of what was changed, where that of what is as it was has 1

    def __post_init__(self) -> None:
        check(0 < self.epsilon <= 1, "epsilon", self.epsilon, "above 0, up to 1")
        check(self.weight > 0, "weight", self.weight, "a positive number")


@dataclass(frozen=True, kw_only=True)
class Pgd(Options):
    steps: int = 3
    step: float | None = None  # share of epsilon that one goes; null: 2.5 / steps, as its authors have it

    def __post_init__(self) -> None:
        super().__post_init__()
        check(1 <= self.steps <= 100, "steps", self.steps, "1 to 100")
        check(self.step is None or 0 < self.step <= 2, "step", self.step, "null, or above 0, up to 2")
