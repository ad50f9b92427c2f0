"""What the evaluation of a model looks at beside its figures. Nothing of it trains anything anew."""

from dataclasses import dataclass

from training.validation import FORBID_EXTRA, Strings, check


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    __pydantic_config__ = FORBID_EXTRA
    # Columns of samples, such as sex or site: how far what the model is worth differs between their groups. They are
    # slices, too, even where they tell the label, and where `promotion.worst_slice` is set the gate asks it of them.
    sensitive: Strings = ()

    def __post_init__(self) -> None:
        twice = sorted({name for name in self.sensitive if self.sensitive.count(name) > 1})
        check(not twice, "sensitive", ", ".join(twice), "each column once")
