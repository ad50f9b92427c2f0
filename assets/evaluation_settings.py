"""What the evaluation of a model looks at beside its figures. Nothing of it trains anything anew."""

from dataclasses import dataclass

from training.validation import FORBID_EXTRA, Strings, check


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    __pydantic_config__ = FORBID_EXTRA
    # Columns of samples, such as sex or site: how far what the model is worth differs between their groups. They are
    # slices, too, even where they tell the label, and where `promotion.worst_slice` is set the gate asks it of them.
    sensitive: Strings = ()

    maps: int = 0  # test rows of which pictures say what the answer hangs on (`triptych explain`), in the model's run

    # Test rows that are answered again with noise in one modality after the other, at four levels each; 0: none.
    noise: int = 0

    def __post_init__(self) -> None:
        twice = sorted({name for name in self.sensitive if self.sensitive.count(name) > 1})
        for name in ("maps", "noise"):
            check(getattr(self, name) >= 0, name, getattr(self, name), "0 or more rows")
        check(not twice, "sensitive", ", ".join(twice), "each column once")
