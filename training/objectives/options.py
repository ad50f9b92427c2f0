"""The options that every objective has; here, where nothing is heavy, since project files are checked by them."""

from dataclasses import dataclass

from training.validation import check


@dataclass(frozen=True, kw_only=True)
class Options:
    weight: float = 1.0  # of the objective's losses in the sum that is minimised

    def __post_init__(self) -> None:
        check(self.weight > 0, "weight", self.weight, "a positive number")


@dataclass(frozen=True, kw_only=True)
class Unimodal(Options):
    balance: float = 0.0  # how far the gradient of a modality that answers better than the others is damped; 0: not

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.balance <= 1, "balance", self.balance, "0 to 1")
