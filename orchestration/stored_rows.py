"""What lies in a folder and is neither a media file nor a table: databases of SQLite, and data sets that `datasets` has
saved. Nothing is loaded but names, types and the first rows."""

import itertools
import json
import re
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assets.formats.values import as_text
from training.catalog import MODALITIES
from training.media import MediaError
from training.settings import MediaLimits

_SQLITE = b"SQLite format 3\0"
_DATABASES = (".db", ".sqlite", ".sqlite3")
_SAVED = "dataset_info.json"  # in the folder of each split; what names the splits lies above
_TYPES = {"Image": "image", "Audio": "speech"}  # of columns, as `datasets` calls them


@dataclass(frozen=True)
class Saved:
    """A data set of `datasets`."""

    path: str
    splits: tuple[str, ...]  # none: it has no splits
    types: Mapping[str, str]  # column -> Image, Audio, ClassLabel, or of its values: string, int64, ...

    def of(self, modality: str) -> list[str]:
        """The columns with media of a modality; of text, those with strings."""
        is_text = MODALITIES.load(modality).is_text
        return [
            name for name, kind in self.types.items() if (kind == "string" if is_text else _TYPES.get(kind) == modality)
        ]


@dataclass(frozen=True)
class Query:
    """A table of a database of SQLite."""

    database: str
    text: str  # SELECT ...
    rows: list[dict[str, str | None]]  # the first ones, without bytes
    media: Mapping[str, str]  # column with bytes -> modality


def saved_sets(root: Path, names: Iterable[str], notes: list[str]) -> list[Saved]:
    found: dict[str, Saved] = {}
    for name in names:
        folder = Path(name).parent
        if Path(name).name != _SAVED or not (root / folder / "state.json").is_file():
            continue
        try:
            types = {column: _type(kind) for column, kind in json.loads((root / name).read_text())["features"].items()}
            listed = root / folder.parent / "dataset_dict.json"
            splits = json.loads(listed.read_text())["splits"] if folder.name and listed.is_file() else []
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            notes.append(f"{name}: cannot be read ({type(error).__name__})")
            continue
        path = (folder.parent if splits else folder).as_posix()
        found.setdefault(path, Saved(path, tuple(splits), types))
    return list(found.values())


def _type(feature: Any) -> str:
    kind = feature.get("_type") if isinstance(feature, dict) else None
    return str(feature.get("dtype")) if kind == "Value" else str(kind)


def queries(root: Path, names: Iterable[str], most: int, notes: list[str]) -> list[Query]:
    """The tables of all databases. Args: `most`: rows that are looked at."""
    found: list[Query] = []
    for name in names:
        if not name.lower().endswith(_DATABASES):
            continue
        with (root / name).open("rb") as file:
            if file.read(len(_SQLITE)) != _SQLITE:
                continue
        try:
            connection = sqlite3.connect(f"{(root / name).resolve().as_uri()}?mode=ro", uri=True)
            try:
                tables = connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY 1")
                listed = [table for (table,) in tables.fetchall() if not table.startswith("sqlite_")]
                found += [query for table in listed if (query := _query(connection, name, table, most))]
            finally:
                connection.close()
        except sqlite3.Error as error:
            notes.append(f"{name}: cannot be read ({error})")
    return found


def _query(connection: sqlite3.Connection, database: str, table: str, most: int) -> Query | None:
    quoted = table if re.fullmatch("[a-zA-Z_][a-zA-Z0-9_]*", table) else '"' + table.replace('"', '""') + '"'
    text = f"SELECT * FROM {quoted}"
    cursor = connection.execute(text)
    names = [column[0] for column in cursor.description]
    rows: list[dict[str, str | None]] = []
    held: dict[str, bytes] = {}
    for row in itertools.islice(cursor, most):
        cells = dict(zip(names, row, strict=True))
        for name, cell in cells.items():
            if isinstance(cell, bytes):
                held.setdefault(name, cell)
        rows.append({name: as_text(cell) for name, cell in cells.items() if not isinstance(cell, bytes)})
    media = {name: modality for name, content in held.items() if (modality := _modality(content))}
    return Query(database, text, rows, media) if rows else None


def _modality(content: bytes) -> str | None:
    """Of which modality the bytes of a file are."""
    for name in MODALITIES.names():
        if MODALITIES.load(name).is_text:
            continue
        try:
            MODALITIES.load(name)().decode(content, MediaLimits())
        except MediaError:
            continue
        return name
    return None
