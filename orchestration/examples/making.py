"""How the data of an example are made: once, whole or again, and the same bytes each time."""

import csv
import io
import tarfile
import wave
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock

from training.files import write_text

_MARKER = "VERSION"


def made_once(folder: Path, version: str, make: Callable[[Path], None]) -> None:
    """Calls `make` on the folder unless it holds what this version makes.

    The marker says that all is written, so what a killed call left is written again.

    Raises:
        ValueError: the folder holds something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        marker = folder / _MARKER
        if marker.exists() and marker.read_text() == version:
            return
        if not marker.exists() and (others := sorted(path.name for path in folder.iterdir())):
            raise ValueError(f"{folder} is not empty (it holds {others[0]}): name another folder for the example")
        marker.write_text("incomplete")
        make(folder)
        write_text(marker, version)


def wav(samples: bytes, sample_rate: int) -> bytes:
    """16 bit mono."""
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setparams((1, 2, sample_rate, 0, "NONE", ""))
        file.writeframes(samples)
    return data.getvalue()


def write_tar(target: Path | BinaryIO, members: Iterable[tuple[str, bytes]]) -> None:
    """Owner and time are left at 0: the bytes depend on the members alone."""
    opened = {"fileobj": target} if not isinstance(target, Path) else {"name": target}
    with tarfile.open(**opened, mode="w|") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def write_csv(target: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    rows = list(rows)
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
