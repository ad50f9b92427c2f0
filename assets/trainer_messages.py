"""What the trainer reports while it works, read from a file that it appends to."""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import dagster as dg
from dagster_pipes import PipesDefaultMessageWriter

_POLL_SECONDS = 0.02


class WholeLineMessageReader(dg.PipesMessageReader):
    """As PipesTempFileMessageReader, which takes half a line for a message where it reads while the line is written:
    a file grows by pages."""

    @contextmanager
    def read_messages(self, handler: dg.PipesMessageHandler) -> Iterator[dict[str, Any]]:
        ended = Event()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "messages"
            path.touch()
            thread = Thread(target=_read, args=(path, handler, ended), daemon=True)
            thread.start()
            try:
                yield {PipesDefaultMessageWriter.FILE_PATH_KEY: str(path)}
            finally:
                ended.set()
                thread.join()

    def no_messages_debug_text(self) -> str:
        return "Attempted to read messages from a local temporary file."


def _read(path: Path, handler: dg.PipesMessageHandler, ended: Event) -> None:
    try:
        for line in whole_lines(path, ended.wait):
            handler.handle_message(json.loads(line))
    except Exception:  # it would go unseen in a thread
        handler.report_pipes_framework_exception("reader of the trainer's messages", sys.exc_info())
        raise


def whole_lines(path: Path, ended: Callable[[float], bool]) -> Iterator[str]:
    """The lines of a file that grows, each when it is whole; what a killed writer left of its last one is no line.

    Args:
        ended: waits for so many seconds, or until nothing more will be written, and says whether that is so.
    """
    begun = b""
    with path.open("rb") as file:
        is_last = False
        while True:
            *lines, begun = (begun + file.read()).split(b"\n")
            yield from (line.decode() for line in lines)
            if is_last:
                return
            is_last = ended(_POLL_SECONDS)
