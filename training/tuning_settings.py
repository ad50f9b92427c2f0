"""Settings of a search for better settings: which of them are tried, how far, for how long; and how values of them are
put in place. Needs neither torch nor Optuna."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from training.settings import ModelSettings, TrainingSettings
from training.validation import FORBID_EXTRA, check, to_dict, validated

_SECTIONS = {"model": ModelSettings, "training": TrainingSettings}
_FEW = 100  # values of a range of whole numbers, which are all tried out when the project file is read
# Settings that no trial can judge, and why.
_FIXED = {
    "model.output": "it is what is answered",
    "model.outputs": "it is what is answered",
    "model.abstain_below": "it trains nothing",
    "training.evaluations": "trials are compared validation by validation",
    **{
        f"training.{name}": "it decides no weight"
        for name in ("workers", "parallel", "checkpoint_steps", "report_to", "baseline_epochs")
    },
}


@dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers from `low` to `high`, both among them; whole ones where all that is given is whole."""

    __pydantic_config__ = FORBID_EXTRA
    low: int | float
    high: int | float
    step: int | float | None = None  # from `low` on
    log: bool = False  # as likely between 1 and 10 as between 10 and 100

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            check(math.isfinite(getattr(self, name)), name, getattr(self, name), "a number")
        check(self.low < self.high, "high", self.high, f"more than low ({self.low}): the range is empty")
        step, width = self.step, self.high - self.low
        check(step is None or 0 < step <= width, "step", step, f"null, or above 0 and up to high - low ({width:g})")
        check(not self.log or self.low > 0, "low", self.low, "above 0 where log is true")
        check(not self.log or step is None, "step", step, "null where log is true")

    @property
    def is_whole(self) -> bool:
        return all(isinstance(value, int) for value in (self.low, self.high, self.step or 1))

    @property
    def last(self) -> int | float:
        """The highest that steps from `low` reach."""
        step = self.step
        return self.high if step is None else self.low + math.floor((self.high - self.low) / step + 1e-9) * step

    @property
    def few(self) -> list[Any]:
        """What tells whether settings take the range: few whole numbers all, of many the first two and the last; of
        others both ends."""
        if not self.is_whole:
            return [self.low, self.last]
        whole = range(int(self.low), int(self.last) + 1, int(self.step or 1))
        return list(whole if len(whole) <= _FEW else (whole[0], whole[1], whole[-1]))


Space = Mapping[str, "Range | tuple[Any, ...]"]  # dotted key -> what it may be


@dataclass(frozen=True, kw_only=True)
class TuningSettings:
    """A search with Optuna: trials, each of which is a training judged on the validation rows."""

    __pydantic_config__ = FORBID_EXTRA
    # Dotted keys of `model` and `training` -> {low, high, step, log}, or a list of values
    space: dict[str, Any]
    trials: int | None = 20  # in all, however often the search is started; null: as many as `minutes` allow
    minutes: float | None = None  # of training, in all: no trial begins after them; null: as long as `trials` take
    metric: str | None = None  # one of the output's; null: training.metric, or the output's first
    # median: a trial ends early that at a validation is worse than the median of those before it
    pruner: Literal["median", "none"] = "median"
    sampler: Literal["tpe", "random"] = "tpe"  # tpe: what did well is tried more; random: each draw is for itself
    seed: int = 0

    def __post_init__(self) -> None:
        check(len(self.space) > 0, "space", self.space, "settings to try, such as training.learning_rate")
        object.__setattr__(self, "space", {path: _values(path, said) for path, said in self.space.items()})
        for path in self.space:
            above = [other for other in self.space if path.startswith(f"{other}.")]
            check(not above, "space", path, f"nothing within {', '.join(above)}, which is tried as a whole")
        check(self.trials is None or self.trials >= 1, "trials", self.trials, "null or at least 1")
        check(self.minutes is None or self.minutes > 0, "minutes", self.minutes, "null or above 0")
        bounded = self.trials is not None or self.minutes is not None
        check(bounded, "trials", self.trials, "a number where there are no minutes: the search would never end")

    def is_spent(self, trials: int, seconds: float) -> bool:
        """Whether no further trial is to begin after so many, which took so long."""
        enough = self.trials is not None and trials >= self.trials
        return enough or (self.minutes is not None and seconds >= 60 * self.minutes)

    def decisive(self) -> dict[str, Any]:
        """What makes it another search, as plain values: all but how long it goes on."""
        return {name: value for name, value in to_dict(self).items() if name not in ("trials", "minutes")}

    def tried(self) -> Iterator[tuple[str, Any]]:
        """Key and value: every choice, and of ranges what tells whether the settings take them (`Range.few`)."""
        for path, values in self.space.items():
            yield from ((path, value) for value in (values.few if isinstance(values, Range) else values))


def _values(path: str, said: Any) -> "Range | tuple[Any, ...]":
    """What the project file says of a key of the space, checked."""
    section, _, name = path.partition(".")
    expected = "keys of model and training, such as training.learning_rate"
    if section == "features":
        expected += ": features would be made anew for each trial"
    check(section in _SECTIONS and name != "", "space", path, expected)
    known = [field.name for field in fields(_SECTIONS[section])]
    check(name.partition(".")[0] in known, "space", path, f"keys of {section} ({', '.join(known)})")
    check(path not in _FIXED, "space", path, f"others: {_FIXED.get(path)}")
    if isinstance(said, Range):
        return said
    try:
        if isinstance(said, Mapping) and {"low", "high"} <= said.keys():
            return validated(Range, said)
    except ValueError as error:
        raise ValueError(f"space.{path}: {error}") from None
    several = isinstance(said, list | tuple) and len({word(value) for value in said}) == len(said) > 1
    check(several, f"space.{path}", said, "{low: ..., high: ...}, or a list of two values or more, none of them twice")
    return tuple(said)


def word(value: Any) -> Any:
    """A choice as Optuna stores it: what is no plain value as JSON."""
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value)


def in_words(values: Mapping[str, Any]) -> str:
    """training.learning_rate 0.001, model.fusion concat"""
    shown = {path: f"{value:.4g}" if isinstance(value, float) else word(value) for path, value in values.items()}
    return ", ".join(f"{path} {value}" for path, value in shown.items())


def with_values(
    model: ModelSettings, training: TrainingSettings, values: Mapping[str, Any]
) -> tuple[ModelSettings, TrainingSettings]:
    """The settings with these values, by dotted key, in their place.

    Raises:
        ValueError: the settings do not take them.
    """
    plain, settings = {"model": to_dict(model), "training": to_dict(training)}, [model, training]
    for path, value in values.items():
        _put(plain, path, value)
    for number, (name, kind) in enumerate(_SECTIONS.items()):
        if any(path.startswith(f"{name}.") for path in values):
            settings[number] = validated(kind, plain[name])
    return settings[0], settings[1]  # type: ignore[return-value]  # in the order of the sections


def _put(sections: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    within: Any = sections
    for name in parents:
        inner = within.get(name)
        if isinstance(inner, str):  # a kind, or a language model, that is said in a word
            inner = {"model" if name == "llm" else "kind": inner}
        elif inner is None:
            inner = {}
        elif not isinstance(inner, dict):
            raise ValueError(f"{name} holds {inner!r}, and has no keys")
        within[name] = inner
        within = inner
    within[last] = value


def value_at(model: ModelSettings, training: TrainingSettings, path: str) -> Any:
    """What the settings say at a dotted key, as plain values; None where they say nothing."""
    within: Any = {"model": to_dict(model), "training": to_dict(training)}
    for name in path.split("."):
        said_in_a_word = isinstance(within, str) and name in ("model", "kind")
        within = within.get(name) if isinstance(within, Mapping) else within if said_in_a_word else None
    return within


def as_sections(
    model: ModelSettings, training: TrainingSettings, values: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """The settings with these values, as the project file says them: of each key the whole entry of its section, so
    that it stands for whatever is there."""
    changed, sections = with_values(model, training, values), dict[str, dict[str, Any]]()
    for path in values:
        section, name, *_ = path.split(".")
        sections.setdefault(section, {})[name] = value_at(*changed, f"{section}.{name}")
    return sections


def as_yaml(settings: Mapping[str, Mapping[str, Any]]) -> str:
    """Sections as the project file may hold them."""
    import yaml

    return yaml.safe_dump({name: dict(section) for name, section in settings.items()}, sort_keys=False)


def as_overrides(settings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The same as `--set` takes them: section.key=value each."""
    import yaml

    def plain(value: Any) -> str:
        dumped = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)
        return dumped.removesuffix("...\n").strip()

    return [f"{name}.{key}={plain(value)}" for name, section in settings.items() for key, value in section.items()]
