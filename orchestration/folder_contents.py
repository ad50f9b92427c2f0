"""What lies in a folder: media by modality, tables, and what says what is said when; told from names and first rows."""

import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from assets.archives import archive_kind, members
from assets.sources.base import SourceError
from assets.sources.webdataset import sample_of
from assets.storage import locate
from assets.tables import read_table
from orchestration.stored_rows import Saved, queries, saved_sets
from training.catalog import MODALITIES

_FILES = 20_000  # looked at, below a folder
_ROWS = 20_000  # looked at, of a table
_MATCH = 0.5  # share of a column's values that must name files, or keys of another table
_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_CUES = (".srt", ".vtt", ".textgrid")
_NO_ITEMS = ("readme", "license", "licence")


@dataclass(frozen=True)
class Media:
    """Files of one modality: a folder, a glob or an archive."""

    paths: tuple[str, ...]  # relative to the folder that was looked at
    modality: str
    names: frozenset[str]  # of the files, below `paths`

    @property
    def name(self) -> str:
        place = self.paths[0].removesuffix(Path(self.paths[0]).suffix)
        return identifier(re.sub(r"\*.*", "", place)) or self.modality

    @cached_property
    def named(self) -> frozenset[str]:
        """How a table may name the files: without the folders that all of them share, or with that they lie in."""
        shared = posixpath.commonpath({posixpath.dirname(name) for name in self.names})
        parts = shared.split("/") if shared else []
        starts = ["", *("/".join(parts[:n]) + "/" for n in range(1, len(parts) + 1))]
        names = frozenset(name.removeprefix(start) for start in starts for name in self.names)
        return names | {f"{posixpath.basename(path)}/{name}" for path in self.paths for name in self.names}

    @cached_property
    def stems(self) -> frozenset[str]:
        return frozenset(posixpath.splitext(name)[0] for name in self.names)


@dataclass(frozen=True)
class Shards:
    """Tars whose members of one name are one sample (`assets.sources.webdataset`)."""

    paths: tuple[str, ...]  # globs, or names, relative to the folder that was looked at
    names: frozenset[str]  # of the tars
    suffixes: frozenset[str]  # of the members, without dot

    def of(self, modality: str) -> list[str]:
        return [suffix for suffix in sorted(self.suffixes) if _modality(f"x.{suffix}") == modality]


@dataclass(frozen=True)
class Cues:
    """Subtitles or annotations: files that say of a recording each what is said when."""

    pattern: str  # a glob, relative to the folder that was looked at
    stems: frozenset[str]  # names below where the glob starts, without suffix

    def fits(self, media: Media) -> bool:
        """Whether most recordings have a file of their name."""
        return len(media.stems & self.stems) >= _MATCH * len(media.stems)


@dataclass(frozen=True)
class Table:
    """The first rows of a table, or of one of a database."""

    path: str
    rows: Sequence[dict[str, str | None]]
    database: str | None = None  # that of SQLite in which it lies, which `query` asks for it
    query: str = ""
    media: Mapping[str, str] = field(default_factory=dict)  # column of a database that holds them -> modality

    @cached_property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for row in self.rows for name in row))

    def values(self, column: str) -> list[str]:
        """Those that are there."""
        return [value for row in self.rows if (value := row.get(column))]

    def is_unique(self, column: str) -> bool:
        values = self.values(column)
        return len(values) == len(self.rows) == len(set(values))

    def matching(self, wanted: Iterable[str]) -> str | None:
        """The column that says most of `wanted`, if it says little else."""
        known = frozenset(wanted)
        shares = {}
        for column in self.columns:
            if values := self.values(column):
                found = sum(posixpath.normpath(value.replace("\\", "/")) in known for value in values)
                shares[column] = found / len(values)
        best = max(shares, key=shares.__getitem__, default=None)
        return best if best is not None and shares[best] >= _MATCH else None

    @staticmethod
    def called(names: Sequence[str], among: Sequence[str]) -> str | None:
        """The first column that is called like one of `names`, the whole name before a part of it."""
        for whole in (True, False):
            for name in names:
                for column in among:
                    if name == column.lower() or (not whole and name in re.split(r"[^a-z]+", column.lower())):
                        return column
        return None


class Contents(NamedTuple):
    """What lies below a folder."""

    media: list[Media]
    tables: list[Table]
    shards: Shards | None
    saved: list[Saved]
    cues: list[Cues]
    notes: list[str]  # what looks like one of them, and why it is none


def look(folder: Path) -> Contents:
    notes: list[str] = []
    names = _below(folder)
    media, held = _media(folder, folder, notes), _held(folder, names, notes)
    shards = {name: members for name, members in held.items() if _is_shard(name, members)}
    media += _archives({name: members for name, members in held.items() if name not in shards}, notes)
    tables = [table for name in names if (table := _read(folder, name, notes))]
    for query in queries(folder, names, _ROWS, notes):
        path = f"{query.database}: {query.text}"
        tables.append(Table(path, query.rows, query.database, query.text, query.media))
    return Contents(media, tables, _as_shards(shards), saved_sets(folder, names, notes), _cues(names), notes)


def _media(folder: Path, root: Path, notes: list[str]) -> list[Media]:
    """The media below a folder: the folder as a whole where it has one modality, else what its folders have."""
    names = _below(folder)
    kinds = {name: modality for name in names if (modality := _modality(name))}
    path = folder.relative_to(root).as_posix()
    found: list[Media] = []
    if folder != root and len(set(kinds.values())) == 1:
        found.append(Media((path,), next(iter(kinds.values())), frozenset(kinds)))
    elif kinds:
        children = {name.partition("/")[0] for name in kinds if "/" in name}
        for child in sorted(children):
            found += _media(folder / child, root, notes)
        for modality in sorted(set(kinds.values())):
            loose = frozenset(name for name in kinds if "/" not in name and kinds[name] == modality)
            suffixes = sorted({Path(name).suffix for name in loose})
            if len(loose) == 1:
                notes.append(f"{next(iter(loose))} is the only file of its kind")
            elif loose:
                paths = (f"{path}/*{suffix}".removeprefix("./") for suffix in suffixes)
                found.append(Media(tuple(paths), modality, loose))
    return found


def _held(root: Path, names: Iterable[str], notes: list[str]) -> dict[str, list[str]]:
    """Archive -> its members."""
    found = {}
    for name in names:
        try:
            if kind := archive_kind(name):
                found[name] = [entry.key or "" for entry in members(locate(str(root / name)), kind)]
        except SourceError as error:
            notes.append(str(error).replace(f"{root}/", ""))
    return found


def _is_shard(name: str, members: Sequence[str]) -> bool:
    """Whether most samples of a tar have several members, one of them of a modality."""
    parts = [part for member in members if (part := sample_of(member))]
    samples = {sample for sample, _ in parts}
    is_media = any(_modality(f"x.{suffix}") for _, suffix in parts)
    return archive_kind(name) == "tar" and is_media and 2 * len(parts) >= 3 * len(samples)


def _as_shards(tars: Mapping[str, Sequence[str]]) -> Shards | None:
    if not tars:
        return None
    suffixes = {part[1] for members in tars.values() for member in members if (part := sample_of(member))}
    patterns = Counter(re.sub(r"\d+", "*", name) for name in tars)
    paths = {pattern if patterns[pattern := re.sub(r"\d+", "*", name)] > 1 else name for name in tars}
    return Shards(tuple(sorted(paths)), frozenset(tars), frozenset(suffixes))


def _archives(archives: Mapping[str, Sequence[str]], notes: list[str]) -> list[Media]:
    found: dict[tuple[str, str], dict[str, frozenset[str]]] = {}
    for name, held in archives.items():
        kinds = Counter(modality for member in held if (modality := _modality(member)))
        if not kinds:
            notes.append(f"{name} holds neither of {', '.join(MODALITIES.names())}")
            continue
        modality, count = kinds.most_common(1)[0]
        if count < len(held):
            notes.append(f"{name}: only {count} of its {len(held)} files are {modality}")
        shards = (re.sub(r"\d+", "*", name), modality)
        found.setdefault(shards, {})[name] = frozenset(member for member in held if _modality(member) == modality)
    # Archives whose names differ in a number are parts of one.
    return [
        Media((pattern if len(parts) > 1 else next(iter(parts)),), modality, frozenset().union(*parts.values()))
        for (pattern, modality), parts in found.items()
    ]


def _cues(names: Iterable[str]) -> list[Cues]:
    """Those of one folder and suffix together, and those of the folders within one."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name in names:
        stem, suffix = posixpath.splitext(name)
        if suffix.lower() in _CUES:
            groups.setdefault((name.partition("/")[0] if "/" in name else "", suffix), []).append(stem)
    found = []
    for (top, suffix), stems in groups.items():
        folders = {posixpath.dirname(stem) for stem in stems}
        start, within = (folders.pop(), "*") if len(folders) == 1 else (top, "**/*")
        below = frozenset(posixpath.relpath(stem, start or ".") for stem in stems)
        found.append(Cues(posixpath.join(start, within + suffix), below))
    return found


def _below(folder: Path) -> list[str]:
    """Names of the first files below a folder, relative to it; hidden ones are none."""
    found: list[str] = []
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        place = Path(where).relative_to(folder)
        found += [(place / name).as_posix() for name in sorted(files) if not name.startswith(".")]
        if len(found) >= _FILES:
            break
    return found[:_FILES]


def _modality(name: str) -> str | None:
    """What a file is by its suffix."""
    path = Path(name.lower())
    if path.stem in _NO_ITEMS:
        return None
    return next((m for m in MODALITIES.names() if path.suffix in MODALITIES.load(m).file_suffixes), None)


def _read(root: Path, name: str, notes: list[str]) -> Table | None:
    rows: list[dict[str, str | None]] = []
    if not name.lower().endswith(_TABLES):
        return None
    try:
        for record in read_table(root / name):
            if record.problem is None:
                rows.append(record.values)
            if len(rows) == _ROWS:
                break
    except SourceError as error:
        notes.append(str(error).replace(f"{root}/", ""))
    return Table(name, rows) if rows else None


def identifier(name: str) -> str:
    """A name in lower case, digits and _; empty where nothing of it is left."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
