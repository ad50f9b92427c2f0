"""The processes that this code starts: which code and environment they get, and that they end with their parent."""

import ctypes
import os
import re
import signal
import sys
from pathlib import Path

from filelock import FileLock, Timeout

from training.messages import one_line, words_of

CODE = Path(__file__).resolve().parent.parent  # the checkout that holds training, assets and orchestration
PARENT = "TRIPTYCH_PARENT"  # in the environment of a child that is to end with its parent: the parent's process id
_LESS_MEMORY = "lower training.batch_size, or set training.parallel to 1"
_OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory", re.IGNORECASE)


def environment(code: Path | None = None, **more: str) -> dict[str, str]:
    """The environment of a child process: this one's, changed so that the child imports the right code.

    Args:
        code: the only folder that the child imports from beside its Python's packages, such as the code that a model
            was logged with; default: this checkout, then what PYTHONPATH says.
        more: other variables to set.
    """
    path = [str(code.resolve())] if code else [str(CODE), *filter(None, [os.environ.get("PYTHONPATH")])]
    changed = {
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONSAFEPATH": "1",  # no package of the working directory comes before ours of the same name
        "TOKENIZERS_PARALLELISM": "false",  # else tokenizers warn of each process that is forked
        # Threads that wait spin by default, which on a busy machine slows a small model down several times.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
    }
    return os.environ | more | changed


def die_with_parent(parent: int) -> None:
    """Asks the kernel to kill this process when its parent process is gone (Linux; elsewhere nothing)."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it died before the call
        os._exit(1)


def how_ended(code: int) -> str:
    """What an exit code says of a process that trained, for a person.

    Args:
        code: as `subprocess` gives it, below 0 for a signal, or as a shell does, above 128.
    """
    number = -code if code < 0 else code - 128
    if number not in set(signal.Signals):
        return f"ended with exit code {code}, and said nothing"
    words = f"was killed by signal {number} ({signal.Signals(number).name})"
    return f"{words}: most likely out of memory; {_LESS_MEMORY}" if number == signal.SIGKILL else words


def last_words(error: Exception) -> str:
    """Why a training failed, in one line for a person."""
    words = one_line(words_of(error))
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)):  # torch has another class for each device
        return f"out of memory: {_LESS_MEMORY} ({words})"
    return words


def is_free(lock: Path) -> bool:
    """Whether no living process holds this lock file."""
    try:
        with FileLock(lock, timeout=0):
            return True
    except Timeout:
        return False
