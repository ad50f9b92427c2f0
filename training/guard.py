"""Runs a command and ends all that it started when the process that asked for it is gone, whatever ended that.

    python -P training/guard.py PARENT COMMAND...

PARENT is the process id of the one that asks: a third process has to watch it, since nobody acts after its own kill -9.
The file is run as it is, not as a module: the command's environment may lead to other code, such as a model's own.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

_LOOK_SECONDS = 0.2  # between two looks whether the parent is there
_LINUX = sys.platform == "linux"
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def guarded(command: Sequence[str]) -> list[str]:
    """The command to start instead, so that neither it nor anything that it starts outlives this process."""
    return [sys.executable, "-P", __file__, str(os.getpid()), *command]


def end_family(process: int) -> None:
    """Kills all descendants of a process, also those in sessions of their own."""
    import psutil

    try:
        while family := [child for child in psutil.Process(process).children(recursive=True) if _is_alive(child)]:
            for child in family:
                child.kill()
            psutil.wait_procs(family, timeout=0.1)
    except psutil.NoSuchProcess:  # it or one of them ended meanwhile
        if psutil.pid_exists(process):
            end_family(process)


def _is_alive(child: Any) -> bool:
    return bool(child.status() != "zombie")


def main() -> int:
    """Returns the command's exit code; 128 and the number where a signal ended it."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    woken, wakes = os.pipe()
    for end in (woken, wakes):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    # Ctrl-C and SIGTERM reach the whole process group: the command ends, and then this does.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda _number, _frame: None)  # a handler is not inherited, as SIG_IGN is
    if _LINUX:  # who loses its parent becomes our child
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    child = subprocess.Popen(command, preexec_fn=_die_with_parent if _LINUX else None)
    code, more = None, True
    while code is None and os.getppid() == parent:
        select.select([woken], [], [], _LOOK_SECONDS)
        with contextlib.suppress(BlockingIOError):
            os.read(woken, 4096)
        code, more = _take_leave(child.pid)
    if more:
        end_family(os.getpid())
    if code is None:
        return 1
    return code if code >= 0 else 128 - code


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _take_leave(command: int) -> tuple[int | None, bool]:
    """Of all children that have ended: the exit code of the command, if it is among them, and whether any is left."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code, False
        if pid == 0:
            return code, True
        if pid == command:
            code = os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    os._exit(main())
