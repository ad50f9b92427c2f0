"""The data of the example `drive`: a camera, a microphone and a log that see the same moments by clocks of their own.

    python -m orchestration.examples.drive FOLDER

At each moment of a drive a traffic light is drawn (red or green), a sound is heard (a siren or the engine), and a line
of the log says the mode (city or track). What the driver has to do follows from all three, and the next moment, about a
second later, is another. The camera's clock is right; CLOCKS says how far the others are from it.
"""

import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from orchestration.examples.making import made_once, wav, write_csv, write_tar

VERSION = "1"  # count up whenever the data change
FILES = ("camera.tar", "camera.csv", "microphone.tar", "microphone.csv", "log.csv")
CLOCKS = {"microphone": (2.4, 80e-6), "log": (-3.7, -40e-6)}  # offset (s) and drift that lead to the camera's time
START = datetime(2024, 5, 1, 8, tzinfo=UTC)
_DRIVES, _MOMENTS = 30, 80
_PAUSES = (0.7, 1.5)  # seconds between two moments
_JITTER = 0.002  # seconds (standard deviation) by which each source stamps a moment
_MISSED = 0.08  # share of the moments that the microphone, or the log, misses
_SIZE, _RATE, _SECONDS = 24, 8000, 0.25  # pixels, Hz


@dataclass(frozen=True, slots=True)
class Moment:
    drive: str
    at: float  # seconds since START
    is_red: bool
    has_siren: bool
    is_city: bool

    @property
    def action(self) -> str:
        """On the track no light counts; a siren does everywhere."""
        if self.has_siren:
            return "wait" if self.is_city and self.is_red else "give way"
        return "stop" if self.is_city and self.is_red else "go"


def generate(folder: Path) -> None:
    """Writes FILES into `folder`; does nothing where they are. The same installed versions give the same bytes.

    Raises:
        ValueError: the folder holds something else.
    """
    made_once(folder, VERSION, _make)


def moments(random: np.random.Generator) -> Iterator[Moment]:
    at = 0.0
    for drive in range(_DRIVES):
        at += 20.0
        for _ in range(_MOMENTS):
            at += float(random.uniform(*_PAUSES))
            yield Moment(f"drive{drive:02d}", at, *(bool(random.integers(2)) for _ in range(3)))


def _make(folder: Path) -> None:
    random = np.random.default_rng(0)
    everything = list(moments(random))
    frames = [(f"frame{n:04d}.png", moment) for n, moment in enumerate(everything)]
    write_tar(folder / "camera.tar", ((name, _light(moment.is_red, random)) for name, moment in frames))
    write_csv(
        folder / "camera.csv",
        [_row(name, moment, "camera", random) | {"action": moment.action} for name, moment in frames],
    )
    heard = [(f"sound{n:04d}.wav", m) for n, m in enumerate(everything) if random.random() > _MISSED]
    write_tar(folder / "microphone.tar", ((name, _sound(moment.has_siren, random)) for name, moment in heard))
    write_csv(folder / "microphone.csv", [_row(name, moment, "microphone", random) for name, moment in heard])
    written = [(f"line{n:04d}", m) for n, m in enumerate(everything) if random.random() > _MISSED]
    modes = {True: "city", False: "track"}
    write_csv(
        folder / "log.csv",
        [
            _row(name, moment, "log", random)
            | {"line": f"mode {modes[moment.is_city]}, speed {random.integers(20, 90)}, gear {random.integers(2, 6)}"}
            for name, moment in written
        ],
    )


def _row(name: str, moment: Moment, source: str, random: np.random.Generator) -> dict[str, Any]:
    """What a table says of an item: its time by the clock of its source."""
    offset, drift = CLOCKS.get(source, (0.0, 0.0))
    own = (moment.at + float(random.normal(0, _JITTER)) - offset) / (1 + drift)
    time = START + timedelta(microseconds=round(own * 1e6))
    return {"file": name, "drive": moment.drive, "time": time.isoformat(timespec="microseconds")}


def _light(is_red: bool, random: np.random.Generator) -> bytes:
    """A lamp of a traffic light somewhere in a grey street, as PNG."""
    from PIL import Image

    pixels = random.integers(60, 140, (_SIZE, _SIZE, 3)).astype(np.uint8)
    row, column = random.integers(6, _SIZE - 6, 2)
    down, across = np.ogrid[:_SIZE, :_SIZE]
    lamp = (down - row) ** 2 + (across - column) ** 2 <= random.integers(9, 21)
    pixels[lamp] = (230, 40, 40) if is_red else (40, 210, 80)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "png")
    return data.getvalue()


def _sound(has_siren: bool, random: np.random.Generator) -> bytes:
    """The engine, and with a siren two tones above it."""
    times = np.arange(int(_RATE * _SECONDS)) / _RATE
    sound = 0.3 * np.sin(2 * np.pi * random.uniform(80, 140) * times) + random.normal(0, 0.03, len(times))
    if has_siren:
        pitch = random.uniform(600, 900) * np.where(np.sin(2 * np.pi * 8 * times + random.uniform(0, 6)) > 0, 1.0, 1.33)
        sound += 0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / _RATE)
    return wav((sound * 20_000).astype("<i2").tobytes(), _RATE)


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(f"usage: python -m orchestration.examples.drive FOLDER; got {sys.argv[1:]}")
    generate(Path(sys.argv[1]))
