"""Questions about a digit seen and a digit heard, and their answers: the text silo of the built-in examples."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

WORDINGS = {
    "sum": (
        "What is the sum of the digit you see and the digit you hear?",
        "Add the number in the picture to the spoken number.",
        "How much is the written digit plus the spoken digit?",
        "What do the two digits add up to?",
        "Give the total of image and voice.",
    ),
    "difference": (
        "What is the difference between the digit you see and the digit you hear?",
        "By how much do the written and the spoken digit differ?",
        "How far apart are the two digits?",
        "Take the smaller of the two digits from the larger one.",
    ),
    "larger": (
        "Which digit is larger, the one you see or the one you hear?",
        "Name the bigger of the written and the spoken number.",
        "What is the maximum of the two digits?",
        "Which of the two numbers is greater?",
    ),
    "same": (
        "Are the digit you see and the digit you hear the same?",
        "Does the voice say the digit in the picture?",
        "Is the written number equal to the spoken one?",
        "Do image and voice agree?",
    ),
    "see": (
        "What digit do you see?",
        "Which number is in the picture?",
        "Read the written digit.",
        "What does the image show?",
    ),
    "hear": (
        "What digit do you hear?",
        "Which number is spoken?",
        "What does the voice say?",
        "Name the digit in the recording.",
    ),
}
UNKNOWN = "unknown"
COLUMNS = ("id", "question", "kind", "image", "speech", "answer", "split")


class Medium(NamedTuple):
    """A file and the digit in it."""

    file: str
    digit: int


def answer(kind: str, seen: int | None, heard: int | None) -> str:
    """The right answer; `unknown` where the question needs a digit that is not given."""
    if kind == "see":
        return UNKNOWN if seen is None else str(seen)
    if kind == "hear":
        return UNKNOWN if heard is None else str(heard)
    if seen is None or heard is None:
        return UNKNOWN
    if kind == "sum":
        return str(seen + heard)
    if kind == "difference":
        return str(abs(seen - heard))
    if kind == "larger":
        return str(max(seen, heard))
    if kind == "same":
        return "yes" if seen == heard else "no"
    raise ValueError(f"kind is {kind!r}, expected one of {', '.join(WORDINGS)}")


def ask(
    split: str, images: Sequence[Medium], recordings: Sequence[Medium], count: int, seed: int, lacking: float = 0.07
) -> list[dict[str, str]]:
    """`count` questions about free pairings of the files of one split; a share lacks the image, another the speech.

    Raises:
        ValueError: the split has no image or no recording, so nothing can be paired.
    """
    if not images or not recordings:
        raise ValueError(f"split {split} has {len(images)} images and {len(recordings)} recordings: nothing to pair")
    random = np.random.default_rng([seed, *split.encode()])
    by_digit = {d: [r for r in recordings if r.digit == d] for d in range(10)}
    kinds = list(WORDINGS)
    rows = []
    for number in range(count):
        kind = kinds[number % len(kinds)]
        image = images[random.integers(len(images))]
        # Half of the "same" questions have a yes: by chance it would be one in ten.
        alike = by_digit[image.digit] if kind == "same" and random.random() < 0.5 else recordings
        speech = (alike or recordings)[random.integers(len(alike or recordings))]
        draw = random.random()
        has_image, has_speech = draw >= lacking, not lacking <= draw < 2 * lacking
        rows.append(
            {
                "id": f"{split}_{number:06d}",
                "question": WORDINGS[kind][random.integers(len(WORDINGS[kind]))],
                "kind": kind,
                "image": image.file if has_image else "",
                "speech": speech.file if has_speech else "",
                "answer": answer(kind, image.digit if has_image else None, speech.digit if has_speech else None),
                "split": split,
            }
        )
    return rows


def write_questions(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """Writes the table whole or not at all."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)


def read_media(path: Path, file: str, digit: str) -> list[dict[str, str]]:
    """The rows of a table of media; raises ValueError where one of the two columns is missing."""
    with path.open(encoding="utf-8-sig", newline="") as table:
        rows = list(csv.DictReader(table))
    if not rows or not {file, digit} <= rows[0].keys():
        raise ValueError(f"{path}: expected columns {file} and {digit}, found {list(rows[0]) if rows else 'no rows'}")
    return rows
