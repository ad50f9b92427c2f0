"""Which of the listed files a table's cell names, as people write paths; what is not listed is never found."""

import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from urllib.parse import unquote

from assets.sources.base import Entry
from assets.storage import is_outside

_SHOWN = 3
_ABSOLUTE = re.compile(r"/|[A-Za-z]:/|[A-Za-z][A-Za-z0-9+.-]+:/")  # a drive of Windows, or a URL, too


class FileNames:
    """Finds entries by the names that a table gives them.

    A name is a path below the folder (or in the archive) that is listed. It may also start further up, repeating the
    names of the folders above, or further down, leaving out the folders that all files share; start from the folder
    that the table lies in; be absolute, or a URL; be written with the separator of Windows, or in another Unicode form;
    and lack the suffix where one file only fits. Upper and lower case are never taken for each other.

    Args:
        entries: as listed, each with its path as key.
        folders: those that the paths start from, as the project file has them and as `Entry.uri` does.
    """

    def __init__(self, entries: Sequence[Entry], folders: Sequence[tuple[str, str]]) -> None:
        self.prefix = ""  # the shared folders that names were seen to leave out
        self._entries = [entry for entry in entries if entry.reason != "superseded"]
        self._folders = folders
        self._by_path: dict[str, list[Entry]] = defaultdict(list)
        for entry in self._entries:
            self._by_path[entry.key or ""].append(entry)
        self._prefixes = _shared_folders(self._entries)

    def find(self, name: str, table: str) -> list[Entry]:
        """The entries that a name in the table of this URI fits: none, one, or several, and then it has to say more."""
        path = posixpath.normpath(name)
        for prefix in self._prefixes:
            if found := self._by_path.get(prefix + path):
                self.prefix = prefix or self.prefix
                return found
        places = list(dict.fromkeys(self._places(name, table)))
        for index in (self._by_place, self._by_stem):
            for place in places:
                if found := index.get(place):
                    return found
        return []

    def hint(self, name: str) -> str:
        """What is there and might have been meant, as the end of a sentence; empty where nothing is alike."""
        path = posixpath.normpath(_plain(name))
        alike = self._by_lower_stem.get(_lower_stem(path), [])
        if not alike:
            return ""
        case = any(other != path and other.lower() == path.lower() for other in alike)
        shown = " or ".join(repr(other) for other in alike[:_SHOWN])
        return f"; was {shown} meant?" + (" Upper and lower case count" if case else "")

    def is_outside(self, name: str, table: str) -> bool:
        """Whether a name that fits nothing leads out of the folders."""
        folders = [f"{_plain(real)}/" for _, real in self._folders]
        inside = any(place.startswith(folder) for place in self._places(name, table) for folder in folders)
        return is_outside(_plain(name)) and not inside

    def _places(self, name: str, table: str) -> Iterator[str]:
        """All that a name can mean, as full paths in one form, the nearest first."""
        path = _plain(name)
        if _ABSOLUTE.match(path):
            path = _normal(path.removeprefix("file://"))
            yield path
            yield from (real + path[len(given) :] for given, real in self._folders if path.startswith(f"{given}/"))
            return
        for prefix in self._prefixes:
            yield from (_normal(f"{real}/{prefix}{path}") for _, real in self._folders)
        for above in self._above:
            yield _normal(f"{above}/{path}")
        yield _normal(f"{posixpath.dirname(_plain(table))}/{path}")

    @cached_property
    def _above(self) -> list[str]:
        """The folders above those listed, the nearest first."""
        parts = [_plain(real).split("/") for _, real in self._folders]
        above = {"/".join(part[:n]): len(part) - n for part in parts for n in range(1, len(part))}
        return sorted(above, key=lambda folder: above[folder])

    @cached_property
    def _by_place(self) -> dict[str, list[Entry]]:
        """Full path -> entries; an archive stands for a folder of its name, with its suffix or without."""
        places: dict[str, list[Entry]] = defaultdict(list)
        for entry in self._entries:
            uris = [entry.uri] if entry.member is None else [entry.uri, posixpath.splitext(entry.uri)[0]]
            names = [uri if entry.member is None else f"{uri}/{entry.member}" for uri in uris]
            for name in dict.fromkeys(_normal(_plain(name)) for name in names):
                places[name].append(entry)
        return places

    @cached_property
    def _by_stem(self) -> dict[str, list[Entry]]:
        """Full path without suffix -> entries."""
        stems: dict[str, list[Entry]] = defaultdict(list)
        for place, entries in self._by_place.items():
            stems[posixpath.splitext(place)[0]].extend(entries)
        return stems

    @cached_property
    def _by_lower_stem(self) -> dict[str, list[str]]:
        """File name in lower case without folder and suffix -> paths."""
        stems: dict[str, list[str]] = defaultdict(list)
        for entry in self._entries:
            stems[_lower_stem(entry.key or "")].append(entry.key or "")
        return stems


def _lower_stem(path: str) -> str:
    return posixpath.splitext(posixpath.basename(_plain(path)))[0].lower()


def _plain(name: str) -> str:
    """One way to write a name: / between folders, composed Unicode, no space around it, URLs without escapes."""
    name = unicodedata.normalize("NFC", name.strip().replace("\\", "/"))
    return unquote(name) if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name) else name


def _normal(path: str) -> str:
    """Without `.` and `..`; a path that leads above its root gives one that nothing has."""
    scheme, mark, rest = path.rpartition("://")
    return scheme + mark + posixpath.normpath(rest)


def _shared_folders(entries: Sequence[Entry]) -> list[str]:
    """Prefixes that a table may leave out of its names: nothing, then the folders that all files share."""
    folders = {posixpath.dirname(entry.key or "") for entry in entries if entry.reason is None}
    folder = posixpath.commonpath(folders) if folders else ""
    parts = folder.split("/") if folder else []
    return ["", *("/".join(parts[:n]) + "/" for n in range(1, len(parts) + 1))]
