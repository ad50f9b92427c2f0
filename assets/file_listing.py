"""What `files` names: a folder, a glob, an archive, one file, or several of these, listed as entries."""

import glob
import itertools
from collections.abc import Sequence
from pathlib import Path

from assets.archives import archive_kind, members
from assets.sources.base import Entry, SourceError
from assets.storage import Location, locate

Entries = list[Entry]


class FileListing:
    """The places that `files` names. Where all that a folder or a glob holds are archives, the members of all of them
    are what is listed; an archive among other files is a file like them.

    Args:
        names: paths (relative to `root`) or URLs.
        encoding: of names of members that do not say theirs.
        follow_links: links that leave a folder are followed, too, and not refused.
    """

    def __init__(self, names: Sequence[str], root: Path, encoding: str, follow_links: bool) -> None:
        self._names, self._encoding, self._follow_links = names, encoding, follow_links
        self._locations = [locate(name, root) for name in names]

    def __str__(self) -> str:
        return ", ".join(str(location) for location in self._locations)

    def exist(self) -> bool:
        """Whether each is there; a glob, which may match nothing, counts as there."""
        return all(glob.has_magic(name) or place.exists() for name, place in self._places())

    def entries(self) -> Entries:
        """Everything that is listed, sorted by name; keys are paths below the folder or in the archive."""
        entries = [entry for name, place in self._places() for entry in self._listed(name, place)]
        return sorted(entries, key=lambda entry: (entry.key or "", entry.uri))

    def folders(self) -> list[tuple[str, str]]:
        """The folders that names may start from: as the project file has them, and as entries do."""
        return [(_fixed(place.given), _fixed(place.uri)) for place in self._locations]

    def signature(self) -> list[tuple[str, int, str | int]]:
        """Facts that change when anything listed does; archives are not opened."""
        entries = [entry for name, place in self._places() for entry in self._files(name, place)]
        return [(e.uri, e.size, e.reason or e.version) for e in sorted(entries, key=lambda entry: entry.uri)]

    def _places(self) -> Sequence[tuple[str, Location]]:
        return list(zip(self._names, self._locations, strict=True))

    def _files(self, name: str, place: Location) -> Entries:
        """The files that lie there; archives are files."""
        try:
            if place.is_folder():
                return place.files(self._follow_links)
            if place.is_file():
                return [place.entry()]
            if glob.has_magic(name):
                return place.matches(self._follow_links)[1]
        except OSError as error:
            raise SourceError(f"{place}: cannot be listed: {error}") from error
        raise SourceError(f"{place}: no such file or folder; correct `files` in the project file")

    def _listed(self, name: str, place: Location) -> Entries:
        entries = self._files(name, place)
        if place.is_file():
            kind = archive_kind(str(place))
            return members(place, kind, self._encoding) if kind else entries
        kinds = [archive_kind(entry.uri) for entry in entries if entry.reason is None]
        if not kinds or not all(kinds):
            return entries
        listed = [member for entry in entries for member in self._members(entry)]
        if all(entry.reason is not None and entry.member is None for entry in listed):
            raise SourceError(f"{place}: none of its {len(listed)} archives can be read: {listed[0].message}")
        return listed

    def _members(self, archive: Entry) -> Entries:
        """Of one archive of several, which is what is refused where it cannot be read."""
        if archive.reason is not None:
            return [archive]
        kind = archive_kind(archive.uri)
        assert kind is not None
        try:
            return members(locate(archive.uri), kind, self._encoding)
        except SourceError as error:
            archive.reason, archive.message = "corrupt", str(error)
            return [archive]


def _fixed(path: str) -> str:
    """The folder that a glob starts from; another path as it is."""
    parts = path.split("/")
    return "/".join(itertools.takewhile(lambda part: not glob.has_magic(part), parts))
