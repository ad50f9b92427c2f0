"""Which projects this TRIPTYCH_HOME knows: a name and the file that says the rest, one small file a project."""

import json
import logging
import os
from pathlib import Path

from assets.settings import Project


def register(project: Project) -> None:
    """Makes the web UI and the schedule see the project; a name can be moved to another file."""
    entry = project.folder / "registered.json"
    entry.parent.mkdir(parents=True, exist_ok=True)
    temporary = entry.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps({"file": str(project.path)}))
    temporary.replace(entry)


def registered(home: Path) -> dict[str, Path]:
    """Project names and their files, by name; a damaged entry is left out with a warning."""
    found = {}
    for entry in sorted((home / "projects").glob("*/registered.json")):
        try:
            found[entry.parent.name] = Path(json.loads(entry.read_text(encoding="utf-8"))["file"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            message = "%s is damaged (%s): remove it, or run its project again"
            logging.getLogger("triptych").warning(message, entry, error)
    return found
