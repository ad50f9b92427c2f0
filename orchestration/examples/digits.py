"""The data of the built-in example: handwriting, spoken digits and questions, made on the spot without a network.

    python -m orchestration.examples.digits FOLDER

The handwriting is scikit-learn's bundled set of 1,797 scans (E. Alpaydin, C. Kaynak, UCI, 1998). The digits are spoken
by espeak-ng in 60 voices, each an accent of English and a speaker, at several speeds and pitches.
"""

import ctypes
import importlib.resources
import io
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orchestration.examples.making import made_once, wav, write_csv, write_tar
from orchestration.examples.questions import generate_questions
from orchestration.project import load
from training import children

VERSION = "2"  # count up whenever the data change
FILES = ("handwriting.tar", "handwriting.csv", "recordings.tar", "recordings.csv", "questions.csv")
_SCAN_SIZE = 28  # pixels; the scans are 8 x 8, too small for a person to look at
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_ACCENTS = ("en", "en-us", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029", "en-us-nyc")
# Of espeak-ng's hundred speakers those that sound like a person, and of those that sound alike only one: otherwise a
# test voice could be nearly a training voice.
_SPEAKERS = (
    "adam Alex Alicia Andrea Andy anika Annie announcer antonio aunty belinda boris caleb david Denis Diogo ed edward "
    "f1 f2 f3 f4 f5 Gene grandma gustave ian iven Jacky john kaukovalta Lee linda m1 m2 m3 m4 m5 m6 m7 m8 marcelo "
    "Marco Mario max Michael Mike Nguyen norbert pablo paul pedro rob sandro steph Storm travis Tweaky victor zac"
)
_TAKES = 3  # of each digit by each voice
_RATES, _PITCHES, _SILENCES = (120, 210), (25, 75), (0.0, 0.15)  # words a minute; 0 to 99; seconds, before and after


def generate(folder: Path) -> None:
    """Writes FILES into `folder`; does nothing where they are. The same installed versions give the same bytes.

    Raises:
        ValueError: the folder holds something else.
        RuntimeError: espeak-ng failed.
    """
    made_once(folder, VERSION, _make)


def make_media(folder: Path) -> None:
    """handwriting and recordings, each a .tar and a .csv."""
    scans, takes = list(_scans()), list(_takes())
    write_tar(folder / "handwriting.tar", ((scan["file"], scan.pop("png")) for scan in scans))
    write_csv(folder / "handwriting.csv", scans)
    (folder / "recordings.tar").write_bytes(_spoken_by_child())
    write_csv(folder / "recordings.csv", (take.row() for take in takes))


def _make(folder: Path) -> None:
    make_media(folder)
    with importlib.resources.as_file(importlib.resources.files("orchestration") / "examples") as examples:
        align = load(examples / "digits.yaml").align
    tables = (folder / "handwriting.csv", folder / "recordings.csv", folder / "questions.csv")
    generate_questions(*tables, align)


def _scans() -> Iterator[dict[str, Any]]:
    """White ink on black, as in MNIST."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (image, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        scan = Image.fromarray(np.round(image * (255 / 16)).astype(np.uint8))
        data = io.BytesIO()
        scan.resize((_SCAN_SIZE, _SCAN_SIZE), Image.Resampling.BICUBIC).save(data, "png")
        yield {"file": f"{digit}/{number:04d}.png", "digit": int(digit), "scan": number, "png": data.getvalue()}


@dataclass(frozen=True, slots=True)
class Take:
    """One digit spoken once."""

    file: str
    digit: int
    voice: str  # accent+speaker
    rate: int  # words a minute
    pitch: int  # 0 to 99, of the speaker's own range
    before: float  # seconds of silence
    after: float

    def row(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("file", "digit", "voice", "rate", "pitch")}


def _takes() -> Iterator[Take]:
    random = np.random.default_rng(0)
    for number, speaker in enumerate(_SPEAKERS.split()):
        accent = _ACCENTS[number % len(_ACCENTS)]
        for take in range(_TAKES):
            for digit in range(10):
                rate, pitch = (int(random.integers(low, high + 1)) for low, high in (_RATES, _PITCHES))
                before, after = (float(random.uniform(*_SILENCES)) for _ in range(2))
                yield Take(
                    f"{digit}_{accent}_{speaker}_{take}.wav", digit, f"{accent}+{speaker}", rate, pitch, before, after
                )


def _spoken_by_child() -> bytes:
    """The archive of all takes. espeak-ng keeps global state, and may crash: it gets a fresh process of its own."""
    argv = [sys.executable, "-P", "-m", "orchestration.examples.digits", "--speak"]
    child = subprocess.run(argv, env=children.environment(), capture_output=True)
    if child.returncode:
        lines = child.stderr.decode(errors="replace").strip().splitlines()
        raise RuntimeError(f"espeak-ng could not make the spoken digits: {lines[-1] if lines else child.returncode}")
    return child.stdout


def _speak(takes: Iterable[Take]) -> Iterator[tuple[str, bytes]]:
    """File name and WAV of each take, 16 bit mono at espeak-ng's own rate (22,050 Hz)."""
    import espeakng_loader

    # Names and numbers of speak_lib.h, https://github.com/espeak-ng/espeak-ng
    synchronous, characters, utf8, rate_parameter, pitch_parameter = 2, 1, 1, 1, 3
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    sample_rate = library.espeak_Initialize(synchronous, 0, espeakng_loader.get_data_path().encode(), 0)
    if sample_rate <= 0:
        raise RuntimeError(f"espeak_Initialize returned {sample_rate}")
    heard: list[bytes] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def listen(samples: Any, count: int, _events: Any) -> int:
        if samples and count > 0:
            heard.append(ctypes.string_at(samples, 2 * count))
        return 0

    library.espeak_SetSynthCallback(listen)
    for number, take in enumerate(takes):
        library.espeak_ng_SetRandSeed(ctypes.c_long(number + 1))  # of breath; left alone it is the time of day
        if library.espeak_SetVoiceByName(take.voice.encode()):
            raise RuntimeError(f"no voice {take.voice}")
        library.espeak_SetParameter(rate_parameter, take.rate, 0)
        library.espeak_SetParameter(pitch_parameter, take.pitch, 0)
        text = _WORDS[take.digit].encode() + b"\0"
        heard.clear()
        if library.espeak_Synth(text, len(text), 0, characters, 0, utf8, None, None) or not heard:
            raise RuntimeError(f"{take.voice} says nothing for {_WORDS[take.digit]!r}")
        silences = [bytes(2 * round(seconds * sample_rate)) for seconds in (take.before, take.after)]
        yield take.file, wav(silences[0] + b"".join(heard) + silences[1], sample_rate)


if __name__ == "__main__":
    if sys.argv[1:] == ["--speak"]:
        write_tar(sys.stdout.buffer, _speak(_takes()))
    elif len(sys.argv) == 2 and not sys.argv[1].startswith("-"):
        generate(Path(sys.argv[1]))
    else:
        sys.exit(f"usage: python -m orchestration.examples.digits FOLDER; got {sys.argv[1:]}")
