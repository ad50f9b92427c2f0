"""Which projects this TRIPTYCH_HOME knows: a name and the file that says the rest, one small file a project."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import yaml

from assets.settings import Project
from training.files import first_use, write_text


def register(project: Project) -> None:
    """Makes the web UI and the schedule see the project. A name goes along when its project's folder is moved.

    Raises:
        ValueError: another project file has the name; both would write the same tables and models.
    """
    with first_use(project.home):  # of two files with the name that come at once, one is refused
        other = registered(project.home).get(project.name)
        if other is not None and other != project.path and _is_named(other, project.name):
            raise ValueError(
                f"{project.path}: the name {project.name!r} belongs to {other}, and two projects of one name would "
                f"share tables and models: change `name` in one of the two files, or remove {other}"
            )
        write_text(project.folder / "registered.json", _entry(project))


def _entry(project: Project) -> str:
    """With the way from the state to the file, too: it stays the same where both are moved or copied together."""
    return json.dumps({"file": str(project.path), "from_home": os.path.relpath(project.path, project.home)})


def _file(home: Path, entry: Mapping[str, str]) -> Path:
    beside = Path(os.path.normpath(home / entry["from_home"])) if "from_home" in entry else None
    return beside if beside is not None and beside.exists() else Path(entry["file"])


def _is_named(path: Path, name: str) -> bool:
    """Whether a project file is there and has the name, or is too damaged to say."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return True
    return isinstance(document, dict) and document.get("name") == name


def registered(home: Path) -> dict[str, Path]:
    """Project names and their files, by name; a damaged entry is left out with a warning."""
    projects = {}
    for entry in sorted((home / "projects").glob("*/registered.json")):
        try:
            projects[entry.parent.name] = _file(home, json.loads(entry.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, KeyError) as error:
            message = "%s is damaged (%s): remove it, or run its project again"
            logging.getLogger("triptych").warning(message, entry, error)
    return projects
