"""A server that does not answer: said in seconds and in one line; and no password is written anywhere."""

import gzip
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestration.project import ProjectError, load

ROOT = Path(__file__).parents[2]
SECRET = "xyzzy42"


def triptych(home: Path, *arguments: str, **more: str) -> tuple[int, str, float]:
    """Exit code, all that it said, and seconds."""
    env = os.environ | {"TRIPTYCH_HOME": str(home), "PYTHONPATH": str(ROOT), "TMPDIR": str(home.parent)} | more
    command = [sys.executable, "-P", "-m", "orchestration.cli", *arguments]
    started = time.monotonic()
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stdout + done.stderr, time.monotonic() - started


def holding(folder: Path, word: bytes) -> list[Path]:
    """The files that hold a word, packed ones too."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            if word in data or (data[:2] == b"\x1f\x8b" and word in gzip.decompress(data)):
                found.append(path)
    return found


@pytest.mark.slow
def test_a_dead_server_is_said_in_seconds_and_its_password_nowhere(tiny, home, tmp_path):
    uri = f"http://user:{SECRET}@127.0.0.1:9"
    for command in (["run", str(tiny)], ["status", str(tiny)], ["run", str(tiny), "--select", "+manifest,model"]):
        code, said, seconds = triptych(home, *command, MLFLOW_TRACKING_URI=uri)
        errors = [line for line in said.splitlines() if line.startswith("Error: ")]
        assert code == 1 and len(errors) == 1 and "Traceback" not in said
        assert errors[0].startswith("Error: MLflow at http://127.0.0.1:9 does not answer (")
        assert "Connection refused" in errors[0] and SECRET not in said
        assert seconds < 60, "mostly imports; asking again and again takes minutes"
    code, said, _ = triptych(home, "--debug", "status", str(tiny), MLFLOW_TRACKING_URI=uri)
    assert code == 1 and "Traceback" in said and SECRET not in said
    assert list(home.rglob("*.db")) and holding(tmp_path, SECRET.encode()) == []


@pytest.mark.slow
def test_a_dead_server_within_a_run_is_in_the_history_without_its_password(tiny, home, tmp_path):
    (home / "projects" / "tiny" / "checkpoints" / "left").mkdir(parents=True)  # so that the run asks MLflow
    uri = f"postgresql://user:{SECRET}@127.0.0.1:9/mlflow"
    code, said, _ = triptych(home, "run", str(tiny), "--select", "manifest", MLFLOW_TRACKING_URI=uri)
    assert code == 1 and "MLflow at postgresql://***@127.0.0.1:9/mlflow does not answer" in said
    assert holding(home, b"does not answer"), "the history tells of it"
    assert SECRET not in said and holding(tmp_path, SECRET.encode()) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lake", f"s3://key:{SECRET}@bucket/lake"),
        ("tracking_uri", f"http://user:{SECRET}@host"),
        ("sources.0.files", f"sftp://user:{SECRET}@host/photos"),
        ("storage_options.aws_endpoint", f"http://user:{SECRET}@host"),
    ],
)
def test_a_project_file_holds_no_password(tiny, key, value):
    with pytest.raises(ProjectError, match=f"{key} is .*: a password is not for this file") as refused:
        load(tiny, [f"{key}={value}"])
    assert SECRET not in str(refused.value)
