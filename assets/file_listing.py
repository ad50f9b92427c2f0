"""What `files` names: a folder, a glob, an archive, one file, or several of these, listed as entries."""

import glob
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from assets.archives import Visit, archive_kind, members
from assets.remote_settings import RemoteSettings
from assets.sources.base import Entry, SourceError
from assets.storage import Location, locate

Entries = list[Entry]


class _Place(NamedTuple):
    """One name of `files`; `within` says which members, where it goes on behind an archive: photos.zip/train/*.png."""

    name: str
    location: Location
    within: str

    @classmethod
    def of(cls, name: str, root: Path, access: RemoteSettings) -> "_Place":
        parts = name.split("/")
        for n, part in enumerate(parts[:-1], 1):
            if archive_kind(part) and not (outer := locate("/".join(parts[:n]), root, access)).is_folder():
                return cls("/".join(parts[:n]), outer, "/".join(parts[n:]).rstrip("/"))
        return cls(name, locate(name, root, access), "")

    def __str__(self) -> str:
        return f"{self.location}/{self.within}" if self.within else str(self.location)

    @property
    def is_glob(self) -> bool:
        return self.location.globs and glob.has_magic(self.name)


class FileListing:
    """The places that `files` names. Where all that a folder or a glob holds are archives, the members of all of them
    are what is listed; an archive among other files is refused. A name may go on in archives, as in a folder.

    Args:
        names: paths (relative to `root`) or URLs.
        encoding: of names of members that do not say theirs.
        follow_links: links that leave a folder are followed, too, and not refused.
        access: how URLs are reached.
    """

    def __init__(
        self, names: Sequence[str], root: Path, encoding: str, follow_links: bool, access: RemoteSettings
    ) -> None:
        self._places = [_Place.of(name, root, access) for name in names]
        self._encoding, self._follow_links, self._access = encoding, follow_links, access

    def __str__(self) -> str:
        return ", ".join(map(str, self._places))

    def exist(self) -> bool:
        """Whether each is there; a glob, which may match nothing, counts as there."""
        try:
            return all(place.is_glob or place.location.exists() for place in self._places)
        except OSError as error:
            raise SourceError(f"{self}: cannot be listed: {error}") from error

    def entries(self, archives: Collection[str] | None = None) -> Entries:
        """Everything that is listed, sorted by name; keys are paths below the folder or in the archive.

        Args:
            archives: URIs of those whose members are listed, where there is nothing but archives; null: all.
        """
        entries = [entry for place in self._places for entry in self._listed(place, archives)]
        return sorted(entries, key=lambda entry: (entry.key or "", entry.uri))

    def shards(
        self, visit: Visit | None = None, only: Collection[str] | None = None
    ) -> Iterator[tuple[Entry, Entries]]:
        """Each tar with its members, in the order of the names; without any, what is refused, such as another file.

        Args:
            only: URIs of those that are given; null: all.

        Raises:
            SourceError: nothing is there, or none of it can be read.
        """
        files = [(entry, place) for place in self._places for entry in self._files(place)]
        readable = only is not None
        for shard, place in sorted(files, key=lambda file: (file[0].key or "", file[0].uri)):
            if only is not None and shard.uri not in only:
                continue
            if shard.reason is None and archive_kind(shard.uri) not in ("tar", "compressed tar"):
                shard.refuse("unsupported", "no tar; name the shards by a glob, such as shards/*.tar")
            listed = _within(self._members(shard, visit), place.within)
            readable = readable or shard.reason is None
            yield shard, listed if shard.reason is None else []
        if files and not readable:
            raise SourceError(f"{self}: none of its {len(files)} shards can be read: {files[0][0].message}")

    def archives(self) -> Entries:
        """Those whose members are listed."""
        files = [entry for place in self._places for entry in self._files(place)]
        return [entry for entry in files if entry.reason is None and archive_kind(entry.uri)]

    def folders(self) -> list[tuple[str, str]]:
        """The folders that names may start from: as the project file has them, and as entries do."""
        locations = [place.location for place in self._places]
        return [(_fixed(location.given), _fixed(location.uri)) for location in locations]

    def files(self) -> Entries:
        """The files that lie there; archives are not opened."""
        return [entry for place in self._places for entry in self._files(place)]

    def signature(self) -> list[tuple[str, int, str | int]]:
        """Facts that change when anything listed does."""
        return [(e.uri, e.size, e.reason or e.version) for e in sorted(self.files(), key=lambda entry: entry.uri)]

    def changed(self, read: Mapping[str, str | int]) -> list[str]:
        """Which of the files that have been read are not there any more as they were listed.

        Args:
            read: URI -> `Entry.version`.
        """
        watched = [place for place in self._places if place.location.watched]
        now = {entry.uri: entry.version for place in watched for entry in self._files(place)} if read else {}
        starts = tuple(_fixed(place.location.uri) for place in watched)
        return [uri for uri, version in read.items() if uri.startswith(starts) and now.get(uri) != version]

    def _files(self, place: _Place) -> Entries:
        """The files that lie there; archives are files."""
        location = place.location
        try:
            if location.is_folder():
                return location.files(self._follow_links)
            if location.is_file():
                return [location.entry()]
            if place.is_glob:
                return location.matches(self._follow_links)[1]
        except OSError as error:
            raise SourceError(f"{place}: cannot be listed: {error}") from error
        raise SourceError(f"{location}: no such file or folder; correct `files` in the project file")

    def _listed(self, place: _Place, archives: Collection[str] | None) -> Entries:
        entries = self._files(place)
        if archives is not None:
            entries = [entry for entry in entries if entry.uri in archives]
        if [entry.uri for entry in entries] == [place.location.uri]:  # the file itself
            kind = archive_kind(place.name)
            return _within(members(place.location, kind, self._encoding), place.within) if kind else entries
        kinds = [archive_kind(entry.uri) for entry in entries if entry.reason is None]
        if not kinds or not all(kinds):
            return [_refused_archive(entry) for entry in entries]
        listed = [member for entry in entries for member in self._members(entry)]
        if listed and archives is None and all(entry.reason is not None and entry.member is None for entry in listed):
            raise SourceError(f"{place}: none of its {len(listed)} archives can be read: {listed[0].message}")
        return _within(listed, place.within)

    def _members(self, archive: Entry, visit: Visit | None = None) -> Entries:
        """Of one archive of several, which is what is refused where it cannot be read."""
        if archive.reason is not None:
            return [archive]
        kind = archive_kind(archive.uri)
        assert kind is not None
        try:
            return members(locate(archive.uri, None, self._access), kind, self._encoding, visit)
        except SourceError as error:
            archive.reason, archive.message = "corrupt", str(error)
            return [archive]


def _refused_archive(entry: Entry) -> Entry:
    """One among other files, of which nobody said that its members are wanted; another file as it is."""
    if entry.reason is None and archive_kind(entry.uri):
        entry.refuse("unsupported", "an archive among other files; name it under `files`, too, or by a glob of its own")
    return entry


def _within(entries: Entries, pattern: str) -> Entries:
    """The members below a folder of the archive, or that match a glob, with keys that start there; all for "". What is
    refused for its name is kept: nobody can say where it lies."""
    if not pattern:
        return entries
    parts = pattern.split("/") if glob.has_magic(pattern) else [*pattern.split("/"), "**", "*"]
    start = len(_fixed(pattern)) + 1 if _fixed(pattern) else 0
    kept = []
    for entry in entries:
        if entry.member is None or entry.reason in ("bad_name", "outside_root"):
            kept.append(entry)
        elif entry.key == pattern or _fits((entry.key or "").split("/"), parts):
            entry.key = (entry.key or "")[start:] or entry.key
            kept.append(entry)
    return kept


def _fits(path: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether the parts of a path match those of a glob; ** stands for any folders."""
    if not path or not parts:
        return not path and not parts
    if parts[0] == "**":
        return _fits(path, parts[1:]) or _fits(path[1:], parts)
    return fnmatchcase(path[0], parts[0]) and _fits(path[1:], parts[1:])


def _fixed(path: str) -> str:
    """The folder that a glob starts from; another path as it is."""
    parts = path.split("/")
    return "/".join(itertools.takewhile(lambda part: not glob.has_magic(part), parts))
