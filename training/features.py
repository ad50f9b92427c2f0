"""What the project file says under `features`: for each modality the kind of its featurizer, and how it is cleaned."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from training.catalog import COMPRESSIONS, FEATURIZERS, MODALITIES, PRETRAINED_ENCODERS
from training.compressed import Compressed
from training.compressions.base import Fit
from training.family import Choice, identity, is_own
from training.featurizers.base import Featurizer
from training.modalities.base import Modality
from training.validation import to_dict, validated


@dataclass(frozen=True)
class _Section:
    """Of one modality."""

    cleaning: Any  # options of the modality; None where it has none
    choice: Choice  # of the featurizer
    compression: Choice | None  # of what it makes
    is_said: bool  # whether its kind was, or is the default
    plain: dict[str, Any]  # both as the project file says them, without what is default


class FeatureSettings:
    """Modality -> featurizer, as `kind` and options, and the modality's own options for cleaning; all have defaults.
    `compression` says how what it makes is stored smaller.

        FeatureSettings(image={"size": 28}, speech={"kind": "mfcc", "compression": "int8"}, text={"lowercase": True})

    Raises:
        ValueError: there is no such modality, kind or option, or a value is not what was expected.
    """

    def __init__(self, **sections: Any) -> None:
        self._sections: dict[str, _Section] = {}
        for name in (*MODALITIES.names(), *sections):
            try:
                self._sections[name] = _read(name, sections.get(name, {}))
            except ValueError as error:
                raise ValueError(f"features.{name}: {error}") from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FeatureSettings) and self.plain() == other.plain()

    def __hash__(self) -> int:
        return hash(str(self.plain()))

    def __repr__(self) -> str:
        return f"FeatureSettings(**{self.plain()})"

    def plain(self) -> dict[str, Any]:
        """As the project file says it, without what is default."""
        return {name: section.plain for name, section in self._sections.items() if section.plain}

    @classmethod
    def from_plain(cls, sections: Mapping[str, Any]) -> "FeatureSettings":
        return cls(**sections)

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(_validate)

    def modality(self, name: str) -> Modality:
        """What decodes and cleans its items."""
        section = self._sections[name]
        if (stand_in := _stand_in(name, section.choice)) is not None:
            return stand_in
        return MODALITIES.load(name)() if section.cleaning is None else MODALITIES.load(name)(section.cleaning)

    def choice(self, name: str) -> Choice:
        """The kind of a modality's featurizer."""
        return self._sections[name].choice

    def featurizer(self, name: str) -> Featurizer:
        return FEATURIZERS.make(self.choice(name), scope=name)

    def options(self, name: str) -> Any:
        """Those of a modality's featurizer."""
        return FEATURIZERS.options(self.choice(name), name)

    def compressed(self, name: str, fit: Fit | None = None) -> Compressed | None:
        """How the tensor that a modality's encoder reads is stored smaller, if it is. Args: `fit` of the compression,
        where it has one."""
        if (choice := self._sections[name].compression) is None:
            return None
        featurizer = self.featurizer(name)
        compression = COMPRESSIONS.make(choice, fit=fit)
        return Compressed(featurizer.read, featurizer.tensors[featurizer.read], choice.kind, compression)

    def stored(self, name: str) -> dict[str, str | None]:
        """The columns of a modality's feature table: dtype of each tensor, None for what compressing it lost."""
        tensors, compressed = self.featurizer(name).tensors, self.compressed(name)
        if compressed is None:
            return dict(tensors)
        others = {tensor: dtype for tensor, dtype in tensors.items() if tensor != compressed.name}
        return others | compressed.tensors | {compressed.loss: None}

    def augmented(self, name: str) -> dict[str, str]:
        """The tensor that only augmentation reads, and its dtype, where there is one."""
        featurizer = self.featurizer(name)
        tensor = featurizer.augmented
        if tensor is None or tensor == featurizer.read or tensor not in featurizer.tensors:
            return {}
        return {tensor: featurizer.tensors[tensor]}

    def rows(self, name: str) -> tuple[tuple[str, ...], ...]:
        """The tensors that stand in one row of a modality's feature table, of each row that a content has: those that
        the same options decide."""
        groups: dict[tuple[str, ...], list[str]] = {}
        unaffected = self.unaffected(name)
        for tensor in self.featurizer(name).tensors:
            groups.setdefault(unaffected.get(tensor, ()), []).append(tensor)
        return tuple(map(tuple, groups.values()))

    def unaffected(self, name: str) -> Mapping[str, tuple[str, ...]]:
        """Of a modality's tensors those that not all options decide -> the options that do not."""
        kind = type(self.featurizer(name))
        if is_own(self.choice(name).kind):  # a user's own may inherit what is said of tensors that it makes otherwise
            return vars(kind).get("unaffected_by", {})
        return kind.unaffected_by

    def own_kinds(self) -> list[str]:
        """The kinds of all modalities, among which a user's own may be."""
        compressions = [section.compression.kind for section in self._sections.values() if section.compression]
        return [section.choice.kind for section in self._sections.values()] + compressions

    @cached_property
    def forms(self) -> dict[str, str]:
        """Modality -> form of its features (`FeatureShape.form`)."""
        return {name: FEATURIZERS.load(self.choice(name).kind, name).form for name in self._sections}

    def at_batch(self, name: str) -> Any:
        """What of a modality's features acts only when a batch is made, so that no stored tensor knows it."""
        featurizer = self.featurizer(name)
        options = {} if featurizer.options is None else to_dict(featurizer.options)
        return featurizer.read, {option: options[option] for option in featurizer.at_batch}

    def located(self, locate: Callable[[str], str]) -> "FeatureSettings":
        """With `locate` applied to each option that names a model or file: a local folder may be relative."""
        sections = self.plain()
        for name in self._sections:
            for option in self.featurizer(name).located:
                value = getattr(self.options(name), option)
                if isinstance(value, str) and value and locate(value) != value:
                    sections[name] = sections.get(name, {}) | {option: locate(value)}
                elif hasattr(value, "located"):
                    sections[name] = sections[name] | {option: to_dict(value.located(locate))}
        return FeatureSettings(**sections)

    def served(self) -> "FeatureSettings":
        """Without what training alone reads."""
        sections = {}
        for name, section in self.plain().items():
            dropped = self.featurizer(name).for_training
            sections[name] = {option: value for option, value in section.items() if option not in dropped}
        return FeatureSettings(**sections)

    def with_encoders(self, encoders: Mapping[str, Any]) -> "FeatureSettings":
        """With the kind and model that a pretrained encoder in the model reads, where they were not said.

        Args:
            encoders: modality -> encoder, as the project file says it.

        Raises:
            ValueError: a pretrained encoder has no model, or its features are of another kind or model.
        """
        sections = self.plain()
        for name, encoder in encoders.items():
            said: Any = encoder.plain() if isinstance(encoder, Choice) else encoder
            said = {"kind": said} if isinstance(said, str) else said
            kind = PRETRAINED_ENCODERS.get(said.get("kind", "")) if isinstance(said, Mapping) else None
            if kind is None or name not in self._sections:
                continue
            encoder_words, section = f"model.encoders.{name} ({said['kind']})", self._sections[name]
            if not (model := said.get("model")):
                raise ValueError(f"{encoder_words} has no model: {{kind: {said['kind']}, model: NAME_OR_FOLDER}}")
            if section.is_said and section.choice.kind != kind:
                raise ValueError(
                    f"features.{name} is {section.choice.kind}, which {encoder_words} does not read: leave the kind of "
                    f"the features out, or say {kind}"
                )
            named = {"model": model} | ({"weights": said["weights"]} if said.get("weights") else {})
            for option, value in named.items():
                if (other := section.plain.get(option, value)) != value:
                    raise ValueError(f"features.{name}.{option} is {other!r}, and that of {encoder_words} is {value!r}")
            sections[name] = section.plain | {"kind": kind, **named}
        return FeatureSettings(**sections)

    def identity(self, name: str) -> Any:
        """What a fingerprint knows of the kind: of a user's own, its code."""
        return identity(Choice(self.choice(name).kind))


def _read(name: str, section: Any) -> _Section:
    if name not in MODALITIES.names():
        raise ValueError(f"is no modality; there are {', '.join(MODALITIES.names())}")
    modality = MODALITIES.load(name)
    if not isinstance(section, str | Mapping):
        raise ValueError(f"is {section!r}, expected a kind of features, or a mapping of options")
    values = {"kind": section} if isinstance(section, str) else dict(section)
    is_said, kind = "kind" in values, values.pop("kind", modality.default_featurizer)
    takes_own = _stand_in(name, Choice(kind)) is None
    cleaning_class = getattr(modality, "Options", None) if takes_own else None
    cleaned = [field.name for field in dataclasses.fields(cleaning_class)] if cleaning_class else []
    options = FEATURIZERS.option_names(kind, name)
    said = values.pop("compression", None)
    for option in values:
        if option not in (*cleaned, *options):
            known = (*options, *cleaned, "compression")
            close = difflib.get_close_matches(str(option), known, 1)
            meant = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
            raise ValueError(f"{option} is not a key that is known here; {meant}")
    choice = FEATURIZERS.choose({"kind": kind} | {k: v for k, v in values.items() if k not in cleaned}, name)
    featurizer = FEATURIZERS.make(choice, scope=name)  # so that an option that has to be given is missed now
    compression = None if said is None else _compression(said, featurizer, kind)
    plain = dict(choice.options) if kind == modality.default_featurizer else {"kind": kind, **choice.options}
    plain |= {} if compression is None else {"compression": compression.plain()}
    if cleaning_class is None:
        return _Section(None, choice, compression, is_said, plain)
    cleaning = validated(cleaning_class, {k: v for k, v in values.items() if k in cleaned})
    defaults = to_dict(cleaning_class())
    plain |= {k: v for k, v in to_dict(cleaning).items() if v != defaults[k]}
    return _Section(cleaning, choice, compression, is_said, plain)


def _compression(said: Any, featurizer: Featurizer, kind: str) -> Choice:
    choice = COMPRESSIONS.choose(said)
    dtype = featurizer.tensors[featurizer.read]
    if featurizer.form not in ("vectors", "frames") or not dtype.startswith("float"):
        raise ValueError(
            f"compression is {choice}, and {kind} are stored as {dtype}: leave it out, which is for vectors and frames "
            "of floating-point numbers, such as embedding, vector, word_vectors or log_mel"
        )
    COMPRESSIONS.make(choice).check(dtype, None)
    return choice


def _stand_in(name: str, choice: Choice) -> Modality | None:
    stand_in: Modality | None = FEATURIZERS.load(choice.kind, name).stand_in(name, FEATURIZERS.options(choice, name))
    return stand_in


def _validate(value: Any) -> FeatureSettings:
    """What pydantic calls: all errors at once, each with the modality in its key path."""
    from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError

    if isinstance(value, FeatureSettings):
        return value
    if not isinstance(value, Mapping):
        raise ValueError(f"is {value!r}, expected a mapping of modalities")
    problems = []
    for name, section in value.items():
        try:
            _read(str(name), section)
        except ValueError as error:
            custom = PydanticCustomError("value_error", "{error}", {"error": str(error)})
            problems.append(InitErrorDetails(type=custom, loc=(str(name),), input=section))
    if problems:
        raise ValidationError.from_exception_data("features", problems)
    return FeatureSettings(**{str(name): section for name, section in value.items()})
