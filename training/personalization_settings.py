"""What the project file says under `personalization`. Needs no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from training.outputs.base import Output
from training.validation import FORBID_EXTRA, check


@dataclass(frozen=True, kw_only=True)
class PersonalizationSettings:
    """A small adapter for each group of samples, over the model that all share and that stays as it is."""

    __pydantic_config__ = FORBID_EXTRA
    group: str  # the column of the samples that says whose a row is
    rank: int = 4  # of what is added to the tokens that the fusion reads; 0: a bias alone
    minimum: int = 5  # labelled training rows of a group; one with fewer has none of its own
    epochs: float = 30.0  # over the rows of all groups
    batch_size: int = 32
    learning_rate: float = 3e-3
    seed: int = 0

    def __post_init__(self) -> None:
        check(bool(self.group.strip()), "group", self.group, "a column of the samples")
        check(0 <= self.rank <= 64, "rank", self.rank, "0 to 64")
        check(self.minimum >= 2, "minimum", self.minimum, "2 or more: some rows teach an adapter, others judge it")
        check(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        for name in ("epochs", "learning_rate"):
            check(getattr(self, name) > 0, name, getattr(self, name), "over 0")


def check_personalization(
    settings: PersonalizationSettings, output: Output, kind: str, labels: Sequence[str], variants: Sequence[object]
) -> None:
    """Raises ValueError where no adapters can be had: of the output of that kind, or beside variants."""
    expected = f"no label ({', '.join(labels)}): whoever asks would give the answer"
    check(settings.group not in labels, "personalization.group", settings.group, expected)
    can = output.has_labels and not output.answers_with
    check(can, "personalization", f"beside model.output: {kind}", "an output that has labels")
    named = ", ".join(map(str, variants))
    check(not variants, "personalization", f"beside variants ({named})", "no variants: they know no groups")
