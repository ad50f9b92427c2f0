"""Decodes in child processes that a file may crash, hang or fill: it is refused then, and the run goes on.

    python -P -m assets.decoder SOCKET      # what the parent starts

A child has as much memory and processor time for a content as `MediaLimits` says, and is used again and again. Its
parent's thread waits without Python's lock, so threads decode side by side.
"""

import atexit
import contextlib
import os
import pickle
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from training.children import CODE, environment
from training.media import MediaError, out_of_memory
from training.modalities.base import Modality
from training.settings import MediaLimits

_AT_ONCE = 2**20  # bytes of files that a child gets together, so that small ones do not each wait for an answer
_BUFFER = 2**18
_WAITING = 20  # times the processor time: so long may decoding take on a busy machine
_OWN_LIMITS = (signal.SIGPROF, signal.SIGALRM)
_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE, signal.SIGSYS)  # of its own


class Ended(NamedTuple):
    """In the place of an answer: the child is gone."""

    code: int  # as `subprocess` has it: below 0 the signal


def decode_each(
    modality: Modality, files: Iterable[tuple[bytes, int | None]], limits: MediaLimits
) -> Iterator[Any | Exception]:
    """`Modality.decode` of each file, in order, in a child process; of texts here.

    Args:
        files: the bytes, and `size`; few are drawn ahead.

    Yields:
        The content, or the exception that it raised. A MediaError, too, is `too_slow`, or `crashed`, or `killed`, where
        somebody else may have ended the child. Where a child exits (it does not start, say) it is a RuntimeError.
    """
    for portion in _portions(files):
        if modality.as_string:  # decoded in Python itself
            yield from (_decoded(modality, data, size, limits) for data, size in portion)
            continue
        alone = False
        while portion:
            with _taken() as child:
                for answer in child.answers(modality, portion[:1] if alone else portion, limits):
                    if isinstance(answer, Ended):
                        in_time = -answer.code not in _OWN_LIMITS
                        if not alone and (in_time or len(portion) > 1):
                            alone = True  # which file it was shows when each has a child for itself
                            break
                        alone, answer = False, _words(answer.code, limits)
                    portion = portion[1:]
                    yield answer


def _portions(files: Iterable[tuple[bytes, int | None]]) -> Iterator[list[tuple[bytes, int | None]]]:
    portion: list[tuple[bytes, int | None]] = []
    total = 0
    for file in files:
        if portion and total + len(file[0]) > _AT_ONCE:
            yield portion
            portion, total = [], 0
        portion.append(file)
        total += len(file[0])
    if portion:
        yield portion


def _words(code: int, limits: MediaLimits) -> MediaError | RuntimeError:
    if code >= 0:  # no fault of the file, as far as one knows: it must not be refused for good
        return RuntimeError(f"the process that decodes ended with exit code {code}: its output, above, says why")
    if -code in _OWN_LIMITS:
        said = f"decoding takes more than {limits.max_decode_seconds:g} s"
        advice = "raise limits.max_decode_seconds, or export the file again"
        return MediaError("too_slow", f"{said}: {advice}", "max_decode_seconds")
    how = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    if -code in _CRASHES:
        return MediaError("crashed", f"the decoder crashed on it ({how}): export or download it again")
    most_likely = ": most likely the machine is out of memory" if code == -signal.SIGKILL else ""
    return MediaError("killed", f"the process that decoded it was killed ({how}){most_likely}")


_idle: list["_Child"] = []
_lock = threading.Lock()


@atexit.register
def _end_idle() -> None:
    """They would end by themselves, a moment after this process."""
    for child in _idle:
        if child.owner == os.getpid():
            child.end()


@contextlib.contextmanager
def _taken() -> Iterator["_Child"]:
    """A child that nobody else uses meanwhile; it is kept for others, if all its answers were taken."""
    child = None
    with _lock:
        while _idle and child is None:
            one = _idle.pop()
            child = one if one.owner == os.getpid() else None  # else a copy, in a process that was forked
    child = child or _Child()
    try:
        yield child
    finally:
        if child.is_waiting:
            with _lock:
                _idle.append(child)
        else:
            child.end()


class _Child:
    def __init__(self) -> None:
        self.owner, self.is_waiting = os.getpid(), True
        ours, theirs = socket.socketpair()
        with theirs:
            number = theirs.fileno()
            command = [sys.executable, "-P", "-m", "assets.decoder", str(number)]
            env = environment(None, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
            self._process = subprocess.Popen(command, env=env, cwd=CODE, pass_fds=[number], stdin=subprocess.DEVNULL)
        self._socket, self._file = ours, ours.makefile("rwb", _BUFFER)

    def answers(
        self, modality: Modality, portion: list[tuple[bytes, int | None]], limits: MediaLimits
    ) -> Iterator[Any | Exception | Ended]:
        """To each file; `Ended` is the last one."""
        self.is_waiting = False
        try:
            _send(self._file, sys.path)  # which users' own kinds may have changed
            _send(self._file, (modality, limits, [(len(data), size) for data, size in portion]))
            for data, _ in portion:
                self._file.write(data)
            self._file.flush()
            for number in range(len(portion)):
                answer = _receive(self._file)
                self.is_waiting = number == len(portion) - 1
                yield answer
        except (EOFError, ConnectionError):
            yield Ended(self._process.wait())

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(OSError):  # what it has not read any more
            self._file.close()
        self._socket.close()


def _send(file: Any, value: Any) -> None:
    """Large arrays are not copied."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, 5, buffer_callback=buffers.append)
    raw = [buffer.raw() for buffer in buffers]
    sizes = [part.nbytes for part in raw]
    file.write(struct.pack(f"<{2 + len(raw)}Q", len(head), len(raw), *sizes))
    for part in (head, *raw):
        file.write(part)


def _receive(file: Any) -> Any:
    """Raises EOFError."""
    length, count = struct.unpack("<2Q", _exactly(file, 16))
    sizes = struct.unpack(f"<{count}Q", _exactly(file, 8 * count))
    head = _exactly(file, length)
    return pickle.loads(head, buffers=[_exactly(file, size) for size in sizes])


def _exactly(file: Any, size: int) -> bytearray:
    content = bytearray(size)
    if file.readinto(content) < size:
        raise EOFError
    return content


# What the child does


def main(number: int) -> None:
    """Answers until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, too, whose end is the end of this
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with (
        contextlib.suppress(EOFError, ConnectionError),
        socket.socket(fileno=number) as connection,
        connection.makefile("rwb", _BUFFER) as file,
    ):
        while True:
            _answer(file)


def _answer(file: Any) -> None:
    """Reads a request and writes the answer to each of its files."""
    sys.path[:] = _receive(file)
    modality, limits, asked = _receive(file)
    portion = [(bytes(_exactly(file, length)), size) for length, size in asked]
    for data, size in portion:
        with _bounds(limits):
            answer = _decoded(modality, data, size, limits)
        if isinstance(answer, Exception) and not isinstance(answer, MediaError):
            answer = RuntimeError(f"{type(answer).__name__}: {answer}")  # the parent may not know its class
        try:
            _send(file, answer)
        except Exception as error:
            words = f"{type(error).__name__}: {error}"
            _send(file, RuntimeError(f"what decode gives cannot be pickled ({words})"))
        del answer  # as large as what comes next
    file.flush()


def _decoded(modality: Modality, data: bytes, size: int | None, limits: MediaLimits) -> Any | Exception:
    try:
        return modality.decode(data, limits, size)
    except MemoryError as error:
        # Texts are decoded in this process, which no limit of decoding bounds.
        return out_of_memory("text", error, None) if modality.as_string else out_of_memory("content", error)
    except Exception as error:
        return error


@contextlib.contextmanager
def _bounds(limits: MediaLimits) -> Iterator[None]:
    """Bounds the memory beyond what there is already (Linux), where allocating fails then, and the processor time,
    after which the kernel ends the process, whatever it is at."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.suppress(FileNotFoundError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + limits.max_decode_memory
        resource.setrlimit(resource.RLIMIT_AS, (most if before[1] < 0 else min(most, before[1]), before[1]))
    signal.setitimer(signal.ITIMER_PROF, limits.max_decode_seconds)
    signal.setitimer(signal.ITIMER_REAL, limits.max_decode_seconds * _WAITING)
    try:
        yield
    finally:
        for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
            signal.setitimer(timer, 0)
        resource.setrlimit(resource.RLIMIT_AS, before)


if __name__ == "__main__":
    main(int(sys.argv[1]))
