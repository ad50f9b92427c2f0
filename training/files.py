"""Small files written whole: who reads one sees the old content or the new, never half of it, whatever ends the writer.

Not for a file that is locked: the lock would stay with the old one.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock


def write_text(path: Path, text: str) -> None:
    """Puts the text (UTF-8) in the place of the file; its folder is made at need."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Puts the bytes in the place of the file; its folder is made at need."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def first_use(folder: Path) -> Iterator[None]:
    """Only one process at a time is within: who makes shared state of the folder that may not be there yet.

    The kernel frees the lock when its holder ends, whatever ends it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "first_use.lock"):
        yield
