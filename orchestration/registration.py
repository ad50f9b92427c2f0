"""Which projects this TRIPTYCH_HOME knows: a name and the file that says the rest, one small file a project."""

import json
import logging
from pathlib import Path

import yaml

from assets.settings import Project
from training.files import write_text


def register(project: Project) -> None:
    """Makes the web UI and the schedule see the project. A name goes along when its project's folder is moved.

    Raises:
        ValueError: another project file has the name; both would write the same tables and models.
    """
    other = registered(project.home).get(project.name)
    if other is not None and other != project.path and _is_named(other, project.name):
        raise ValueError(
            f"{project.path}: the name {project.name!r} belongs to {other}, and two projects of one name would share "
            f"tables and models: change `name` in one of the two files, or remove {other}"
        )
    write_text(project.folder / "registered.json", json.dumps({"file": str(project.path)}))


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
            projects[entry.parent.name] = Path(json.loads(entry.read_text(encoding="utf-8"))["file"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            message = "%s is damaged (%s): remove it, or run its project again"
            logging.getLogger("triptych").warning(message, entry, error)
    return projects
