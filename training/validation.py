"""Settings dataclasses: checked where they are made, to plain values and back.

Plain dataclasses, since a GPU machine may lack pydantic; where it is installed, it reads what a project file says.
"""

import dataclasses
import json
import typing
from collections.abc import Mapping
from typing import Annotated, Any

FORBID_EXTRA = {"extra": "forbid"}  # read by pydantic: a misspelt key is an error


class OneOrMore:
    """Marks the type of a tuple of words: a project file may say a single one without a list, `key: id` for `[id]`, and
    numbers, which YAML makes of -999 and 2024, are words."""

    def __init__(self, least: int = 0) -> None:
        self._least = least

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import PydanticCustomError, core_schema

        def listed(value: Any) -> Any:
            values = [value] if isinstance(value, str) or _is_number(value) else value
            if not isinstance(values, list | tuple) or len(values) < self._least:
                raise PydanticCustomError("names", "expected a name or a list of names")
            return [str(v) if _is_number(v) else v for v in values]

        return core_schema.no_info_before_validator_function(listed, handler(source))


class Word:
    """Marks the type of settings that a project file may also say by one of their values alone, where that is a word:
    `llm: tiny` for `{model: tiny}`."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_before_validator_function(
            lambda value: {self._name: value} if isinstance(value, str) else value, handler(source)
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


Names = Annotated[tuple[str, ...], OneOrMore(least=1)]
Strings = Annotated[tuple[str, ...], OneOrMore()]  # may be none


def check(ok: bool, name: str, value: object, expected: str) -> None:
    """Raises ValueError that names the setting, its value and what is allowed."""
    if not ok:
        raise ValueError(f"{name} is {value!r}, expected {expected}")


def to_dict(settings: Any) -> dict[str, Any]:
    """A settings dataclass as plain JSON-able values (tuples become lists, a Choice what the project file says)."""
    return json.loads(json.dumps(_plain(settings)))


def _plain(value: Any) -> Any:
    if hasattr(value, "plain"):  # a Choice, or settings that the project file says in another form
        return value.plain()
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def validated(kind: Any, values: Mapping[str, Any]) -> Any:
    """The dataclass `kind` from what a project file says, with pydantic's conversions where pydantic is installed.

    Raises:
        ValueError: a value is not what was expected; the message names it.
    """
    try:
        from pydantic import TypeAdapter, ValidationError
    except ImportError:  # a machine that only trains gets values that were checked before
        return from_dict(kind, dict(values))
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        if problem["type"] == "value_error":
            raise ValueError(str(problem["ctx"]["error"])) from None
        if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            known = ", ".join(field.name for field in dataclasses.fields(kind))
            raise ValueError(f"{place} is not a key that is known here; known are {known}") from None
        raise ValueError(f"{place} is {problem['input']!r}: {problem['msg'].lower()}") from None


def from_dict(kind: Any, values: Any) -> Any:
    """The settings dataclass `kind` back from `to_dict`."""
    if hasattr(kind, "from_plain"):
        return kind.from_plain(values)
    hints = typing.get_type_hints(kind)
    return kind(**{name: _read(hints[name], value) for name, value in values.items()})


def _read(hint: Any, value: Any) -> Any:
    """A value of `to_dict` as what the type hint of its field says."""
    inner = typing.get_args(hint)
    if isinstance(value, list):
        return tuple(_read(inner[0] if inner else Any, item) for item in value)
    if isinstance(value, dict) and typing.get_origin(hint) is dict:
        return {name: _read(inner[1], item) for name, item in value.items()}
    kinds = [kind for kind in (hint, *inner) if dataclasses.is_dataclass(kind) or hasattr(kind, "from_plain")]
    if kinds and (isinstance(value, dict) or (isinstance(value, str) and hasattr(kinds[0], "from_plain"))):
        return from_dict(kinds[0], value)
    return value
