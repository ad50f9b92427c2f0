"""What is read of MLflow without MLflow is what MLflow says."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

from training.mlflow_facts import ClientFacts, DatabaseFacts, Facts, ServerFacts, artifact, runs, versions
from training.mlflow_store import client

PROJECT = "of_test"


def fill(uri: str, folder: Path) -> list[str]:
    """Three runs, of which one is deleted, and three versions, one of them deleted; returns the runs' ids."""
    store = client(uri)
    experiment = store.create_experiment(PROJECT)
    made = [store.create_run(experiment, start_time=1000 + n, tags={"triptych.role": f"r{n}"}) for n in range(3)]
    ids = [run.info.run_id for run in made]
    folder.mkdir()
    (folder / "kept.txt").write_text("kept")
    store.log_artifacts(ids[0], str(folder))
    store.create_registered_model(PROJECT)
    for n, run_id in enumerate((ids[0], ids[2], ids[1])):
        store.create_model_version(PROJECT, f"runs:/{run_id}/model", run_id, tags={"triptych.n": str(n)})
    for alias, number in (("champion", "3"), ("champion-int8", "3"), ("challenger", "1")):
        store.set_registered_model_alias(PROJECT, alias, number)
    store.delete_model_version(PROJECT, "2")
    store.delete_run(ids[1])
    return ids


def assert_same(light: Facts, uri: str, ids: list[str]) -> None:
    whole = ClientFacts(uri)
    for project in (PROJECT, "another"):
        assert light.versions(project) == whole.versions(project)
        assert light.runs(project) == whole.runs(project)
    assert [(one.number, one.aliases) for one in light.versions(PROJECT)] == [
        (1, ["challenger"]),
        (3, ["champion", "champion-int8"]),
    ]
    assert [run.run_id for run in light.runs(PROJECT)] == [ids[2], ids[0]], "the newest first"
    for run_id, name in ((ids[0], "kept.txt"), (ids[0], "gone.txt"), (ids[2], "kept.txt"), ("0" * 32, "kept.txt")):
        assert light.artifact(run_id, name) == whole.artifact(run_id, name)
    assert light.artifact(ids[0], "kept.txt") == b"kept"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # where MLflow puts artifacts that nobody told it a place for


def test_a_database_is_read_as_mlflow_reads_it(mlflow_database: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert versions(uri, PROJECT) == runs(uri, PROJECT) == [] and not (tmp_path / "mlflow.db").exists()
    (tmp_path / "mlflow.db").write_bytes(mlflow_database.read_bytes())
    assert_same(DatabaseFacts(uri), uri, fill(uri, tmp_path / "files"))


def test_mlflow_itself_is_asked_where_its_database_is_of_another_form(mlflow_database: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    (tmp_path / "mlflow.db").write_bytes(mlflow_database.read_bytes())
    ids = fill(uri, tmp_path / "files")
    asked = f"{uri}?timeout=60"
    assert [one.number for one in versions(asked, PROJECT)] == [1, 3]
    assert artifact(asked, ids[0], "kept.txt") == b"kept" and artifact(asked, "0" * 32, "kept.txt") is None


@pytest.mark.slow
def test_a_server_is_read_as_mlflow_reads_it(free_ports, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{tmp_path / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(tmp_path / "artifacts"), "--port", str(port), "--workers", "1"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            until = time.monotonic() + 120
            while time.monotonic() < until and not is_up(uri):
                time.sleep(0.5)
            ids = fill(uri, tmp_path / "files")
            assert_same(ServerFacts(uri), uri, ids)
        finally:
            server.terminate()
    with pytest.raises(ConnectionError, match="does not answer"):
        versions(f"http://127.0.0.1:{free_ports(1)[0]}", PROJECT)


def is_up(uri: str) -> bool:
    try:
        return requests.get(f"{uri}/health", timeout=5).ok
    except requests.RequestException:
        return False
