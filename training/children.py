"""The processes that this code starts: which code and environment they get, and that they end with their parent."""

import ctypes
import os
import signal
import sys
from pathlib import Path

from filelock import FileLock, Timeout

CODE = Path(__file__).resolve().parent.parent  # the checkout that holds training, assets and orchestration
PARENT = "TRIPTYCH_PARENT"  # in the environment of a child that is to end with its parent: the parent's process id


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


def is_free(lock: Path) -> bool:
    """Whether no living process holds this lock file."""
    try:
        with FileLock(lock, timeout=0):
            return True
    except Timeout:
        return False
