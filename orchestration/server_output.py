"""What servers print, passed on line by line without the passwords that are in it."""

import contextlib
import os
import pty
import sys
import termios
import threading
from collections.abc import Iterator
from typing import TextIO

from training.credentials import mask

_END_SECONDS = 5  # for the last lines of a server that has ended
_writing = threading.Lock()  # a line is never within another


class MaskedOutput:
    """Ends of pipes for the stdout and stderr of a process, whose lines come out of this process's own, masked.

    Where those are terminals, so are the ends: what is coloured there stays so. A line is passed on when it is whole,
    for a password may be in any part of it; the process never waits for more than that.
    """

    def __init__(self) -> None:
        self._ends: list[int] = []
        self._threads: list[threading.Thread] = []

    def open(self) -> tuple[int, int]:
        """Stdout and stderr of the process to start."""
        for stream in (sys.stdout, sys.stderr):
            ours, theirs = _terminal(stream) if stream.isatty() else os.pipe()
            self._ends.append(theirs)
            self._threads.append(threading.Thread(target=_pass_on, args=(ours, stream.fileno()), daemon=True))
            self._threads[-1].start()
        return self._ends[0], self._ends[1]

    def started(self) -> None:
        """The process has the ends: they close with it."""
        for end in self._ends:
            os.close(end)
        self._ends.clear()

    def wait(self) -> None:
        """For the last lines of a process that has ended."""
        for thread in self._threads:
            thread.join(_END_SECONDS)


def _terminal(stream: TextIO) -> tuple[int, int]:
    """Both ends of a terminal as wide as the one that the stream leads to; line ends go through as they are."""
    ours, theirs = pty.openpty()
    settings = termios.tcgetattr(theirs)
    settings[1] &= ~termios.OPOST
    termios.tcsetattr(theirs, termios.TCSANOW, settings)
    termios.tcsetwinsize(theirs, termios.tcgetwinsize(stream.fileno()))
    return ours, theirs


def _pass_on(end: int, to: int) -> None:
    with open(end, encoding="utf-8", errors="surrogateescape", newline="") as file:
        for line in _lines(file):
            with _writing, contextlib.suppress(OSError):  # nobody reads any more: the process shall go on all the same
                data = mask(line).encode("utf-8", "surrogateescape")
                while data:
                    data = data[os.write(to, data) :]


def _lines(file: TextIO) -> Iterator[str]:
    with contextlib.suppress(OSError):  # how a terminal ends whose other side is closed
        yield from file
