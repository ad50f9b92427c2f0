"""The built-in example `digits`: three silos made on the spot, the same bytes every time, without a network.

Handwriting comes with scikit-learn (1,797 scans of 8x8 pixels, UCI Optical Recognition of Handwritten Digits);
speech is synthesised by espeak-ng with many voices, rates and pitches; questions pair them freely within a split.

    python -m orchestration.digits FOLDER
"""

import csv
import ctypes
import io
import os
import shutil
import subprocess
import sys
import tarfile
import wave
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from assets.settings import AlignSettings
from assets.splits import allowed_splits
from orchestration.questions import Medium, ask, write_questions

VERSION = "1"  # count up when the files change; those of another version are made again
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ACCENTS = ("en-us", "en", "en-gb-scotland", "en-gb-x-rp", "en-029")
# One accent each, in turn; whispering and robot voices are left out.
VARIANTS = (
    "m1 m2 m3 m4 m5 m6 m7 m8 f1 f2 f3 f4 f5 Alex Alicia Andrea Andy Annie Denis Gene Hugo Lee Marco Michael Mike adam "
    "anika antonio aunty belinda benjamin boris caleb david ed edward grandma grandpa ian john linda max michel pablo "
    "paul pedro quincy rob robert sandro shelby steph travis victor zac"
).split()
VOICES = tuple(f"{ACCENTS[n % len(ACCENTS)]}+{variant}" for n, variant in enumerate(VARIANTS))
TAKES = 3  # recordings of each digit by each voice
IMAGE_SIZE = 28
COUNTS = {"train": 18000, "validation": 600, "test": 1500}
SEED = 20240229
# What the project file says too: a scan, or a voice, stands on one side only.
ALIGN = AlignSettings(group=("image", "voice"))


def generate(folder: Path) -> None:
    """Makes the example's files; those that are there already stay. A killed run leaves nothing half made.

    Raises:
        RuntimeError: espeak-ng could not speak; the message carries its output.
    """
    marker = folder / "VERSION"
    if marker.exists() and marker.read_text() == VERSION:
        return
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    # espeak-ng is a C library with global state: in a process of its own it cannot take this one down.
    code = Path(__file__).resolve().parent.parent
    made = subprocess.run(
        [sys.executable, "-P", "-m", "orchestration.digits", str(temporary)],
        env=os.environ | {"PYTHONPATH": str(code)},
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode != 0:
        shutil.rmtree(temporary)
        raise RuntimeError(f"the example's speech could not be made (exit {made.returncode}):\n{made.stderr.strip()}")
    (temporary / "VERSION").write_text(VERSION)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def _write(folder: Path) -> None:
    scans = dict(_scans())
    recordings = dict(_recordings())
    _tar(folder / "handwriting.tar", {file: png for file, (png, _) in scans.items()})
    _table(folder / "handwriting.csv", ["file", "digit"], [[file, digit] for file, (_, digit) in scans.items()])
    _tar(folder / "recordings.tar", {file: wav for file, (wav, *_) in recordings.items()})
    _table(
        folder / "recordings.csv",
        ["file", "digit", "voice", "rate", "pitch"],
        [[file, *facts] for file, (_, *facts) in recordings.items()],
    )
    rows = []
    for split, count in COUNTS.items():
        images = [Medium(file, digit) for file, (_, digit) in scans.items() if _split("image", file) == split]
        spoken = [Medium(f, facts[1]) for f, facts in recordings.items() if _split("voice", facts[2]) == split]
        rows += ask(split, images, spoken, count, SEED)
    write_questions(folder / "questions.csv", rows)


def _split(column: str, value: str) -> str:
    (split,) = allowed_splits({column: value}, ALIGN)
    return split


def _scans() -> Iterator[tuple[str, tuple[bytes, int]]]:
    """File name -> PNG (grey, bicubic enlargement of 8x8) and digit."""
    from PIL import Image
    from sklearn.datasets import load_digits

    data = load_digits()
    for number, (scan, digit) in enumerate(zip(data.images, data.target, strict=True)):
        grey = np.round(scan * 255 / 16).astype(np.uint8)
        picture = Image.fromarray(grey).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        yield f"scan_{number:04d}.png", (buffer.getvalue(), int(digit))


def _recordings() -> Iterator[tuple[str, tuple[bytes, int, str, int, int]]]:
    """File name -> WAV, digit, voice, rate in words a minute, pitch (0 to 99)."""
    random = np.random.default_rng(SEED)
    speak = _speaker()
    for voice in VOICES:
        for digit, word in enumerate(WORDS):
            for take in range(TAKES):
                rate, pitch = int(random.integers(120, 221)), int(random.integers(25, 76))
                wav = speak(word, voice, rate, pitch)
                yield f"{voice.replace('+', '_')}_{digit}_{take}.wav", (wav, digit, voice, rate, pitch)


def _speaker() -> Callable[[str, str, int, int], bytes]:
    """A function that speaks a word with espeak-ng (speak_lib.h) and gives a mono 16-bit WAV."""
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    hertz = library.espeak_Initialize(2, 0, espeakng_loader.get_data_path().encode(), 0)  # 2: AUDIO_OUTPUT_SYNCHRONOUS
    if hertz <= 0:
        raise RuntimeError("espeak-ng did not start: is the wheel espeakng-loader whole?")
    chunks: list[bytes] = []

    def receive(samples: "ctypes._Pointer[ctypes.c_short]", count: int, _events: object) -> int:
        if samples and count > 0:
            chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    signature = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    callback = signature(receive)
    library.espeak_SetSynthCallback(callback)

    def speak(word: str, voice: str, rate: int, pitch: int, keep: object = callback) -> bytes:
        chunks.clear()
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise RuntimeError(f"espeak-ng has no voice {voice!r}")
        library.espeak_SetParameter(1, rate, 0)  # espeakRATE
        library.espeak_SetParameter(3, pitch, 0)  # espeakPITCH
        library.espeak_ng_SetRandSeed(ctypes.c_long(SEED))  # breathy voices draw noise, from the clock by default
        text = word.encode()
        library.espeak_Synth(text, len(text) + 1, 0, 1, 0, 1, None, None)
        library.espeak_Synchronize()
        if not chunks:
            raise RuntimeError(f"espeak-ng said nothing for {word!r} with voice {voice!r}")
        buffer = io.BytesIO()
        with wave.open(buffer, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(hertz)
            file.writeframes(b"".join(chunks))
        return buffer.getvalue()

    return speak


def _tar(path: Path, files: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)  # with no time and no owner, so that the bytes are the same everywhere
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def _table(path: Path, header: list[str], rows: list[list[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([header, *rows])


if __name__ == "__main__":
    _write(Path(sys.argv[1]))
