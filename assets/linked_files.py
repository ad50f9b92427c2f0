"""Files that a table names by URL: a web server lists none, so each is asked for."""

import itertools
import posixpath
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote, unquote, urlsplit

from assets.archives import archive_kind
from assets.formats.base import Record
from assets.sources.base import Entry
from assets.storage import PrivateAddressError, is_outside, is_web, locate
from assets.table_settings import TableSettings
from training.credentials import MASK, mask

_AT_ONCE = 16  # requests
_BATCH = 512  # rows


class LinkedFiles:
    """The files of the URLs in a column. What signs a URL is no part of the URI that the lake keeps of it: to read it
    again, the table is read again.

    Args:
        base: what all of them start with: https://host/folder, or https:// for any.
        column: of the table; a name that is no URL is one below `base`.
        records: reads the table.
    """

    def __init__(self, base: str, column: str, access: TableSettings, records: Callable[[], Iterator[Record]]) -> None:
        self._base, self.column, self._access, self._records = base, column, access, records
        self._urls: dict[tuple[str, int | None], str] = {}  # URI and row -> URL, where they differ
        self._is_read = False  # all of the table, for these
        self._first: dict[str, str] = {}  # URI -> the first URL that it stands for

    @classmethod
    def of(
        cls, files: Sequence[str], column: str, access: TableSettings, records: Callable[[], Iterator[Record]]
    ) -> "LinkedFiles | None":
        """None where `files` are to be listed."""
        if len(files) != 1 or not is_web(files[0]) or archive_kind(files[0]):
            return None
        return cls(files[0], column, access, records)

    def entries(self) -> Iterator[tuple[Record, Entry | None]]:
        """Each row and what the server says of its file; null where the row names none within `base`."""
        records = self._records()
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            while batch := list(itertools.islice(records, _BATCH)):
                for record, entry in zip(batch, pool.map(self._entry, batch), strict=True):
                    if entry is not None:
                        self._tell_apart(entry, record)
                    yield record, entry
        self._is_read = True

    def _tell_apart(self, entry: Entry, record: Record) -> None:
        """An entry whose URI stands for another URL already is read by itself, and anew in each run."""
        url = self._urls.get((entry.uri, record.line), entry.uri)
        if self._first.setdefault(entry.uri, url) != url:
            entry.offset, entry.mtime, entry.etag = record.line, None, None

    def url(self, entry: Entry) -> str:
        """Where an entry, or what the manifest has kept of one, is to be asked for."""
        if MASK in entry.uri and not self._is_read and (entry.uri, entry.row) not in self._urls:
            for record in self._records():
                self._url(record)
            self._is_read = True
        return self._urls.get((entry.uri, entry.row), entry.uri)

    def _url(self, record: Record) -> str | None:
        name = (record.values.get(self.column) or "").strip()
        if not is_web(name):
            if not name or is_outside(name) or not urlsplit(self._base).netloc:
                return None
            name = f"{self._base.rstrip('/')}/{quote(name)}"
        elif not self._holds(name):
            return None
        if (uri := mask(name)) != name:
            self._urls[uri, record.line] = name
        return name

    def _holds(self, url: str) -> bool:
        """Whether a URL is one below `base`; who logs in there is no part of it."""
        if "\\" in url or not url.isprintable():  # readers of URLs do not agree on what such a one names
            return False
        try:
            parts = urlsplit(url)
        except ValueError:
            return False
        bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        within = bare.startswith(self._base if self._base.endswith("/") else f"{self._base}/")
        return within and ".." not in unquote(parts.path).split("/")

    def _entry(self, record: Record) -> Entry | None:
        if record.problem is not None or (url := self._url(record)) is None:
            return None
        location = locate(url, None, self._access)
        try:
            entry = location.entry()
        except FileNotFoundError:
            return _refused(location.uri, record, "not_found", "no such file")
        except OSError as error:
            why = f"cannot be asked for ({error}); the next run tries again"
            return _refused(location.uri, record, "unreadable", why)
        except PrivateAddressError as error:
            return _refused(location.uri, record, "private_address", str(error))
        folder = unquote(urlsplit(self._base).path).rstrip("/")
        entry.key = unquote(urlsplit(url).path).removeprefix(folder).lstrip("/") or entry.key
        return entry


def _refused(uri: str, record: Record, reason: str, message: str) -> Entry:
    entry = Entry(posixpath.basename(uri), uri).refuse(reason, message)
    entry.message = f"{record.where}: {entry.message}"
    return entry
