"""The project file: one YAML file read, checked and composed into `assets.settings.Project` before anything runs."""

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from assets.settings import Project


class ProjectError(ValueError):
    """The project file cannot be used; the message names the file, the key path, the value and what was expected."""


def home() -> Path:
    """The folder that holds all state: TRIPTYCH_HOME, or .triptych here."""
    return Path(os.environ.get("TRIPTYCH_HOME") or ".triptych").resolve()


def load(path: str | Path, overrides: Iterable[str] = ()) -> Project:
    """Reads a project file.

    Args:
        path: of the YAML file, or the folder that holds its ``project.yaml``.
        overrides: ``key.path=value`` each, the value read as YAML.

    Raises:
        ProjectError: the file cannot be read, is no valid YAML, or a value is not what was expected.
    """
    path = Path(path).resolve()
    if path.is_dir():
        path = path / "project.yaml"
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ProjectError(f"{path}: no such project file; `triptych init DIR` writes one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ProjectError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ProjectError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(document, dict):
        raise ProjectError(f"{path}: expected sections such as name and sources, found {type(document).__name__}")
    for override in overrides:
        _override(document, override)
    document = _substitute(document, {"data": document.get("data")}, path)
    if isinstance(document.get("training"), dict) and isinstance(document["training"].get("report_to"), str):
        document["training"]["report_to"] = [document["training"]["report_to"]]
    own = {"path": path, "home": home()}
    if stated := own.keys() & document.keys():
        raise ProjectError(f"{path}: {sorted(stated)[0]} is not a key of a project file")
    tracking = document.get("tracking_uri") or os.environ.get("MLFLOW_TRACKING_URI")
    try:
        project = _adapter().validate_python(document | own | {"tracking_uri": tracking})
    except ValidationError as error:
        raise ProjectError(_explain(path, error)) from None
    return replace(
        project,
        model=replace(project.model, llm=_beside(path, project.model.llm, "tiny")),
        features=project.features.located(lambda name: _beside(path, name, "bytes")),
    )


def _beside(path: Path, name: str, own: str) -> str:
    """A language model's folder, where it lies relative to the project file; else the name as it is.

    Args:
        own: the name that means ours, whatever folders there are.
    """
    folder = path.parent / name
    return str(folder.resolve()) if name != own and folder.is_dir() else name


@cache
def _adapter() -> TypeAdapter[Project]:
    """Made once: every asset and check of a run reads the file anew."""
    return TypeAdapter(Project)


def _override(document: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise ProjectError(f"--set {override!r}: expected key.path=value, for example training.epochs=3")
    *parents, last = key.split(".")
    section: Any = document
    for name in parents:
        place = _place(section, name, override)
        section = section[place] if isinstance(section, list) else section.setdefault(place, {})
        if not isinstance(section, dict | list):
            raise ProjectError(f"--set {override!r}: {name} holds a value, not a section")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ProjectError(f"--set {override!r}: the value is not valid YAML: {error}") from None
    section[_place(section, last, override)] = parsed


def _place(section: Any, name: str, override: str) -> Any:
    """The key or, in a list, the index that a part of a key path stands for."""
    if not isinstance(section, list):
        return name
    if not name.isdecimal() or int(name) >= len(section):
        expected = f"expected a whole number from 0 and below {len(section)}"
        raise ProjectError(f"--set {override!r}: {name!r} is no place in the list: {expected}")
    return int(name)


def _substitute(value: Any, variables: Mapping[str, Any], path: Path) -> Any:
    if isinstance(value, dict):
        return {k: _substitute(v, variables, path) for k, v in value.items()}
    if isinstance(value, list):
        return [_substitute(v, variables, path) for v in value]
    if not isinstance(value, str):
        return value

    def substitute(match: re.Match[str]) -> str:
        known = variables.get(match[1])
        if known is None:
            raise ProjectError(
                f"{path}: {value!r} needs ${{{match[1]}}}: "
                + ("give it with `--set data=FOLDER`" if match[1] == "data" else "only ${data} is known")
            )
        return str(known)

    return re.sub(r"\$\{(\w+)\}", substitute, value)


def _explain(path: Path, error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        location, message = ".".join(str(part) for part in problem["loc"]), problem["msg"]
        value = problem["input"]
        if problem["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
            message = "is missing"
        elif problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            message = "is not a key that is known here" + _suggestion(problem["loc"])
        elif problem["type"] == "value_error":
            message = str(problem["ctx"]["error"])
        else:
            message = f"is {value!r}: {message[0].lower()}{message[1:]}"
        lines.append(f"{path}: {location + ': ' if location else ''}{message}")
    return "\n".join(lines)


def _suggestion(location: tuple[int | str, ...]) -> str:
    """`; did you mean X?` for a misspelt key, from the fields of the settings class at that place."""
    import dataclasses
    import typing

    kind: Any = Project
    for part in location[:-1]:
        hints = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
        kind = typing.get_args(kind)[0] if isinstance(part, int) else hints.get(str(part))
    if not dataclasses.is_dataclass(kind):
        return ""
    names = [field.name for field in dataclasses.fields(kind)]
    close = difflib.get_close_matches(str(location[-1]), names, 1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(names)}"
