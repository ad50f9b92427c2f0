"""A file may crash, hang or fill the process that decodes it: it is refused, and what comes after it is not."""

import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import psutil
import pytest

from assets import decoder
from assets.decoder import decode_each
from training.media import MediaError
from training.modalities.image import ImageModality
from training.settings import MediaLimits

TRAP = """
import ctypes, os, signal, time
from training.media import MediaError

class Odd(Exception):
    def __init__(self, one, two): super().__init__("odd")

class Trap:
    as_string = False

    def decode(self, data, limits, size=None):
        match data:
            case b"crash": ctypes.string_at(0)
            case b"leave": os._exit(3)
            case b"kill": os.kill(os.getpid(), signal.SIGKILL)
            case b"end": os.kill(os.getpid(), signal.SIGTERM)
            case b"abort": os.abort()
            case b"hang":
                while True: pass
            case b"fill": return bytearray(2**31)
            case b"refused": raise MediaError("corrupt", "no good")
            case b"fault": raise KeyError("fault")
            case b"odd": raise Odd(1, 2)
            case b"lambda": return lambda: 0
        return data, size, os.getpid()
"""
LIMITS = MediaLimits(max_decode_seconds=0.5, max_decode_memory=2**28)


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "trap_of_test.py").write_text(TRAP)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trap_of_test", raising=False)
    return __import__("trap_of_test").Trap()


def decoded(trap: Any, *files: bytes, limits: MediaLimits = LIMITS) -> list[Any]:
    return list(decode_each(trap, [(data, None) for data in files], limits))


def reasons(answers: Sequence[Any]) -> list[str]:
    return [answer.reason if isinstance(answer, MediaError) else type(answer).__name__ for answer in answers]


def test_each_file_has_its_answer_whatever_becomes_of_the_others(trap: Any) -> None:
    bad = {
        b"crash": "crashed", b"abort": "crashed", b"leave": "RuntimeError", b"kill": "killed", b"end": "killed",
        b"hang": "too_slow", b"fill": "too_large", b"refused": "corrupt", b"fault": "RuntimeError",
        b"odd": "RuntimeError", b"lambda": "RuntimeError",
    }  # fmt: skip
    files = [b"first", *(file for name in bad for file in (name, b"after " + name)), b"crash", b"crash", b"last"]
    answers = decoded(trap, *files)
    expected = [bad.get(file, file) for file in files]
    said = [a[0] if isinstance(a, tuple) else reasons([a])[0] for a in answers]
    assert said == expected
    messages = {file: str(answer) for file, answer in zip(files, answers, strict=True)}
    assert "SIGSEGV" in messages[b"crash"] and "exit code 3" in messages[b"leave"]
    assert "0.5 s: raise limits.max_decode_seconds" in messages[b"hang"]
    assert "raise limits.max_decode_memory" in messages[b"fill"]
    assert "cannot be pickled" in messages[b"lambda"] and messages[b"fault"] == "KeyError: 'fault'"


def test_no_file_is_refused_where_the_child_does_not_start(trap: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "_idle", [])
    monkeypatch.setattr(sys, "executable", "/bin/false")  # as of an installation that is half upgraded
    answers = decoded(trap, b"one", b"two")
    assert reasons(answers) == ["RuntimeError"] * 2 and "exit code 1" in str(answers[0])


def test_a_child_is_used_again_and_another_process_decodes(trap: Any) -> None:
    (one,), (other,) = decoded(trap, b"one"), decoded(trap, b"other")
    assert one[2] == other[2] != os.getpid()


def test_small_files_go_together_and_few_are_drawn_ahead(trap: Any) -> None:
    drawn = []

    def files() -> Any:
        for n in range(40):
            drawn.append(n)
            yield bytes(2**18), n

    answers = decode_each(trap, files(), LIMITS)
    assert next(answers)[1] == 0 and len(drawn) <= 6
    assert [size for _, size, _ in answers] == list(range(1, 40))


def test_a_consumer_that_stops_early_leaves_nothing_half_read(trap: Any) -> None:
    answers = decode_each(trap, [(b"%d" % n, n) for n in range(10)], LIMITS)
    assert next(answers)[0] == b"0"
    answers.close()
    assert [answer[0] for answer in decoded(trap, b"a", b"b")] == [b"a", b"b"]


def test_threads_decode_side_by_side(trap: Any) -> None:
    found: dict[int, list[Any]] = {}

    def work(number: int) -> None:
        found[number] = decoded(trap, *(b"%d of %d" % (n, number) for n in range(50)), b"crash", b"last")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, answers in found.items():
        assert [a[0] for a in answers[:50]] == [b"%d of %d" % (n, number) for n in range(50)]
        assert reasons(answers[50:51]) == ["crashed"] and answers[51][0] == b"last"


def test_a_picture_may_take_so_much_memory() -> None:
    file = io.BytesIO()
    PIL.Image.new("RGB", (5000, 5000), (1, 2, 3)).save(file, "PNG")
    for most, expected in ((2**24, "too_large"), (2**28, "Image")):
        answers = list(decode_each(ImageModality(), [(file.getvalue(), None)], MediaLimits(max_decode_memory=most)))
        assert reasons(answers) == [expected]
    assert np.array_equal(answers[0].array[::2500, ::2500], np.full((2, 2, 3), (1, 2, 3), np.uint8))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not name the child's children")
def test_no_child_outlives_a_killed_parent(trap: Any) -> None:
    code = (
        "import sys; sys.path[:] = eval(sys.argv[1])\n"
        "from assets.decoder import decode_each; from training.settings import MediaLimits; import trap_of_test\n"
        "limits = MediaLimits(max_decode_seconds=1)\n"
        "print(next(decode_each(trap_of_test.Trap(), [(b'a', None), (b'hang', None)], limits))[2], flush=True)\n"
        "input()"
    )
    with subprocess.Popen([sys.executable, "-c", code, repr(sys.path)], stdin=-1, stdout=-1, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
    assert psutil.wait_procs([child], timeout=20)[0], "it decodes on and on"


def test_what_a_forked_copy_of_this_process_knows_of_is_not_its_own(trap: Any) -> None:
    decoded(trap, b"one")
    owners = [child.owner for child in decoder._idle]
    assert os.getpid() in owners
    for child in decoder._idle:
        child.owner = -1
    assert decoded(trap, b"two")[0][0] == b"two"
    assert all(child.owner == os.getpid() for child in decoder._idle)
