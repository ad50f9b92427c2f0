"""Steps that would make what they made are not run again: what a step read when it last ran, and what it said then.

A cache under TRIPTYCH_HOME. Where it is lost, or anything is not as it was, the step runs; what it then makes is
written only where it differs from what is there.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import assets
import training
from assets.lake import Lake
from assets.settings import Project
from assets.sources.base import Entry
from training import personal_data
from training.family import code_of
from training.files import write_text
from training.schema import fingerprint

_LIBRARIES = ("duckdb", "pyarrow", "deltalake", "openpyxl")
_NOT_OF_DATA = {"training", "promotion", "engine", "launcher", "owners", "schedule", "watch", "memory"}
_NOT_OF_DATA |= {"tracking_uri", "artifacts", "storage_options", "partitions"}
_OWN_KIND = re.compile(r"'[A-Za-z_][\w.]*:[A-Za-z_]\w*'")  # in the words of settings


def recall(project: Project, step: str, inputs: Any) -> Any:
    """What the step said when it last read these inputs; null where it read others, or they are null."""
    try:
        stored = json.loads(_path(project, step).read_text())
    except (OSError, ValueError):
        return None
    return stored["said"] if inputs is not None and stored["inputs"] == fingerprint(inputs) else None


def remember(project: Project, step: str, inputs: Any, said: Any) -> None:
    """Keeps what the step said (plain JSON-able values), if there are inputs."""
    if inputs is not None:
        write_text(_path(project, step), json.dumps({"inputs": fingerprint(inputs), "said": said}))


def _path(project: Project, step: str) -> Path:
    return project.folder / "unchanged" / f"{step}.json"


def versions(lake: Lake, names: Iterable[str]) -> dict[str, str | None]:
    """Which table, and which version of it, each name stands for; a copy of a lake has the ids of the original."""
    tables = {name: lake.stored(name) for name in names}
    return {name: None if table is None else f"{lake.uri} {table.id} {table.version}" for name, table in tables.items()}


def code() -> list[str]:
    """What is another where this code is."""
    folders = [Path(file).parent for package in (assets, training) if (file := package.__file__)]
    return [*map(code_of, folders), *map(version, _LIBRARIES), *personal_data.identity().values()]


def project_words(project: Project) -> str | None:
    """`settings_words` of all that the data side may read of a project."""
    names = (field.name for field in fields(project) if field.name not in _NOT_OF_DATA)
    return settings_words(*(getattr(project, name) for name in names))


def settings_words(*settings: Any) -> str | None:
    """What is another where the settings are; null where they name a user's own kind, of which nobody knows what it
    reads."""
    words = repr(settings)
    return None if _OWN_KIND.search(words) else words


def state(files: Iterable[Entry] | None) -> list[Any] | None:
    """What is other where a file is; null where only reading the files tells that, since one is too fresh, say."""
    if files is None:
        return None
    facts = [(f.uri, f.size, f.mtime, f.etag, str(f.version), f.reason) for f in files]
    is_known = all(reason is None and (mtime, etag) != (None, None) for _, _, mtime, etag, _, reason in facts)
    return sorted(facts, key=lambda fact: fact[0]) if is_known else None
