"""Addresses of what Dagster's and MLflow's web UIs show, so that either leads to the other."""

import json
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from assets.settings import Project
from training.files import write_text

_FILE = "addresses.json"  # in TRIPTYCH_HOME: where `triptych ui` was started last
_DEFAULT = {"dagster": "http://127.0.0.1:3000", "mlflow": "http://127.0.0.1:5000"}


def write_addresses(home: Path, dagster: str, mlflow: str) -> None:
    write_text(home / _FILE, json.dumps({"dagster": _public(dagster), "mlflow": _public(mlflow)}))


def _address(home: Path, ui: str) -> str:
    file = home / _FILE
    return str((json.loads(file.read_text()) if file.exists() else _DEFAULT)[ui])


def dagster_run(project: Project, run_id: str) -> str:
    return f"{_address(project.home, 'dagster')}/runs/{run_id}"


def mlflow_run(project: Project, run_id: str) -> str:
    from training.runs import run_page

    return run_page(project.mlflow_uri, mlflow_address(project), run_id)


def mlflow_version(project: Project, version: str) -> str:
    from training.runs import TRAINING_PAGES

    return f"{mlflow_address(project)}/#/models/{project.name}/versions/{version}{TRAINING_PAGES}"


def mlflow_address(project: Project) -> str:
    """Of the tracking server; without one, of the UI that `triptych ui` starts."""
    uri = project.mlflow_uri
    return _public(uri) if uri.startswith("http") else _address(project.home, "mlflow")


def _public(url: str) -> str:
    """Without a password, and with a host that a browser on this machine finds where a server listens on all."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2].replace("0.0.0.0", "127.0.0.1")
    return urlunsplit(parts._replace(netloc=host, path=parts.path.rstrip("/")))
