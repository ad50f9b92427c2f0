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


@dataclass(frozen=True, kw_only=True)
class CardSettings:
    """What only people know of model and data, for their cards."""

    __pydantic_config__ = FORBID_EXTRA
    use: str = ""  # what the model is meant for
    limits: str = ""  # what it is not for, and what is known to be wrong with it
    license: str | None = None  # of the model, as Hugging Face names them: apache-2.0, cc-by-4.0, ...
    license_column: str | None = None  # column of samples that says the licence of each row
    consent_column: str | None = None  # column of samples that says what people have agreed to
    watts: float | None = None  # that the machine takes while it trains: what the time that it took is multiplied by

    def __post_init__(self) -> None:
        check(self.watts is None or self.watts > 0, "watts", self.watts, "null or a positive number")

    @property
    def columns(self) -> dict[str, str]:
        """Setting -> the column that it names, of those that name one."""
        named = {"license_column": self.license_column, "consent_column": self.consent_column}
        return {name: column for name, column in named.items() if column is not None}
