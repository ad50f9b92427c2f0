"""The contract of a filter: which items of a modality may be in samples, decided in SQL from what was measured.

The clean step measures and stores; filters decide from what is stored, when samples are made. So moving a threshold
decodes nothing, and what a filter refuses stands in `quarantine` under the stage `filter`.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from training.validation import FORBID_EXTRA, check


class Filter(ABC):
    """A kind of filter of one modality. Its thresholds are a frozen dataclass `Options`, and `self.options`.

    `value` is an SQL expression over the columns of the modality's clean table. A filter that needs what they do not
    say has none; it defines `measure`, and counts `version` up when that gives other results.
    """

    version: ClassVar[int] = 0  # of `measure`; 0: the clean table says enough
    packages: ClassVar[tuple[str, ...]] = ()  # whose versions decide what is measured
    located: ClassVar[tuple[str, ...]] = ()  # options that name a model: a local folder may be relative
    value: ClassVar[str | None] = None

    def __init__(self, options: Any = None) -> None:
        self.options = options

    def measure(self, content: Any) -> float:
        """A number of a content, decoded and cleaned; it does not depend on the options.

        Raises:
            MediaError: it has none; the filter refuses the content then.
        """
        raise NotImplementedError

    @abstractmethod
    def keeps(self, value: str) -> str:
        """An SQL condition on a column that holds what `value` or `measure` gave: true for what may pass."""

    @abstractmethod
    def expected(self) -> str:
        """What passes, for a person: "at least 0.5 s"."""

    def shown(self, value: str) -> str:
        """SQL for such a value as a person reads it."""
        return f"{value}::VARCHAR"


@dataclass(frozen=True, kw_only=True)
class RangeOptions:
    __pydantic_config__ = FORBID_EXTRA
    least: float | None = None  # null: no bound
    most: float | None = None

    def __post_init__(self) -> None:
        for name, bound in (("least", self.least), ("most", self.most)):
            check(bound is None or math.isfinite(bound), name, bound, "a finite number, or null for no bound")
        if self.least is not None and self.most is not None:
            check(self.least <= self.most, "least", self.least, f"at most `most` ({self.most:g})")


class RangeFilter(Filter):
    """Keeps numbers from `least` to `most`."""

    unit: ClassVar[str] = ""
    Options = RangeOptions

    def keeps(self, value: str) -> str:
        bounds = [(">=", self.options.least), ("<=", self.options.most)]
        return " AND ".join(f"{value} {sign} {float(bound)!r}" for sign, bound in bounds if bound is not None) or "true"

    def expected(self) -> str:
        bounds = [("at least", self.options.least), ("at most", self.options.most)]
        said = " and ".join(f"{words} {bound:g}" for words, bound in bounds if bound is not None)
        return f"{said}{self.unit}" if said else "any"

    def shown(self, value: str) -> str:
        return f"printf('%.6g', {value}::DOUBLE)"
