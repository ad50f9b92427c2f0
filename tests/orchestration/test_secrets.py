"""A server that does not answer: said in seconds and in one line; and no password is written anywhere."""

import gzip
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestration.cli import main
from orchestration.project import ProjectError, load
from tests.assets.file_server import serving

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


@pytest.mark.slow
def test_what_signs_urls_and_logs_in_is_written_nowhere(tiny, home, tmp_path, monkeypatch, capfd, caplog):
    """Photos by signed URLs of a table, some of them broken; credentials of stores and servers in the environment."""
    netrc, table = tmp_path / "netrc", tiny.parent / "photos.csv"
    with serving() as server:
        netrc.write_text(f"machine 127.0.0.1 login me password {SECRET}\n")
        rows = [
            f"{path.stem},{server.url}/{path.name}?id=1&sig={SECRET}" for path in (tiny.parent / "photos").iterdir()
        ]
        for path in (tiny.parent / "photos").iterdir():
            server.put(path.name, path.read_bytes())
        more = [f"gone,http://me:{SECRET}@{server.url[7:]}/gone.png", f"else,http://host.invalid/?token={SECRET}"]
        table.write_text("\n".join(["id,url", *rows, *more]))
        remote = f"files: '{server.url}', allow_private: true, table: photos.csv, key: id, file: url"
        tiny.write_text(tiny.read_text().replace("files: photos", remote))
        server.faults |= {"q01.png": ["drop"], "q02.png": [503], "q04.png": ["cut"], "q06.png": [403] * 9}
        for name, value in {"NETRC": str(netrc), "AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": SECRET}.items():
            monkeypatch.setenv(name, value)
        code, said, _ = triptych(home, "run", str(tiny), "--select", "+model", "--json")
        assert code == 0 and '"changed": 0' in said
        server.faults["q07.png"] = ["drop"] * 9
        table.write_text("\n".join(line for line in table.read_text().splitlines() if not line.startswith("q08")))
        main(["check", str(tiny)], standalone_mode=False)
    checked = "".join(capfd.readouterr()) + caplog.text
    assert "since the last run: 1 vanished" in checked
    assert "/q08.png?id=1&sig=*** (q08)" in checked and "/q06.png?id=1&sig=***: cannot be read" in checked
    places = [path for path in holding(tmp_path, SECRET.encode()) if path not in (netrc, table)]
    assert SECRET not in said + checked and places == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lake", f"s3://key:{SECRET}@bucket/lake"),
        ("tracking_uri", f"http://user:{SECRET}@host"),
        ("sources.0.files", f"sftp://user:{SECRET}@host/photos"),
        ("sources.0.files", f"https://host/photos.tar?id=1&X-Amz-Signature={SECRET}"),
        ("sources.0.table", f"https://host/photos.csv?sig={SECRET}"),
        ("storage_options.aws_endpoint", f"http://user:{SECRET}@host"),
    ],
)
def test_a_project_file_holds_no_password(tiny, key, value):
    with pytest.raises(ProjectError, match=f"{key} is .*: a password is not for this file") as refused:
        load(tiny, [f"{key}={value}"])
    assert SECRET not in str(refused.value)
