"""A TRIPTYCH_HOME with a trained model that is moved or copied works where it is then, and touches nothing elsewhere;
and what is erased in it is nowhere in it."""

import gzip
import hashlib
import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from orchestration.registration import registered
from training.mlflow_store import client, purge

ROOT = Path(__file__).parents[2]
MARKER = "zebrafish"  # a word of one text


def triptych(home: Path, *arguments: str) -> dict[str, Any]:
    """The JSON that a command ends with."""
    env = os.environ | {"TRIPTYCH_HOME": str(home), "PYTHONPATH": str(ROOT)}
    env.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-P", "-m", "orchestration.cli", *arguments, "--json"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def hashes(folder: Path) -> dict[str, str]:
    kept = (".lock", ".db-shm", ".db-wal")  # of who has it open
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix not in kept]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def holding(folder: Path, word: str) -> list[Path]:
    """The files that hold a word, in their bytes or in what they pack."""
    return [path for path in folder.rglob("*") if path.is_file() and any(word.encode() in part for part in parts(path))]


def parts(path: Path) -> Iterator[bytes]:
    data = path.read_bytes()
    yield data
    if data[:4] == b"PAR1":
        yield str(pq.read_table(io.BytesIO(data)).to_pylist()).encode()
    elif data[:2] == b"\x1f\x8b":
        yield gzip.decompress(data)
    elif data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            yield from map(packed.read, packed.namelist())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, make_project: Callable[..., Path]) -> tuple[Path, Path]:
    """A home and the project that was run in it twice, with another text in between."""
    folder = tmp_path_factory.mktemp("moved")
    path = make_project(folder / "project")
    table = path.parent / "questions.csv"
    table.write_text(table.read_text().replace("Is it bright? (1)", f"Is it bright? ({MARKER})"))
    triptych(folder / "home", "run", str(path))
    table.write_text(table.read_text().replace("Is it high? (2)", "Is it high? (two)"))
    triptych(folder / "home", "run", str(path))
    return folder / "home", path


@pytest.mark.slow
def test_a_copy_works_and_leaves_the_original_alone(trained, tmp_path):
    original, path = trained
    copy = tmp_path / "else where" / "home"
    shutil.copytree(original, copy)
    before = hashes(original)
    status = triptych(copy, "status", "tiny")
    assert [model["version"] for model in status["models"]] == [2, 1]
    assert status["lake"] == str(copy / "projects" / "tiny" / "lake")
    predictions = triptych(copy, "predict", "tiny", "--text", "Is it bright?", "--version", "2")["predictions"]
    assert predictions[0]["model_version"] == "2"
    assert triptych(copy, "run", str(path))["items"]["processed"] == 0
    triptych(copy, "gc", "tiny")
    erased = triptych(copy, "gc", "tiny", "--erase", "q01", "--purge-artifacts")
    assert erased["purged"] == [2, 1] and not list((copy / "artifacts").rglob("model.safetensors"))
    assert hashes(original) == before
    with sqlite3.connect(copy / "mlflow.db") as database:
        assert str(original) not in "\n".join(database.iterdump())


@pytest.mark.slow
def test_a_home_works_where_it_was_moved_to(trained, tmp_path):
    original, _ = trained
    copy = tmp_path / "home"
    shutil.copytree(original, copy)
    hidden = original.rename(original.with_name("away"))
    try:
        predictions = triptych(copy, "predict", "tiny", "--text", "Is it bright?", "--version", "1")["predictions"]
        assert predictions[0]["model_version"] == "1"
        again = triptych(copy, "run", "tiny")
        assert again["items"]["processed"] == 0 and again["model"]["version"] == 2
        assert not original.exists()
    finally:
        hidden.rename(original)


@pytest.mark.slow
def test_what_is_erased_is_nowhere_in_the_home(trained, tmp_path):
    original, _ = trained
    copy = tmp_path / "home"
    shutil.copytree(original, copy)
    assert {"lake", "history", "projects"} <= {part for path in holding(copy, MARKER) for part in path.parts}
    erased = triptych(copy, "gc", "tiny", "--erase", "q01")
    assert erased["history"] == 2 and erased["purged"] == []
    left = [path for path in holding(copy, MARKER) if path.parts[-2] != "runs" and path.name != "index.db"]
    assert [path for path in left if "artifacts" not in path.parts] == [], "the tables do not hold it"
    with pytest.raises(AssertionError, match="no item 'q01'"):
        triptych(copy, "gc", "tiny", "--erase", "q01")
    shutil.rmtree(copy)
    shutil.copytree(original, copy)
    erased = triptych(copy, "gc", "tiny", "--erase", "q01", "--purge-artifacts")
    assert erased["purged"] == [2, 1] and erased["history"] == 2
    assert holding(copy, MARKER) == []
    assert triptych(copy, "status", "tiny")["models"] == []


def test_the_paths_of_a_database_follow_it_once(tmp_path):
    old, new = tmp_path / "a", tmp_path / "a" / "b c"
    store = client(f"sqlite:///{old}/mlflow.db")
    inside = store.create_experiment("inside", artifact_location=(old / "artifacts").as_uri())
    outside = store.create_experiment("outside", artifact_location="file:///elsewhere/artifacts")
    run = store.create_run(inside).info.run_id
    new.mkdir()
    shutil.copy(old / "mlflow.db", new / "mlflow.db")
    for _ in range(2):
        moved = client(f"sqlite:///{new}/mlflow.db")
        assert moved.get_experiment(inside).artifact_location == f"{new.as_uri()}/artifacts"
        assert moved.get_run(run).info.artifact_uri == f"{new.as_uri()}/artifacts/{run}/artifacts"
        assert moved.get_experiment(outside).artifact_location == "file:///elsewhere/artifacts"
    assert client(f"sqlite:///{old}/mlflow.db").get_run(run).info.artifact_uri.startswith(f"{old.as_uri()}/artifacts")


def test_files_outside_of_the_home_are_not_deleted(tmp_path):
    uri, home = f"sqlite:///{tmp_path}/home/mlflow.db", tmp_path / "home"
    store = client(uri)
    store.create_registered_model("tiny")
    runs = []
    for name, place in (("inside", home / "artifacts"), ("outside", tmp_path / "elsewhere")):
        runs.append(store.create_run(store.create_experiment(name, artifact_location=place.as_uri())).info.run_id)
        store.log_text(runs[-1], "kept", "a.txt")
    version = store.create_model_version("tiny", f"runs:/{runs[0]}/model", runs[0]).version
    with pytest.raises(ValueError, match=r"elsewhere.* lies outside of TRIPTYCH_HOME .*: nothing is deleted"):
        purge(uri, "tiny", [version], runs, [home])
    assert len([*home.rglob("a.txt"), *tmp_path.glob("elsewhere/*/artifacts/a.txt")]) == 2
    assert store.get_model_version("tiny", version).run_id == runs[0]
    purge(uri, "tiny", [version], runs[:1], [home])
    assert not list(home.rglob("a.txt")) and (tmp_path / "elsewhere" / runs[1] / "artifacts" / "a.txt").exists()
    with sqlite3.connect(home / "mlflow.db") as database:
        assert database.execute("SELECT run_uuid FROM runs").fetchall() == [(runs[1],)]


def test_a_project_beside_its_state_is_found_where_both_were_copied_to(tmp_path, monkeypatch, make_project):
    from orchestration.project import load
    from orchestration.registration import register

    path = make_project(tmp_path / "one" / "project")
    monkeypatch.setenv("TRIPTYCH_HOME", str(tmp_path / "one" / ".triptych"))
    register(load(path))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    copied = tmp_path / "two" / "project" / "project.yaml"
    assert registered(tmp_path / "two" / ".triptych") == {"tiny": copied}
    monkeypatch.setenv("TRIPTYCH_HOME", str(tmp_path / "two" / ".triptych"))
    register(load(copied))
    shutil.copytree(tmp_path / "one" / ".triptych", tmp_path / "else" / "where")
    assert registered(tmp_path / "else" / "where") == {"tiny": path}, "where only the state was copied"
