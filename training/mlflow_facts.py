"""What MLflow knows of the models and runs of a project, read without MLflow, which takes seconds to load: in its
SQLite database by the tables, of its server by the REST API. Where that does not do, MLflow itself is asked.

Whoever writes, or wants more, asks MLflow (`training.mlflow_store`).
"""

import contextlib
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.mlflow_store import client, follow, local_path

_SQLITE = "sqlite:///"
_SECONDS = 30  # that a server may take to answer
_PAGE = 1000


class _Elsewhere(Exception):
    """MLflow itself has to be asked."""


@dataclass(frozen=True)
class Version:
    """Of the registered model."""

    number: int
    aliases: list[str]
    run_id: str | None
    tags: dict[str, str]


@dataclass(frozen=True)
class Run:
    run_id: str
    tags: dict[str, str]


class Facts(ABC):
    """What MLflow at `uri` knows."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    @abstractmethod
    def versions(self, project: str) -> list[Version]:
        """Those of the project's model, the oldest first."""

    @abstractmethod
    def runs(self, project: str) -> list[Run]:
        """Those of the project, the newest first."""

    @abstractmethod
    def artifact(self, run_id: str, name: str) -> bytes | None:
        """A file that a run logged; None where there is none, or no such run."""


def versions(uri: str, project: str) -> list[Version]:
    """See `Facts`. Raises ConnectionError: nothing answers there."""
    return _asked(uri, lambda facts: facts.versions(project))


def runs(uri: str, project: str) -> list[Run]:
    return _asked(uri, lambda facts: facts.runs(project))


def artifact(uri: str, run_id: str, name: str) -> bytes | None:
    return _asked(uri, lambda facts: facts.artifact(run_id, name))


def _asked(uri: str, ask: Any) -> Any:
    light = DatabaseFacts if uri.startswith(_SQLITE) else ServerFacts if uri.startswith("http") else None
    if light is not None:
        # A database of another version of MLflow, a server that asks who it is, files in a bucket.
        with contextlib.suppress(_Elsewhere, sqlite3.Error):
            return ask(light(uri))
    return ask(ClientFacts(uri))


class DatabaseFacts(Facts):
    """By the tables of a SQLite database."""

    def versions(self, project: str) -> list[Version]:
        there = "name = ? AND workspace = 'default'"
        rows = self._rows(
            "SELECT version, run_id FROM model_versions "
            f"WHERE {there} AND current_stage <> 'Deleted_Internal' ORDER BY version",
            project,
        )
        named = self._rows(f"SELECT alias, version FROM registered_model_aliases WHERE {there} ORDER BY alias", project)
        tags = self._rows(f"SELECT version, key, value FROM model_version_tags WHERE {there}", project)
        return [
            Version(
                number,
                [alias for alias, version in named if int(version) == number],
                run_id,
                {key: value for version, key, value in tags if version == number},
            )
            for number, run_id in rows
        ]

    def runs(self, project: str) -> list[Run]:
        found: dict[str, dict[str, str]] = {}
        for run_id, key, value in self._rows(
            "SELECT r.run_uuid, t.key, t.value FROM runs r JOIN experiments e USING (experiment_id) "
            "LEFT JOIN tags t ON t.run_uuid = r.run_uuid "
            "WHERE e.name = ? AND e.workspace = 'default' AND r.lifecycle_stage = 'active' "
            "ORDER BY r.start_time DESC, r.run_uuid",
            project,
        ):
            found.setdefault(run_id, {}).update({} if key is None else {key: value})
        return [Run(run_id, tags) for run_id, tags in found.items()]

    def artifact(self, run_id: str, name: str) -> bytes | None:
        found = self._rows("SELECT artifact_uri FROM runs WHERE run_uuid = ?", run_id)
        return _file(found[0][0], name) if found else None

    def _rows(self, query: str, value: str) -> list[tuple[Any, ...]]:
        path = Path(self.uri.removeprefix(_SQLITE)).absolute()
        if "?" in self.uri:
            raise _Elsewhere
        if not path.exists():
            return []
        follow(path)
        with contextlib.closing(sqlite3.connect(path)) as connection:
            return connection.execute(query, (value,)).fetchall()


class ServerFacts(Facts):
    """By the REST API of a server."""

    def versions(self, project: str) -> list[Version]:
        model = self._get("registered-models/get", name=project).get("registered_model", {})
        named = model.get("aliases", [])
        asked = {"filter": f"name = '{project}'", "max_results": _PAGE}
        listed = list(self._pages("GET", "model-versions/search", "model_versions", asked)) if model else []
        found = [
            Version(
                int(one["version"]),
                sorted(alias["alias"] for alias in named if alias["version"] == one["version"]),
                one.get("run_id"),
                _tags(one),
            )
            for one in listed
        ]
        return sorted(found, key=lambda version: version.number)

    def runs(self, project: str) -> list[Run]:
        found = self._get("experiments/get-by-name", experiment_name=project).get("experiment")
        if found is None:
            return []
        newest = ["attributes.start_time DESC"]
        asked = {"experiment_ids": [found["experiment_id"]], "order_by": newest, "max_results": _PAGE}
        listed = self._pages("POST", "runs/search", "runs", asked)
        return [Run(run["info"]["run_id"], _tags(run.get("data", {}))) for run in listed]

    def artifact(self, run_id: str, name: str) -> bytes | None:
        run = self._get("runs/get", run_id=run_id).get("run")
        if run is None:
            return None
        place = run["info"]["artifact_uri"]
        if not place.startswith("mlflow-artifacts:/") or place.startswith("mlflow-artifacts://"):
            return _file(place, name)
        path = place.removeprefix("mlflow-artifacts:/")
        answer = self._answer("GET", f"mlflow-artifacts/artifacts/{path}/{name}")
        return None if answer is None else bytes(answer.content)

    def _pages(self, method: str, path: str, name: str, asked: dict[str, Any]) -> Iterator[dict[str, Any]]:
        token = None
        while True:
            given = asked | ({} if token is None else {"page_token": token})
            answer = self._answer(method, f"mlflow/{path}", **{"params" if method == "GET" else "json": given})
            page = {} if answer is None else answer.json()
            yield from page.get(name, ())
            if not (token := page.get("next_page_token")):
                return

    def _get(self, path: str, **asked: str) -> dict[str, Any]:
        """Empty where there is no such thing."""
        answer = self._answer("GET", f"mlflow/{path}", params=asked)
        return {} if answer is None else answer.json()

    def _answer(self, method: str, path: str, **given: Any) -> Any:
        """None where there is no such thing."""
        import requests

        try:
            answer = requests.request(method, f"{self.uri.rstrip('/')}/api/2.0/{path}", timeout=_SECONDS, **given)
        except requests.RequestException:
            raise _Elsewhere from None  # MLflow says why
        if answer.status_code == 404:
            return None
        if not answer.ok:
            raise _Elsewhere
        return answer


class ClientFacts(Facts):
    """By MLflow itself."""

    def versions(self, project: str) -> list[Version]:
        store = client(self.uri)
        listed = store.search_model_versions(f"name = '{project}'")
        found = [store.get_model_version(project, one.version) for one in listed]  # which knows the aliases
        versions = [Version(int(one.version), sorted(one.aliases), one.run_id, dict(one.tags)) for one in found]
        return sorted(versions, key=lambda version: version.number)

    def runs(self, project: str) -> list[Run]:
        from training.runs import search

        return [Run(run.info.run_id, dict(run.data.tags)) for run in search(self.uri, project)]

    def artifact(self, run_id: str, name: str) -> bytes | None:
        from mlflow.exceptions import MlflowException

        from training.runs import find_artifact

        try:
            return find_artifact(self.uri, run_id, name)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise


def _file(place: str, name: str) -> bytes | None:
    """Of a folder of artifacts on this machine."""
    if (folder := local_path(place)) is None:
        raise _Elsewhere
    return (folder / name).read_bytes() if (folder / name).is_file() else None


def _tags(found: dict[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag.get("value", "") for tag in found.get("tags", ())}
