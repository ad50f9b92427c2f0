"""Language of a text, as the clean step found it."""

from dataclasses import dataclass

from training.filters.base import Filter
from training.validation import FORBID_EXTRA, Strings, check


@dataclass(frozen=True, kw_only=True)
class LanguageOptions:
    __pydantic_config__ = FORBID_EXTRA
    any_of: Strings = ()  # ISO 639-1 codes; `und`: undetermined

    def __post_init__(self) -> None:
        for code in self.any_of:
            check(code.isalpha() and code.islower(), "any_of", code, "ISO 639-1 codes such as en, or und")


class LanguageFilter(Filter):
    value = "language"
    Options = LanguageOptions

    def __init__(self, options: LanguageOptions) -> None:
        super().__init__(options)
        check(len(options.any_of) > 0, "language: any_of", list(options.any_of), "at least one language to keep")

    def keeps(self, value: str) -> str:
        return f"list_contains({list(self.options.any_of)}, {value})"

    def expected(self) -> str:
        return f"one of {', '.join(self.options.any_of)}"
