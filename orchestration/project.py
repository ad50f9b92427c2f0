"""The project file: one YAML file read, checked and composed into `assets.settings.Project` before anything runs."""

import dataclasses
import difflib
import importlib.util
import io
import os
import re
import sys
import typing
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from assets.settings import Project
from training.catalog import FILTERS, PRETRAINED_ENCODERS
from training.credentials import has_password, is_signed, mask, to_environment
from training.family import Choice, is_own
from training.settings import TINY
from training.settings import located as located_training
from training.tuning_settings import TuningSettings

_MOST_VALUES = 100_000  # of one project file, each alias (*name) counted as all that it stands for
_MOST_CHARACTERS = 1_000_000  # that the references of one project file may bring in
_MOST_LEVELS = 100  # of sections in sections; the YAML parser, written in C, ends the process where there are too many
# yes, no, on and off are truth values there, 010 is eight, and 12:30 is 750.
_WORDS = re.compile(r"yes|no|on|off|[-+]?0[0-9_]+|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?", re.IGNORECASE)
_REPLACED = {"model.freeze_llm": "`llm: {model: NAME_OR_FOLDER, train: frozen}`"}  # keys of older files
_tried: dict[Path, Any] = {}  # file -> its document when what it is to try was tried out: it is read again and again
_REFERENCE = re.compile(r"\$\{([\w.-]+)\}")


class ProjectError(ValueError):
    """The project file cannot be used; the message names the file, the key path, the value and what was expected."""


def home() -> Path:
    """The folder that holds all state: TRIPTYCH_HOME, or .triptych here."""
    return Path(os.environ.get("TRIPTYCH_HOME") or ".triptych").resolve()


def tracking_uri() -> str | None:
    """What MLFLOW_TRACKING_URI says, without a password: that is in variables of its own from now on.

    Raises:
        ProjectError: the password cannot be taken out.
    """
    if not (uri := os.environ.get("MLFLOW_TRACKING_URI")):
        return None
    try:
        os.environ["MLFLOW_TRACKING_URI"] = to_environment(uri)
    except ValueError as error:
        raise ProjectError(f"MLFLOW_TRACKING_URI: {error}") from None
    return os.environ["MLFLOW_TRACKING_URI"]


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
    document = _read(path)
    for override in overrides:
        _override(document, override)
    document = _resolve(document, path)
    for key, value in _values(document):
        if isinstance(value, str) and (has_password(value) or is_signed(value)):
            raise ProjectError(
                f"{path}: {key} is {mask(value)}: a password is not for this file, which is shared, and logged; "
                f"give it in the environment ({_variable(key, value)})"
            )
    origin = {"path": path, "home": home()}
    if stated := origin.keys() & document.keys():
        raise ProjectError(f"{path}: {sorted(stated)[0]} is not a key of a project file")
    if kinds := set(_own_kinds(document)):
        _make_importable(kinds, path)
    tracking = document.get("tracking_uri") or tracking_uri()
    try:
        project = _adapter().validate_python(document | origin | {"tracking_uri": tracking})
    except ValidationError as error:
        raise ProjectError(_explain(path, error)) from None
    llm = project.model.llm
    located = dataclasses.replace(
        project,
        model=dataclasses.replace(
            project.model,
            llm=dataclasses.replace(llm, model=_beside(path, llm.model, TINY)),
            encoders={m: _encoder_beside(path, encoder) for m, encoder in project.model.encoders.items()},
        ),
        tuning=project.tuning and _tuning_beside(path, project.tuning),
        features=project.features.located(lambda name: _beside(path, name, "bytes")),
        training=located_training(project.training, lambda name: _beside(path, name, "")),
        filters={name: [_filter_beside(path, name, one) for one in listed] for name, listed in project.filters.items()},
        sources=tuple(source.located(lambda name: _beside(path, name, "")) for source in project.sources),
    )
    if located.tuning is not None and _tried.get(path) != document:
        try:
            located.try_tuning()
        except ValueError as error:
            raise ProjectError(f"{path}: {error}") from None
        _tried[path] = document
    return located


def _variable(key: str, uri: str) -> str:
    """Where the password belongs."""
    if key == "tracking_uri":
        return "MLFLOW_TRACKING_URI"
    if key.startswith("sources.") and key.endswith(".url"):
        return "`url: {env: NAME}` reads the variable NAME"
    scheme = uri.partition("://")[0].upper()
    if scheme in ("HTTP", "HTTPS"):
        return "~/.netrc, or the file of NETRC; signed URLs may stand in a table"
    return "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY" if scheme in ("S3", "S3A") else f"FSSPEC_{scheme}_PASSWORD"


def _own_kinds(document: Any) -> Iterator[str]:
    """What may be users' own kinds: module:Class."""
    return (value for _, value in _values(document) if isinstance(value, str) and is_own(value))


def _make_importable(kinds: Iterable[str], path: Path) -> None:
    """Modules beside the project file can be imported; they come last, so that nothing of a project hides a package.

    Raises:
        ProjectError: this process means another module by that name, such as one of another project.
    """
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    for kind in kinds:
        module = kind.partition(":")[0].partition(".")[0]
        beside = [path.parent / f"{module}.py", path.parent / module / "__init__.py"]
        spec = importlib.util.find_spec(module) if any(file.is_file() for file in beside) else None
        if spec is not None and spec.origin is not None and Path(spec.origin).resolve() not in beside:
            raise ProjectError(
                f"{path}: {kind} would be taken from {spec.origin}, not from the {module} beside this file: Python has "
                "one module of a name, so give this one another name"
            )


def _read(path: Path) -> dict[Any, Any]:
    """The sections as the file has them. Aliases are bounded, since a few lines of them can stand for a billion values;
    a key that stands twice is an error."""
    try:
        text = path.read_text(encoding="utf-8")
        text = _read_words(text)
        document = OmegaConf.to_container(OmegaConf.load(io.StringIO(text), max_yaml_expanded_nodes=_MOST_VALUES))
    except FileNotFoundError:
        raise ProjectError(f"{path}: no such project file; `triptych init DIR` writes one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ProjectError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ProjectError(f"{path}: not valid YAML: {_yaml_words(error)}") from None
    except OmegaConfBaseException as error:
        raise ProjectError(f"{path}: {getattr(error, 'full_key', '')}: {_first_line(error)}") from None
    if not isinstance(document, dict):
        raise ProjectError(f"{path}: expected sections such as name and sources, found {type(document).__name__}")
    return document


def _read_words(text: str) -> str:
    """The text with quotes around what YAML 1.1 takes for something else than YAML 1.2 and a person do (_WORDS).

    A field that wants a truth value or a number reads the word as one. Raises YAMLError where sections go too deep.
    """
    level, words = 0, []
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        level += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if level > _MOST_LEVELS:
            line = event.start_mark.line + 1 if event.start_mark else "?"
            raise yaml.YAMLError(f"line {line}: more than {_MOST_LEVELS} sections in sections")
        if isinstance(event, yaml.ScalarEvent) and event.implicit[0] and _WORDS.fullmatch(event.value):
            assert event.start_mark and event.end_mark
            words.append((event.start_mark.index, event.end_mark.index))
    for start, end in reversed(words):
        text = f"{text[:start]}'{text[start:end]}'{text[end:]}"
    return text


def _yaml_words(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and re.match("YAML (node|aliases) expan", error.problem or ""):
        return "its aliases (*name) stand for far more values than a project file has: write out what is needed"
    return str(error)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _beside(path: Path, name: str, ours: str) -> str:
    """A model's folder, or a file, where it lies relative to the project file; else the name as it is.

    Args:
        ours: the name that means a part of this project, whatever folders there are.
    """
    place = path.parent / name
    return str(place.resolve()) if name != ours and place.exists() else name


def _filter_beside(path: Path, name: str, choice: Choice) -> Choice:
    """With its model found beside the project file, where it names one."""
    located = FILTERS.load(choice.kind, name).located
    options = {n: _beside(path, v, "") if n in located else v for n, v in choice.options.items()}
    return Choice(choice.kind, options)


def _encoder_beside(path: Path, encoder: Choice) -> Choice:
    """A pretrained encoder with its model's folder or file, as `_beside`."""
    if encoder.kind not in PRETRAINED_ENCODERS:
        return encoder
    named = {n: _beside(path, value, "") for n, value in encoder.options.items() if n in ("model", "weights") and value}
    return Choice(encoder.kind, {**encoder.options, **named})


def _tuning_beside(path: Path, tuning: TuningSettings) -> TuningSettings:
    """The models that are to be tried with their folders or files, as `_beside`."""

    def located(value: Any) -> Any:
        if isinstance(value, dict):
            return {n: _beside(path, v, TINY) if n in ("model", "weights") and v else v for n, v in value.items()}
        return _beside(path, value, TINY) if isinstance(value, str) else value

    names = {key for key in tuning.space if key.startswith(("model.llm", "model.encoders"))}
    listed = {key: values for key, values in tuning.space.items() if key in names and isinstance(values, tuple)}
    found = {key: tuple(map(located, values)) for key, values in listed.items()}
    return dataclasses.replace(tuning, space={**tuning.space, **found})


@cache
def _adapter() -> TypeAdapter[Project]:
    """Made once: every asset and check of a run reads the file anew."""
    return TypeAdapter(Project)


def _override(document: dict[Any, Any], override: str) -> None:
    """Puts the value of `key.path=value` into the document. OmegaConf reads the value, as it does those of the file;
    its own `update` would put a section in the place of a value, and count list indices from the end."""
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise ProjectError(f"--set {override!r}: expected key.path=value, for example training.epochs=3")
    *parents, last = key.split(".")
    section: Any = document
    for name in parents:
        index = _index(section, name, override)
        section = section[index] if isinstance(section, list) else section.setdefault(index, {})
        if not isinstance(section, dict | list):
            raise ProjectError(f"--set {override!r}: {name} holds a value, not a section")
    try:
        parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={_read_words(value)}"]))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ProjectError(f"--set {override!r}: the value is not valid YAML: {error}") from None
    assert isinstance(parsed, dict)
    section[_index(section, last, override)] = parsed["value"]


def _index(section: Any, name: str, override: str) -> Any:
    """The key or, in a list, the number that a part of a key path stands for."""
    if not isinstance(section, list):
        return name
    if not name.isdecimal() or int(name) >= len(section):
        expected = f"expected a whole number from 0 and below {len(section)}"
        raise ProjectError(f"--set {override!r}: {name!r} is no place in the list: {expected}")
    return int(name)


def _resolve(document: dict[Any, Any], path: Path) -> dict[Any, Any]:
    """The document with the values that its references (`${data}`, `${model.width}`) stand for.

    OmegaConf knows more of them, such as `${oc.env:HOME}`: what is read from the environment would stand in tables and
    in MLflow for all to see, and references to references can stand for a billion characters. So only plain ones go on.
    """
    values = dict(_values(document))
    characters = 0
    for key, value in values.items():
        if not isinstance(value, str) or "${" not in value:
            continue
        for name in _REFERENCE.findall(value):
            _check_reference(path, value, name, values.get(name))
            characters += len(str(values[name]))
        if "${" in _REFERENCE.sub("", value):
            raise ProjectError(
                f"{path}: {key} is {value!r}: only ${{data}} and references to other keys, such as ${{model.width}}, "
                "are known; nothing is read from the environment, where secrets are"
            )
    if characters > _MOST_CHARACTERS:
        raise ProjectError(f"{path}: its references ${{...}} stand for {characters:,} characters: write less")
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(document), resolve=True)
    except OmegaConfBaseException as error:
        raise ProjectError(f"{path}: {getattr(error, 'full_key', '')}: {_first_line(error)}") from None
    assert isinstance(resolved, dict)
    return resolved


def _check_reference(path: Path, value: str, name: str, meant: Any) -> None:
    if meant is None:
        raise ProjectError(
            f"{path}: {value!r} needs ${{{name}}}: "
            + (
                "give it with `triptych run --set data=FOLDER`, or as `data: FOLDER` in the file"
                if name == "data"
                else "only ${data} and keys of this file that hold one value, such as ${model.width}, are known"
            )
        )
    if "${" in str(meant):
        raise ProjectError(
            f"{path}: {value!r} needs ${{{name}}}, which is a reference too: write it out in one of them"
        )


def _values(section: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Key paths and what they hold, without sections and lists."""
    if isinstance(section, dict | list):
        for name, value in section.items() if isinstance(section, dict) else enumerate(section):
            yield from _values(value, f"{above}.{name}" if above else str(name))
    else:
        yield above, section


def _explain(path: Path, error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        location, message = ".".join(str(part) for part in problem["loc"]), problem["msg"]
        value = problem["input"]
        if problem["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
            message = "is missing"
        elif problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            now = _REPLACED.get(location)
            message = (
                f"is gone: write {now}" if now else "is not a key that is known here" + _suggestion(problem["loc"])
            )
        elif problem["type"] == "value_error":
            message = str(problem["ctx"]["error"])
        else:
            message = f"is {value!r}: {message[0].lower()}{message[1:]}"
        lines.append(f"{path}: {location + ': ' if location else ''}{message}")
    return "\n".join(lines)


def _suggestion(location: tuple[int | str, ...]) -> str:
    """`; did you mean X?` for a misspelt key, from the fields of the settings class at that place."""
    kind: Any = Project
    for part in location[:-1]:
        hints = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
        kind = typing.get_args(kind)[0] if isinstance(part, int) else hints.get(str(part))
    if not dataclasses.is_dataclass(kind):
        return ""
    names = [field.name for field in dataclasses.fields(kind)]
    close = difflib.get_close_matches(str(location[-1]), names, 1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(names)}"
