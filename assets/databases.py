"""SQL databases by URL, asked and never written; a password is in the environment, and in no message."""

import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from assets.sources.base import SourceError
from training.credentials import mask
from training.messages import one_line
from training.validation import FORBID_EXTRA

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine

_CONNECT_SECONDS = 10
_SECRET = re.compile("pass|pwd|secret|token|key", re.IGNORECASE)  # in names of what a URL says after ?
_DRIVERS = {"postgresql": "postgresql+psycopg2", "mysql": "mysql+pymysql"}  # where a URL names none
_URL = "postgresql://USER:PASSWORD@HOST/NAME, mysql://... or sqlite:///FILE"


@dataclass(frozen=True)
class DatabaseUrl:
    """Where a database is: the URL, without a password, or the variable of the environment that holds it."""

    __pydantic_config__ = FORBID_EXTRA
    url: str | None = None
    env: str | None = None

    def __str__(self) -> str:
        return self.url or f"${self.env}"

    def check(self) -> None:
        """Raises ValueError; the message follows the name of the source."""
        if (self.url is None) == (self.env is None):
            raise ValueError("needs the url of its database: `url: {env: NAME}` reads it from the environment")
        if self.url is not None and _secrets(_parsed(self.url)):
            raise ValueError("has a url with a password: this file is shared; write `url: {env: NAME}`, and set NAME")


def _parsed(url: str) -> "URL":
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(re.sub("^postgres://", "postgresql://", url.strip()))
        return parsed.set(drivername=_DRIVERS.get(parsed.drivername, parsed.drivername))
    except (ArgumentError, ValueError):  # which would show it
        raise ValueError(f"has a url of no database: expected {_URL}") from None


def _secrets(url: "URL") -> list[str]:
    """What nobody may read of a URL."""
    said = [value for name, value in url.query.items() if _SECRET.search(name)]
    values = [str(url.password or ""), *(v for value in said for v in ([value] if isinstance(value, str) else value))]
    return [value for value in values if value]


class Database:
    """One database, connected to when it is first asked. Several threads may share it; it pickles as closed.

    Args:
        root: folder that the path of a SQLite file starts from.
    """

    def __init__(self, url: DatabaseUrl, root: Path) -> None:
        self._where, self._root = url, root

    def __reduce__(self) -> Any:
        return Database, (self._where, self._root)

    @functools.cached_property
    def _given(self) -> "URL":
        """Raises SourceError."""
        env = self._where.env
        text = self._where.url if env is None else os.environ.get(env)
        if not text:
            raise SourceError(f"the environment has no {env}, which is to hold the URL of a database: set it to {_URL}")
        try:
            return _parsed(text)
        except ValueError as error:
            raise SourceError(f"{self._where} {error}") from None

    @functools.cached_property
    def _file(self) -> Path | None:
        """Of SQLite."""
        url = self._given
        return (self._root / (url.database or "")).resolve() if url.get_backend_name() == "sqlite" else None

    def exists(self) -> bool:
        """Whether the file of SQLite is there; of servers nobody knows before they are asked."""
        return self._file is None or self._file.is_file()

    @functools.cached_property
    def place(self) -> str:
        """What names it in tables and messages: a file, or a URL without user, password and options."""
        url = self._given
        port = f":{url.port}" if url.port else ""
        server = f"{url.get_backend_name()}://{url.host or ''}{port}/{url.database or ''}"
        return server if self._file is None else str(self._file)

    @functools.cached_property
    def _engine(self) -> "Engine":
        from sqlalchemy import create_engine, event
        from sqlalchemy.exc import SQLAlchemyError

        url, timeout = self._given, {"connect_timeout": _CONNECT_SECONDS}
        if self._file is not None:
            if not self._file.is_file():
                raise SourceError(f"{self._file}: no such database; correct the path in its url")
            # so that it is only read, and not made
            url, timeout = url.set(database=f"file:{quote(str(self._file))}", query={"mode": "ro", "uri": "true"}), {}
        try:
            engine = create_engine(url, pool_pre_ping=True, connect_args=timeout)
            if engine.dialect.name in ("mysql", "mariadb"):
                event.listen(engine, "connect", _only_read)
            return engine
        except ImportError as error:
            raise SourceError(f"{self.place}: needs the Python package {error.name}: install it") from None
        except SQLAlchemyError as error:
            raise SourceError(f"{self.place}: cannot be opened: {self._words(error)}; expected {_URL}") from None

    def _connect(self) -> "Connection":
        connection = self._engine.connect()
        is_postgres = connection.dialect.name == "postgresql"
        return connection.execution_options(postgresql_readonly=True) if is_postgres else connection

    def rows(self, query: str, at_once: int) -> Iterator[tuple[Sequence[str], Sequence[Any]]]:
        """The names of the columns, which are the same object each time, and the values of each row.

        Args:
            at_once: rows that are held at most.

        Raises:
            SourceError: it cannot be reached, the query fails, or the connection is lost.
        """
        from sqlalchemy.exc import SQLAlchemyError

        count, running = 0, False
        try:
            with self._connect() as connection:
                running = True
                streamed = connection.execution_options(stream_results=True, max_row_buffer=at_once)
                result = streamed.execute(_text(query))
                names = tuple(result.keys())
                for row in result:
                    yield names, row
                    count += 1
        except SQLAlchemyError as error:
            if not running:
                problem, advice = "cannot be reached", "see that it runs, and that its URL is right; run again"
            elif getattr(error, "connection_invalidated", False):
                problem, advice = f"the connection was lost after {count:,} rows", "nothing was written: run again"
            else:
                problem, advice = "the query fails", "correct `query` in the project file"
            raise SourceError(f"{self.place}: {problem} ({self._words(error)}): {advice}") from None

    def cell(self, query: str, column: str, named: Mapping[str, Any]) -> Any:
        """The value of a column in the row of the query whose columns `named` hold these values.

        Raises:
            OSError: it cannot be read.
            ValueError: there is no such row.
        """
        from sqlalchemy.exc import DBAPIError, SQLAlchemyError

        for attempt in (1, 2):
            try:
                with self._connect() as connection:
                    name_of = connection.dialect.identifier_preparer.quote
                    where = " AND ".join(f"q.{name_of(name)} = :v{n}" for n, name in enumerate(named))
                    statement = f"SELECT q.{name_of(column)} FROM ({_escaped(query)}\n) AS q WHERE {where}"
                    values = {f"v{n}": value for n, value in enumerate(named.values())}
                    row = connection.execute(_text(statement, is_escaped=True), values).first()
            except SQLAlchemyError as error:
                if attempt == 1 and isinstance(error, DBAPIError) and error.connection_invalidated:
                    continue
                raise OSError(self._words(error)) from None
            if row is None:
                raise ValueError("the row is gone; run again")
            return row[0]

    def _words(self, error: Exception) -> str:
        """What a driver says, without what it may show of the URL."""
        said = str(getattr(error, "orig", None) or error)
        for secret in _secrets(self._given):
            said = said.replace(secret, "***")
        return one_line(mask(said))


def _only_read(connection: Any, _record: object) -> None:
    """Of MySQL, which knows no such thing as an option of a connection."""
    with connection.cursor() as cursor:
        cursor.execute("SET SESSION TRANSACTION READ ONLY")


def _escaped(query: str) -> str:
    """A query that others end, without what SQLAlchemy would take for parameters of it."""
    return query.strip().rstrip(";").replace(":", r"\:")


def _text(query: str, is_escaped: bool = False) -> Any:
    from sqlalchemy import text

    return text(query if is_escaped else _escaped(query))
