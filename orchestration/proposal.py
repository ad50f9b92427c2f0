"""Proposes a project for what lies in a folder: sources, keys and a label are guessed; nothing is written.

A guess is one that a person can check: each is a line of the project file, with a comment that says why.
"""

import posixpath
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from assets.catalog import SEGMENTS
from orchestration.folder_contents import Contents, Cues, Media, Shards, Table, identifier, look
from orchestration.likely_columns import (
    GROUPS,
    KEYS,
    LABELS,
    SPLITS,
    TEXTS,
    label_of,
    path_pattern,
    saved_label,
)
from orchestration.stored_rows import Saved
from training.catalog import MODALITIES

_CLASSES = ("cls", "class")  # members that hold a label
_ENOUGH = 20  # groups, for a split by hash


@dataclass(frozen=True)
class Proposal:
    """Lines of a project file, with comments."""

    sources: list[str]
    align: list[str]
    notes: list[str]  # what was not used, and why
    output: str  # of the model


def propose(folder: Path, prefix: str = "") -> Proposal | None:
    """A project for the media and tables in a folder; None where nothing there could be a source.

    Args:
        prefix: leads from the project file to the folder.
    """
    found = look(folder)
    return _Guess(found, prefix).proposal() if any(found[:-1]) else None


class _Guess:
    """Which table says what of which media, by which key."""

    def __init__(self, found: Contents, prefix: str) -> None:
        self.media, tables, self.shards, self.saved, self.cues, self.notes = found
        self.prefix = prefix
        # The rows of a database may name files without their suffixes, too: they are no table of links.
        self.files = {
            (t.path, m.name): column
            for t in tables
            for m in self.media
            if (column := t.matching(m.named) or (t.matching(m.stems) if t.database else None))
        }
        # The table that names files of the most sources stands for the samples; others are joined to it.
        self.tables = sorted(tables, key=lambda t: (-sum(path == t.path for path, _ in self.files), not self.texts(t)))
        self.main_key = self._key(self.tables[0]) if self.tables else ""
        self.sources: list[str] = []
        self.links: dict[str, str] = {}  # source -> column of the first table that holds its keys
        self.folders: Media | None = None  # whose folders are columns
        self.names: dict[str, str | None] = {}  # source -> its table
        self.taken: dict[str, set[str]] = {}  # table -> columns that sources use
        self.heard: list[Cues] = []  # those that cut a source

    def proposal(self) -> Proposal | None:
        for media in self.media:
            self._add_media(media)
        for table in self.tables:
            self._add_held(table)
        if self.shards:
            self._add_shards(self.shards)
        for saved in self.saved:
            self._add_saved(saved)
        self._add_text()
        if not self.sources:
            return None
        self._add_links()
        unused = [table.path for table in self.tables if table.path not in self.taken]
        self.notes += [f"{path}, which nothing joins to the others" for path in unused]
        self.notes += [
            f"{cues.pattern}, which no recordings are called like" for cues in self.cues if cues not in self.heard
        ]
        lines, output = self._align()
        return Proposal(self.sources, lines, self.notes, output)

    def _joined(self, table: Table) -> str | None:
        """The column that holds the keys of the samples."""
        main = self.tables[0]
        return self.main_key if table is main else table.matching(main.values(self.main_key))

    def _add_media(self, media: Media) -> None:
        files = [self.prefix + path for path in media.paths]
        values = {"modality": media.modality, "files": files[0] if len(files) == 1 else files}
        is_cut = SEGMENTS.load("times").modality == media.modality
        if is_cut and (cues := next((cues for cues in self.cues if cues.fits(media)), None)):
            self._add_cut(media, cues)
            return
        for table in self.tables:
            if file := self.files.get((table.path, media.name)):
                key = self._joined(table) or file
                values |= {"table": table.path, "key": key} | ({} if key == file else {"file": file})
                self._add(media.name, values, f"{file} names its files")
                return
        pattern = path_pattern(media)
        if pattern and not self.tables:
            self.folders = media
            self._add(media.name, {**values, "path": pattern}, "its folders say this")
        else:
            why = "its keys are the names of the files, without suffix"
            self._add(media.name, values, why)

    def _add_cut(self, media: Media, cues: Cues) -> None:
        """Recordings, each cue of which is an item."""
        self.heard.append(cues)
        files = list(media.paths)
        if len(files) == 1 and cues.pattern.startswith(f"{files[0]}/"):  # the folder holds both
            within = "**/*" if any("/" in name for name in media.names) else "*"
            files = sorted({f"{files[0]}/{within}{posixpath.splitext(name)[1]}" for name in media.names})
        files = [self.prefix + path for path in files]
        table = {"table": self.prefix + cues.pattern, "recording": "file", "key": ["file", "number"]}
        values = {"modality": media.modality, "files": files[0] if len(files) == 1 else files}
        self._add(media.name, {**values, "segments": {"kind": "times", **table}}, "these say what is said when")

    def _add_held(self, table: Table) -> None:
        """The media that rows of a database hold."""
        for column, modality in table.media.items():
            if key := self._joined(table):
                values = {"modality": modality, "table": table.path, "column": column, "key": key}
                self._add(identifier(column) or modality, values, f"{column} holds the bytes of media")

    def _add_saved(self, saved: Saved) -> None:
        """A source for each modality of a data set, whose rows are samples."""
        for modality in MODALITIES.names():
            columns = saved.of(modality)
            if MODALITIES.load(modality).is_text:
                columns = [c for c in columns if c != saved_label(saved)]
                named = Table.called(TEXTS, columns)
                columns = [named] if named else columns[:1]
            for column in columns:
                values = {"modality": modality, "kind": "huggingface", "dataset": self.prefix + saved.path}
                self._add(identifier(column) or modality, {**values, "column": column}, "a data set of Hugging Face")

    def _add_shards(self, shards: Shards) -> None:
        """A source for each modality of the samples in WebDataset's tars."""
        files = [self.prefix + path for path in shards.paths]
        where = {"kind": "webdataset", "files": files[0] if len(files) == 1 else files}
        if self._says_split(shards):
            where["path"] = "**/{split}-*"
        for modality in MODALITIES.names():
            if suffixes := shards.of(modality):
                is_text = MODALITIES.load(modality).is_text
                part = {"column": suffixes[0]} if is_text else {"member": suffixes}
                self._add(
                    modality, {"modality": modality, **where, **part}, "the tars hold samples, as WebDataset's do"
                )

    @staticmethod
    def _says_split(shards: Shards) -> bool:
        """Whether their names start with the split: train-000.tar."""
        starts = {name.rpartition("/")[2].partition("-")[0].lower() for name in shards.names if "-" in name}
        return {"train", "test"} <= starts <= SPLITS and all("-" in name.rpartition("/")[2] for name in shards.names)

    def _add_text(self) -> None:
        """The likeliest column of all tables that can be joined."""
        found = [(t, c, key) for t in self.tables for c in self.texts(t) if (key := self._joined(t))]
        found.sort(key=lambda text: text[0].called(TEXTS, [text[1]]) is None)
        if not found:
            return
        modality = next(m for m in MODALITIES.names() if MODALITIES.load(m).is_text)
        table, column, key = found[0]
        others = [f"{other} of {t.path}" for t, other, _ in found[1:3]]
        why = f"{column} reads like text" + (f"; or {', '.join(others)}" if others else "")
        self._add(identifier(column), {"modality": modality, "table": table.path, "column": column, "key": key}, why)

    def _add_links(self) -> None:
        """The first table, where no source needs it and it says something of the files: then its rows are samples."""
        if not self.tables or self.tables[0].path in self.taken or self.tables[0].database:
            return
        main = self.tables[0]
        matched = {media.name: column for media in self.media if (column := main.matching(media.stems))}
        self.links = {name: column for name, column in matched.items() if self.names.get(name, "") is None}
        if self.links:
            self.taken[main.path] = set(self.links.values())

    def _add(self, name: str, values: dict[str, Any], why: str) -> None:
        count = sum(re.sub(r"_\d+$", "", known) == name for known in self.names)
        name = f"{name}_{count + 1}" if count else name
        self.names[name] = values.get("table")
        shown: dict[str, Any] = {"name": name}
        for key, value in values.items():
            shown |= self._place(value) if key == "table" else {key: value}
        self.sources.append(f"{_flow(shown)} # {why}")
        if "table" in values:
            columns = {values[n] for n in ("key", "file", "column") if n in values}
            self.taken.setdefault(values["table"], set()).update(columns)

    def _place(self, path: str) -> dict[str, Any]:
        """What names a table in the project file."""
        table = next(table for table in self.tables if table.path == path)
        if table.database is None:
            return {"table": self.prefix + path}
        return {"kind": "sql", "url": f"sqlite:///{self.prefix}{table.database}", "query": table.query}

    def _key(self, table: Table) -> str:
        """The column that names a sample."""
        files = [file for (path, _), file in self.files.items() if path == table.path]
        stems = [column for media in self.media if (column := table.matching(media.stems))]
        others = [column for column in table.columns if column not in files]
        unique = [column for column in others if table.is_unique(column)]
        # A column that another table has, too, is what joins them.
        shared = [c for c in (*unique, *others) for t in self.tables if t is not table and self._share(t, table, c)]
        named = [c for c in (*unique, *others) if table.called(KEYS, [c])]
        one_file = files if len(files) == 1 else []
        return [*stems, *shared, *one_file, *unique, *files, *named, *table.columns][0]

    def _share(self, one: Table, other: Table, column: str) -> bool:
        """Whether both have a column of that name and mostly the same values, which tell many rows apart."""
        values = set(other.values(column))
        return one.matching(values) == column and len(values) > 2 and bool(other.called(KEYS, [column]))

    def texts(self, table: Table) -> list[str]:
        """The columns that read like text, the likeliest first."""
        files = {file for (path, _), file in self.files.items() if path == table.path}
        order = {}
        for column in table.columns:
            values = table.values(column)
            if column in files or len(set(values)) < 2 or table.called(LABELS, [column]):
                continue
            words = sum(len(value.split()) for value in values) / len(values)
            odd = sum(value[0] in "{[" or "://" in value for value in values)
            named = table.called(TEXTS, [column]) is not None
            if odd * 2 < len(values) and words >= (2 if named else 4):
                order[column] = (not named, -words * len(set(values)))
        return sorted(order, key=order.__getitem__)

    def _align(self) -> tuple[list[str], str]:
        """Lines of `align`, and the output that fits the label."""
        tables = [table for table in self.tables if table.path in self.taken]
        free = [(t, column) for t in tables for column in t.columns if column not in self.taken[t.path]]
        splits = [(t, c) for t, c in free if {v.lower() for v in t.values(c)} <= SPLITS]
        groups = [(t, c) for t in tables for c in t.columns if t.called(GROUPS, [c]) and not t.is_unique(c)]
        label = label_of([column for column in free if column not in (*splits, *groups)])
        lines, output = (
            ["# label: answer # the column that holds what the model shall answer: none looked like it"],
            "text",
        )
        if label:
            count, rows = len(set(label[0].values(label[1]))), len(label[0].rows)
            lines = [f"label: {self._column(*label)} # {count} different answers in {rows} rows"]
            output = "class" if count <= max(20, rows // 10) else "text"
        elif pattern := self.folders and path_pattern(self.folders):
            if "{label}" in pattern:
                lines, output = ["label: label # the folder's name"], "class"
            if "{split}" in pattern:
                return [*lines, "split: {column: split}"], output
        if self.shards and not label:
            named = [column for column in _CLASSES if column in self.shards.suffixes]
            if named:
                lines, output = [f"label: {named[0]} # each sample has a .{named[0]}"], "class"
            elif "json" in self.shards.suffixes:
                lines = ["# label: answer # which name in the .json of each sample holds what the model shall answer?"]
            if self._says_split(self.shards):
                return [*lines, "split: {column: split}"], output
        if self.heard and not label:
            lines, output = ["label: text # what is said, as the files with the times have it"], "text"
        if self.saved and not label:
            saved = self.saved[0]
            if (column := saved_label(saved)) is not None:
                lines = [f"label: {_flow(column)} # of type {saved.types[column]}"]
                output = "number" if saved.types[column].startswith("float") else "class"
            if {"train", "test"} <= {split.lower() for split in saved.splits} <= SPLITS:
                return [*lines, "split: {column: split}"], output
        if self.links:
            table = _flow(self.prefix + self.tables[0].path)
            lines[:0] = [f"table: {table} # a row a sample", f"columns: {_flow(self.links)} # they hold the keys"]
        if groups:
            count = len(set(groups[0][0].values(groups[0][1])))
            line = f"group: [{self._column(*groups[0])}] # nobody of it stands on two sides of a split"
            lines.append(line if count >= _ENOUGH else f"# {line}; {count} values are few for that")
        if whole := [(t, c) for t, c in splits if {"train", "test"} <= {v.lower() for v in t.values(c)}]:
            lines.append(f"split: {{column: {self._column(*whole[0])}}} # it says train and test")
        else:
            lacking = f"; {splits[0][1]} has no test rows" if splits else ""
            lines.append("split: {train: 0.8, validation: 0.1} # the rest is the test set" + lacking)
        return lines, output

    def _column(self, table: Table, column: str) -> str:
        """As `align` names it: with its source, where another table has a column of that name."""
        source = next((name for name, path in self.names.items() if path == table.path), None)
        is_only = sum(column in t.columns for t in self.tables if t.path in self.taken) == 1
        return _flow(column if is_only or source is None else f"{source}.{column}")


def _flow(value: object) -> str:
    """A value as YAML, on one line."""
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True).split("\n")[
        0
    ]
