"""Where MLflow keeps what it knows: made at first use, asked whether it is there, moved along with TRIPTYCH_HOME.

MLflow is imported where it is used.
"""

import contextlib
import importlib.util
import json
import math
import sqlite3
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from training.credentials import mask
from training.files import first_use

_LOCK_SECONDS = 60  # that another process may keep the database
_FOLDER_TABLE = "triptych_folder"  # of ours, in a SQLite database of MLflow's
_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
_ASK_SECONDS = 5  # that a server may take to say that it is there
_TRUST_SECONDS = 10  # after which it is asked again
_REASON_CHARACTERS = 300
_answered: dict[str, float] = {}  # URI -> when it did last, by the monotonic clock


def client(uri: str) -> Any:
    """MLflow at `uri`; a SQLite database that is not there yet is made.

    Raises:
        ConnectionError: nothing answers there.
    """
    from mlflow import MlflowClient

    make_database(uri)
    check_reachable(uri)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def follow(database: Path) -> None:
    """Makes a database that was moved or copied with its folder say where files are now.

    MLflow keeps absolute paths: a copy would read, and on request delete, what belongs to the original. So the database
    keeps the folder that it was last used in, too.
    """
    now = database.parent
    with contextlib.closing(sqlite3.connect(database, timeout=_LOCK_SECONDS)) as connection:
        was = _kept_folder(connection)
        if was == str(now):
            return
        with first_use(now), connection:
            connection.execute("BEGIN IMMEDIATE")
            if was := _kept_folder(connection) or _folder_of_artifacts(connection, database):
                _rewrite(connection, Path(was), now)
            connection.execute(f"CREATE TABLE IF NOT EXISTS {_FOLDER_TABLE} (folder TEXT)")
            connection.execute(f"DELETE FROM {_FOLDER_TABLE}")
            connection.execute(f"INSERT INTO {_FOLDER_TABLE} VALUES (?)", (str(now),))


def _kept_folder(connection: sqlite3.Connection) -> str | None:
    listed = connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (_FOLDER_TABLE,)).fetchone()
    row = connection.execute(f"SELECT folder FROM {_FOLDER_TABLE}").fetchone() if listed else None
    return row[0] if row else None


def _folder_of_artifacts(connection: sqlite3.Connection, database: Path) -> str | None:
    """Of a database that an older version of this code made in a TRIPTYCH_HOME: the home that its experiments tell."""
    if not (database.parent / "projects").is_dir():
        return None
    located = connection.execute("SELECT artifact_location FROM experiments WHERE artifact_location LIKE 'file:///%'")
    places = {local_path(location) for (location,) in located}
    homes = {str(place.parent) for place in places if place is not None and place.name == "artifacts"}
    return homes.pop() if len(homes) == 1 else None


def _rewrite(connection: sqlite3.Connection, was: Path, now: Path) -> None:
    for table, column in _PLACES:
        for old, new in ((f"{was.as_uri()}/", f"{now.as_uri()}/"), (f"{was}/", f"{now}/")):
            connection.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                (new, len(old) + 1, len(old), old),
            )
    quoted = [json.dumps(f"{folder}/")[:-1] for folder in (was, now)]  # in JSON a path begins with a quotation mark
    connection.execute("UPDATE datasets SET dataset_source = replace(dataset_source, ?, ?)", quoted)


def local_path(location: str) -> Path | None:
    """The folder on this machine that a place of artifacts names; None where it is elsewhere."""
    parts = urlsplit(location)
    return Path(unquote(parts.path)) if parts.scheme in ("", "file") else None


def check_reachable(uri: str) -> None:
    """Asks the server or database behind a URI once: MLflow itself would ask again and again for minutes.

    Raises:
        ConnectionError: it does not answer within seconds.
    """
    if time.monotonic() - _answered.get(uri, -math.inf) < _TRUST_SECONDS or uri.startswith("sqlite:"):
        return
    try:
        _ask_server(uri) if uri.startswith(("http://", "https://")) else _ask_database(uri)
    except Exception as error:  # whatever the libraries below raise
        why = mask(" ".join(str(error).split())[:_REASON_CHARACTERS])
        raise ConnectionError(
            f"MLflow at {mask(uri)} does not answer ({why}): start it, or set MLFLOW_TRACKING_URI to where it is"
        ) from None
    _answered[uri] = time.monotonic()


def check_artifacts(place: str | None) -> None:
    """Raises ValueError: MLflow's client for files in S3 is not installed."""
    if (place or "").startswith("s3://") and importlib.util.find_spec("boto3") is None:
        raise ValueError(f"artifacts is {place}, which needs boto3, which is not installed: pip install 'triptych[s3]'")


def artifact_location(place: str | None) -> str | None:
    """A place of artifacts as MLflow's experiments have it."""
    return Path(place).absolute().as_uri() if place is not None and "://" not in place else place


def kept_elsewhere(uri: str, project: str, place: str | None) -> str | None:
    """That MLflow keeps the files of a project elsewhere than in `place`, in words: where they lie is said once, when
    its experiment is made."""
    if place is None or (uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists()):
        return None
    experiment, wanted = client(uri).get_experiment_by_name(project), artifact_location(place)
    if experiment is None or experiment.artifact_location.rstrip("/") == (wanted or "").rstrip("/"):
        return None
    return (
        f"artifacts is {mask(place)}, and MLflow goes on to keep files of {project} in "
        f"{mask(experiment.artifact_location)}, where its experiment was made: take `artifacts` back, or give the "
        "project another name"
    )


def _ask_server(uri: str) -> None:
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    creds = get_default_host_creds(uri)
    answer = http_request(creds, "/health", "GET", max_retries=0, timeout=_ASK_SECONDS, raise_on_status=False)
    if answer.status_code >= 500:  # of a proxy whose server is gone
        raise OSError(f"HTTP status {answer.status_code}")


def _ask_database(uri: str) -> None:
    from sqlalchemy import create_engine
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import DBAPIError

    if make_url(uri).get_backend_name() != "postgresql":  # nobody else knows this argument
        return
    try:
        engine = create_engine(uri, connect_args={"connect_timeout": _ASK_SECONDS})
    except ModuleNotFoundError as error:
        what = "pip install 'triptych[postgres]', and write postgresql+psycopg2://"
        raise ModuleNotFoundError(f"{error}: {what}") from None
    try:
        engine.connect().close()
    except DBAPIError as error:
        raise OSError(error.orig) from None  # without SQLAlchemy's words about itself
    finally:
        engine.dispose()


def make_database(uri: str) -> None:
    """Makes the SQLite database of `uri` where it is not there: whole, or not at all.

    MLflow's migrations are many commits. A process killed among them would leave a database that never opens again.
    """
    if not uri.startswith("sqlite:///"):
        return
    from sqlalchemy.engine import make_url

    url = make_url(uri)
    path = Path(url.database or ":memory:").absolute()
    if path.name == ":memory:":
        return
    if path.exists():
        follow(path)
        return
    from mlflow import MlflowClient

    with first_use(path.parent):
        if path.exists():
            return
        unfinished = path.with_name(f"{path.stem}.unfinished.db")
        for left in path.parent.glob(f"{unfinished.name}*"):  # by a process that was killed, and its journal
            left.unlink()
        MlflowClient(str(url.set(database=str(unfinished)))).search_experiments(max_results=1)
        unfinished.replace(path)
    follow(path)


def purge(uri: str, project: str, versions: Iterable[int], run_ids: Iterable[str], own: Sequence[Path]) -> None:
    """Deletes versions of a registered model, and runs with their logged models and their files, which MLflow keeps
    when it marks a run as deleted.

    Args:
        own: folders of this machine that hold nothing of anybody else's.

    Raises:
        ValueError: files of one lie on this machine elsewhere, or cannot be reached; nothing is deleted.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    store = client(uri)
    runs = [store.get_run(run_id) for run_id in run_ids]
    models = [
        model
        for run in runs
        for model in store.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    ]
    places = [model.artifact_location for model in models] + [run.info.artifact_uri for run in runs]
    for place in places:
        check_artifacts(place)
        folder = local_path(place)
        if folder is not None and not any(folder.resolve().is_relative_to(ours.resolve()) for ours in own):
            raise ValueError(
                f"{folder} lies outside of TRIPTYCH_HOME ({own[0]}), so it may be another's: nothing is deleted"
            )
    for version in versions:  # first: what is interrupted must not leave one without its run
        store.delete_model_version(project, str(version))
    for place in places:
        get_artifact_repository(place).delete_artifacts()
    for model in models:
        store.delete_logged_model(model.model_id)
    for run in runs:
        store.delete_run(run.info.run_id)
    _forget(uri, [run.info.run_id for run in runs], [model.model_id for model in models])


def _forget(uri: str, runs: Iterable[str], models: Iterable[str]) -> None:
    """Takes out of the database what MLflow has only marked as deleted; where a server keeps it, `mlflow gc` does."""
    if uri.startswith("http"):
        return
    from mlflow.tracking._tracking_service.utils import _get_store

    store = _get_store(uri)
    for run_id in runs:
        store._hard_delete_run(run_id)
    for model_id in models:
        store._hard_delete_logged_model(model_id)
