"""What went wrong, for a person: faults of the machine by name and with what to do, others in their own words."""

import re
import traceback
from pathlib import Path

from training.credentials import mask
from training.messages import words_of

_FULL = re.compile(
    "no space left on device|database or disk is full|disk i/o error|quota exceeded|file too large", re.IGNORECASE
)
_UNWRITABLE = re.compile("read-only file system|readonly database|unable to open database file", re.IGNORECASE)


def words(error: Exception, home: Path) -> str:
    """Without secrets; a line for each problem.

    What a person can mend is said in the error's own words; of others the class, and where there are none the place.

    Args:
        home: TRIPTYCH_HOME.
    """
    said = str(error).strip()
    if advice := _advice(error, home):
        return mask(f"{_first_line(said)}: {advice}")
    told = words_of(error)
    if told == said:
        return mask(said)
    if not said:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        told += f": in {Path(frame.filename).name} line {frame.lineno} ({frame.name})"
    return mask(f"{told} (triptych --debug shows more)")


def _advice(error: Exception, home: Path) -> str | None:
    said = str(error)
    if _FULL.search(said):
        return f"the disk is full, or fails: make room (all state lies under {home}), then the same command goes on"
    within = isinstance(error, PermissionError) and Path(str(error.filename)).is_relative_to(home)
    if within or _UNWRITABLE.search(said):
        return f"{home} or a file in it cannot be written: make it writable, or set TRIPTYCH_HOME to another folder"
    return None


def _first_line(said: str) -> str:
    """Without what SQLAlchemy says of its classes, the statement and its web page."""
    return re.sub(r"^\(\w+(\.\w+)*\) ", "", said.splitlines()[0])
