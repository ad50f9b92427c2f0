"""What a family of kinds is: the choice of one as project files say it, how its class is found, what names it."""

import dataclasses
import difflib
import functools
import hashlib
import importlib
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_OWN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")

Place = str | tuple[str, str]  # "module:Class", and where its options are if not with it


@dataclass(frozen=True)
class Choice:
    """A kind, and those of its options that are not the defaults, as plain JSON-able values."""

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.kind + "".join(f" {name}={value}" for name, value in self.options.items())

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> Any:
        """Pydantic takes what the file says as it is: the settings class that has the field checks it by its family."""
        from pydantic_core import core_schema

        return core_schema.any_schema()

    @classmethod
    def from_plain(cls, value: Any) -> "Choice":
        if isinstance(value, str):
            return cls(value)
        return cls(value["kind"], {name: option for name, option in value.items() if name != "kind"})

    def plain(self) -> Any:
        """As the project file says it: the word, or the word with its options."""
        return {"kind": self.kind, **self.options} if self.options else self.kind


@dataclass(frozen=True)
class Family:
    """Things of one contract that differ in kind.

    `kinds` maps a kind to its place or, where a kind means different classes for different inputs (encoders,
    featurizers), a scope to such a map: the methods then need the `scope`.
    """

    name: str  # of one member, as errors name it: fusion
    kinds: Mapping[str, Any]

    def names(self, scope: str | None = None) -> tuple[str, ...]:
        """The kinds there are, without users' own."""
        return tuple(self._places(scope))

    def load(self, kind: str, scope: str | None = None) -> Any:
        """The class of a kind.

        Raises:
            ValueError: there is no such kind, or a user's own cannot be imported.
        """
        place = self._place(kind, scope)
        return self._import(kind, place if isinstance(place, str) else place[0])

    def choose(self, value: object, scope: str | None = None) -> Choice:
        """What the project file says, checked: a word, or a mapping with `kind` and options; a Choice stays.

        Raises:
            ValueError: there is no such kind or option, or an option's value is not what was expected.
        """
        if isinstance(value, Choice):
            value = value.plain()
        if isinstance(value, str):
            self._place(value, scope)
            return Choice(value)
        if not isinstance(value, Mapping) or not isinstance(kind := value.get("kind"), str):
            raise ValueError(
                f"{self.name} is {value!r}, expected {self._expected(scope)}, or {{kind: ..., option: ...}}"
            )
        options = {str(name): option for name, option in value.items() if name != "kind"}
        if not options:
            return self.choose(kind, scope)
        return Choice(kind, self._changed(self._checked(kind, options, scope)))

    def options(self, choice: Choice, scope: str | None = None) -> Any:
        """The options of a choice as its class's dataclass; None where the kind has none."""
        if (cls := self._options_class(choice.kind, scope)) is None:
            return None
        from training.validation import from_dict

        return from_dict(cls, dict(choice.options))

    def option_names(self, kind: str, scope: str | None = None) -> list[str]:
        cls = self._options_class(kind, scope)
        return [] if cls is None else [field.name for field in dataclasses.fields(cls)]

    def make(self, choice: Choice, *arguments: Any, scope: str | None = None, **named: Any) -> Any:
        """An object of the choice's class: called with the arguments, and with `options` where the kind has some."""
        options = self.options(choice, scope)
        extra = {} if options is None else {"options": options}
        return self.load(choice.kind, scope)(*arguments, **named, **extra)

    def _places(self, scope: str | None) -> Mapping[str, Place]:
        return self.kinds if scope is None else self.kinds.get(scope, {})

    def _place(self, kind: str, scope: str | None) -> Place:
        places = self._places(scope)
        if kind in places:
            return places[kind]
        if is_own(kind):
            return kind
        close = difflib.get_close_matches(kind, places, 1)
        meant = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"{self.name} is {kind!r}, expected {self._expected(scope)}{meant}")

    def _expected(self, scope: str | None) -> str:
        return f"one of {', '.join(self._places(scope))}, or your own as module:Class"

    def _import(self, kind: str, place: str) -> Any:
        module, _, name = place.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except Exception as error:  # a user's code may raise anything while it is imported
            if not is_own(kind):
                raise
            raise ValueError(
                f"{self.name} is {kind!r}, and it cannot be imported ({type(error).__name__}: {error}): expected "
                "module:Class of a module that is installed, on PYTHONPATH, or in the folder of the project file"
            ) from error

    def _options_class(self, kind: str, scope: str | None) -> Any:
        place = self._place(kind, scope)
        if isinstance(place, tuple):
            return self._import(kind, place[1])
        return getattr(self._import(kind, place), "Options", None)

    def _checked(self, kind: str, options: dict[str, Any], scope: str | None) -> Any:
        cls, known = self._options_class(kind, scope), self.option_names(kind, scope)
        if unknown := [name for name in options if name not in known]:
            there = f"there are {', '.join(known)}" if known else "it has no options"
            close = difflib.get_close_matches(unknown[0], known, 1)
            meant = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"{self.name} {kind} has no option {unknown[0]!r}; {there}{meant}")
        from training.validation import validated

        try:
            return validated(cls, options)
        except ValueError as error:
            raise ValueError(f"{self.name} {kind}: {error}") from None

    @staticmethod
    def _changed(options: Any) -> dict[str, Any]:
        from training.validation import to_dict

        values, defaults = to_dict(options), to_dict(type(options)())
        return {name: value for name, value in values.items() if value != defaults[name]}


def is_own(kind: str) -> bool:
    """Whether a word names a user's own kind: module:Class."""
    return _OWN.fullmatch(kind) is not None


def own_module(kind: str) -> Path | None:
    """Where the code of a user's own kind lies: a file, or the folder of its top package; None for ours.

    Raises:
        ValueError: there is no such module.
    """
    if not is_own(kind):
        return None
    module = kind.partition(":")[0]
    top = module.partition(".")[0]
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        there = f"the folder {top} has no __init__.py: add an empty one" if spec else f"there is no module {top}"
        raise ValueError(f"{kind}: {there}")
    path = Path(spec.origin)
    return path.parent if path.name == "__init__.py" else path


def identity(choice: Choice) -> Any:
    """What a fingerprint knows of a choice: kind and options, and of a user's own kind its code."""
    path = own_module(choice.kind)
    return choice.plain() if path is None else [choice.plain(), _code_digest(path)]


def code_of(folder: Path) -> str:
    """What is another where the code in a folder is."""
    return _code_digest(folder)


@functools.cache
def _code_digest(path: Path) -> str:
    """Of a file or folder of code; read once in a process, which imports it once: what is edited while a run is at work
    must not name what the old code makes."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
        digest.update(f"{file.name}\0".encode() + file.read_bytes())
    return digest.hexdigest()
