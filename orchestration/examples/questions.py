"""Questions about a digit that is seen and a digit that is heard: wordings, answers, and the pairing of free files.

An image and a recording of one split are paired at will, so a few thousand files give any number of samples, and no
row of the link table asks for two splits at once.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from assets.names import normalize
from assets.settings import AlignSettings
from assets.sources.base import SourceError
from assets.splits import split_of
from assets.tables import read_table
from training.files import write_bytes
from training.schema import SPLITS

UNKNOWN = "unknown"
_HARD = 2  # times as often as the others in training: sums and differences take longest to learn
COUNTS = {"train": 20_000, "validation": 900, "test": 1_800}  # rows; the files are far fewer
COLUMNS = ("id", "question", "kind", "image", "speech", "answer")
WORDINGS = {
    "sum": (
        "What is the sum of the digit you see and the digit you hear?",
        "Add the digit in the picture to the spoken digit.",
        "How much are the written digit and the spoken digit together?",
        "What do you get when you add up the two digits?",
    ),
    "difference": (
        "What is the difference between the digit you see and the digit you hear?",
        "How far apart are the written digit and the spoken digit?",
        "Take the smaller of the two digits from the larger one.",
        "By how much do the picture and the recording differ?",
    ),
    "larger": (
        "Which is larger, the digit you see or the digit you hear?",
        "Name the larger of the written and the spoken digit.",
        "Of the two digits, which one is the greater?",
        "What is the maximum of the picture and the recording?",
    ),
    "same": (
        "Are the digit you see and the digit you hear the same?",
        "Does the voice say what the picture shows?",
        "Is the written digit equal to the spoken digit?",
        "Do picture and recording agree?",
    ),
    "see": (
        "What do you see?",
        "Which digit is in the picture?",
        "Read the written digit.",
        "What digit did somebody write?",
    ),
    "hear": (
        "What do you hear?",
        "Which digit is spoken?",
        "Write down the digit that the voice says.",
        "What digit did somebody say?",
    ),
}
NEEDS = dict.fromkeys(WORDINGS, ("image", "speech")) | {"see": ("image",), "hear": ("speech",)}
_MISSING = 0.07  # share of rows that lack the image, and again of those that lack the speech
_SAME = 0.5  # share of the rows of kind `same` that are paired to be so; by chance, "no" would nearly always be right


@dataclass(frozen=True, slots=True)
class Medium:
    """One image or recording of a digit; `columns` are those that decide about its split."""

    file: str
    digit: int
    columns: Mapping[str, str]


Pool = dict[str, dict[int, list[Medium]]]  # split -> digit -> files


def answer(kind: str, seen: int | None, heard: int | None) -> str:
    """The answer as text; "unknown" where what the question needs is not there (None).

    Raises:
        ValueError: there are no questions of that kind.
    """
    if kind not in WORDINGS:
        raise ValueError(f"kind is {kind!r}, expected one of {', '.join(WORDINGS)}")
    inputs = {"image": seen, "speech": heard}
    digits = [digit for modality in NEEDS[kind] if (digit := inputs[modality]) is not None]
    if len(digits) < len(NEEDS[kind]):
        return UNKNOWN
    match kind:
        case "sum":
            return str(sum(digits))
        case "difference":
            return str(max(digits) - min(digits))
        case "same":
            return "yes" if min(digits) == max(digits) else "no"
        case _:  # larger; of one digit seen or heard it is that digit
            return str(max(digits))


def pair(
    images: Sequence[Medium],
    recordings: Sequence[Medium],
    align: AlignSettings,
    counts: Mapping[str, int],
    seed: int = 0,
) -> list[dict[str, str]]:
    """Rows of a link table (COLUMNS; an empty cell: not given), so many of each split.

    A row without its image (or recording) may be open to train and validation both; its id then decides, so the
    counts of these two can differ a little from what was asked for.

    Raises:
        ValueError: a split that should have rows has no image or no recording, or no file can be told a split.
    """
    pools = {"image": _by_split(images, align), "speech": _by_split(recordings, align)}
    _check_pools(pools, counts)
    random = np.random.default_rng(seed)
    kinds = tuple(WORDINGS)
    shares = np.array([_HARD if kind in ("sum", "difference") else 1 for kind in kinds], float)
    shares /= shares.sum()
    planned = [split for split in SPLITS for _ in range(counts.get(split, 0))]
    rows = []
    for number, split in enumerate(planned):
        kind = str(random.choice(kinds, p=shares if split == "train" else None))
        rows.append(_row(f"q{number:06d}", kind, split, pools, align, random))
    # In the order they were made all of one split would stand together, which a preview of the first rows would show.
    return [rows[index] for index in random.permutation(len(rows))]


def _check_pools(pools: Mapping[str, Pool], counts: Mapping[str, int]) -> None:
    for split in (split for split, count in counts.items() if count):
        for modality, pool in pools.items():
            if split not in pool:
                sizes = ", ".join(f"{name} {sum(map(len, pool[name].values()))}" for name in SPLITS if name in pool)
                raise ValueError(
                    f"no {modality} file falls into the split {split} (there are: {sizes or 'none'}); "
                    "change align.split, align.group, align.held_out or align.test_values"
                )


def _row(
    name: str, kind: str, split: str, pools: Mapping[str, Pool], align: AlignSettings, random: np.random.Generator
) -> dict[str, str]:
    """A question of the kind about media of the split, or of the one that the row's id decides for."""
    lot = random.random()
    lacking = "image" if lot < _MISSING else "speech" if lot < 2 * _MISSING else None
    same = kind == "same" and random.random() < _SAME
    drawn = _draw(pools, split, lacking, same, random)
    decided = _split(drawn, name, align)
    if decided != split:
        drawn = _draw(pools, decided, lacking, same, random)
        assert _split(drawn, name, align) == decided, (name, split, decided)
    seen, heard = drawn.get("image"), drawn.get("speech")
    wordings = WORDINGS[kind]
    return {
        "id": name,
        "question": wordings[random.integers(len(wordings))],
        "kind": kind,
        "image": seen.file if seen else "",
        "speech": heard.file if heard else "",
        "answer": answer(kind, seen.digit if seen else None, heard.digit if heard else None),
    }


def _split(media: Mapping[str, Medium], sample_id: str, align: AlignSettings) -> str:
    columns = {name: value for medium in media.values() for name, value in medium.columns.items()}
    return split_of(columns | {"sample_id": sample_id}, align)


def _by_split(media: Sequence[Medium], align: AlignSettings) -> Pool:
    """The files of each split and digit.

    What the columns leave open (train or validation) the file's name decides, so that no file is in both.
    """
    pool: Pool = {}
    for medium in media:
        of_split = pool.setdefault(_split({"": medium}, medium.file, align), {})
        of_split.setdefault(medium.digit, []).append(medium)
    return pool


def _draw(
    pools: Mapping[str, Pool],
    split: str,
    lacking: str | None,
    same: bool,
    random: np.random.Generator,
) -> dict[str, Medium]:
    """An image and a recording of the split, of the same digit where asked for (and possible), else of any."""
    digits = {modality: sorted(pool[split]) for modality, pool in pools.items()}
    both = sorted(set(digits["image"]) & set(digits["speech"]))
    shared = both[random.integers(len(both))] if same and both else None
    drawn = {}
    for modality, pool in pools.items():
        digit = shared if shared is not None else digits[modality][random.integers(len(digits[modality]))]
        files = pool[split][digit]
        drawn[modality] = files[random.integers(len(files))]
    return {modality: medium for modality, medium in drawn.items() if modality != lacking}


def generate_questions(
    handwriting: Path,
    recordings: Path,
    target: Path,
    align: AlignSettings,
    counts: Mapping[str, int] = COUNTS,
    seed: int = 0,
) -> None:
    """Writes the questions about the files of two tables as a CSV, in one step; an equal file is left as it is.

    Args:
        handwriting, recordings: tables (CSV, JSON Lines, Parquet) with the columns `file`, and `digit` or `label`.
        align: its `group` and `held_out` may name columns of these tables, and `image` and `speech`, the files.
        counts: split -> rows.

    Raises:
        SourceError: a table cannot be read, or holds something that is no digit.
        ValueError: a test value of `align` occurs nowhere, or a split that should have rows has no files.
    """
    media = {"image": _read(handwriting, "image", align), "speech": _read(recordings, "speech", align)}
    for column, values in align.test_values.items():
        there = {medium.columns.get(column) for files in media.values() for medium in files} - {None}
        if unknown := [value for value in values if value not in there]:
            known = ", ".join(sorted(map(str, there))[:20]) or "nothing"
            raise ValueError(f"align.test_values.{column}: no file has {unknown[0]!r}; the tables say {known}")
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(pair(media["image"], media["speech"], align, counts, seed))
    content = text.getvalue().encode()
    if target.exists() and target.read_bytes() == content:
        return  # a new time of change would make the next run read it again
    write_bytes(target, content)


def same_digits(
    handwriting: Path, recordings: Path, align: AlignSettings, counts: Mapping[str, int], seed: int = 0
) -> list[dict[str, str]]:
    """id, image, speech, digit: of each split so many pairs of a picture and a recording of one digit, drawn freely."""
    tables = {"image": handwriting, "speech": recordings}
    pools = {name: _by_split(_read(table, name, align), align) for name, table in tables.items()}
    _check_pools(pools, counts)
    random, rows = np.random.default_rng(seed), list[dict[str, str]]()
    for split in [name for name in SPLITS for _ in range(counts.get(name, 0))]:
        drawn = _draw(pools, split, None, True, random)
        files = {name: medium.file for name, medium in drawn.items()}
        rows.append({"id": f"p{len(rows):06d}", **files, "digit": str(drawn["image"].digit)})
    return [rows[index] for index in random.permutation(len(rows))]


def _read(table: Path, modality: str, align: AlignSettings) -> list[Medium]:
    wanted = {name.rpartition(".")[2]: name for name in (*align.group, *align.held_out)}
    media = []
    for record in read_table(table, required=["file"]):
        values = {name: normalize(value) for name, value in record.values.items() if value}
        digit = values.get("digit") or values.get("label") or ""
        if record.problem or "file" not in values or not (digit.isdecimal() and int(digit) <= 9):
            problem = record.problem or f"expected a file and, in column digit or label, 0 to 9; found {record.values}"
            raise SourceError(f"{table} line {record.line}: {problem}")
        columns = {wanted[name]: value for name, value in values.items() if name in wanted}
        if modality in wanted:
            columns[wanted[modality]] = values["file"]
        media.append(Medium(values["file"], int(digit), columns))
    return media
