"""Folders for what queries cannot hold in memory: one for each process, known as in use as long as that lives."""

import contextlib
import functools
import shutil
import uuid
from pathlib import Path

from filelock import FileLock, Timeout

_NEW, _LOCK = ".new", "lock"


def own_folder(process: int, spill: str) -> str:
    """The folder of this process below `spill`."""
    return str(_locked(process, spill)[0])


@functools.lru_cache(64)  # each holds a file open
def _locked(process: int, spill: str) -> tuple[Path, FileLock]:
    """Args: `process`, since a forked one must not use its parent's."""
    folder = Path(spill) / uuid.uuid4().hex
    new = folder.with_suffix(_NEW)
    new.mkdir(parents=True)
    lock = FileLock(new / _LOCK, thread_local=False)
    lock.acquire()
    new.rename(folder)  # never seen unlocked while the process lives
    return folder, lock


def remove_left(spill: Path) -> None:
    """Removes what processes that are gone have left: DuckDB does so itself unless it is killed."""
    for folder in spill.glob("*"):
        if folder.suffix != _NEW:
            with contextlib.suppress(Timeout), FileLock(folder / _LOCK, timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
