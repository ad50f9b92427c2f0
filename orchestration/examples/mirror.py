"""The data of the example `mirror`: pictures and recordings of the same digits, made on the spot without a network.

    python -m orchestration.examples.mirror FOLDER

The media are those of the example `digits`; pairs.csv says which picture and which recording are of one digit.
"""

import importlib.resources
import sys
from pathlib import Path

from orchestration.examples.digits import make_media
from orchestration.examples.making import made_once, write_csv
from orchestration.examples.questions import same_digits
from orchestration.project import load

VERSION = "1"  # count up whenever the data change
COUNTS = {"train": 3000, "validation": 200, "test": 400}  # pairs


def generate(folder: Path) -> None:
    """Writes the media and pairs.csv into `folder`; does nothing where they are. Raises as that of `digits`."""
    made_once(folder, VERSION, _make)


def _make(folder: Path) -> None:
    make_media(folder)
    with importlib.resources.as_file(importlib.resources.files("orchestration") / "examples") as examples:
        align = load(examples / "mirror.yaml").align
    rows = same_digits(folder / "handwriting.csv", folder / "recordings.csv", align, COUNTS)
    write_csv(folder / "pairs.csv", rows)


if __name__ == "__main__":
    generate(Path(sys.argv[1])) if len(sys.argv) == 2 else sys.exit(f"usage: {sys.argv[0]} FOLDER")
