"""Ctrl-C and SIGTERM: both interrupt a command, and it says which of them came."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
_came: list[int] = []  # numbers of those that came, and were read
_noted: list[int] = []  # the end of a pipe that Python writes their numbers to


class Stopped(KeyboardInterrupt):
    """A person, or the machine, wants this to end; the message says what was left how."""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within, SIGTERM raises KeyboardInterrupt as Ctrl-C does, and `came` knows of both.

    Handlers would not do: Dagster has its own while a step runs. Signals reach the main thread only.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reads, writes = os.pipe()
    for end in (reads, writes):
        os.set_blocking(end, False)
    _came.clear()
    _noted[:] = [reads]
    woken = signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
    handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        came()
        signal.signal(signal.SIGTERM, handler)
        signal.set_wakeup_fd(woken)
        _noted.clear()
        os.close(reads)
        os.close(writes)


def came() -> int | None:
    """The first of SIGINT and SIGTERM that came since `interruptible` began, whoever took it; None where none did."""
    for end in _noted:
        with contextlib.suppress(BlockingIOError):
            _came.extend(number for number in os.read(end, 4096) if number in NAMES)
    return _came[0] if _came else None
