"""Dagster and MLflow in PostgreSQL: a real server on loopback, set up as the README says."""

import getpass
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SECRET = "xyzzy42"
PROGRAMS = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)


@pytest.fixture
def server(free_ports: Callable[[int], list[int]]) -> Iterator[str]:
    """user:password@host:port of a server with the databases dagster and mlflow."""
    pytest.importorskip("dagster_postgres")
    if PROGRAMS is None:
        pytest.skip("PostgreSQL is not installed: make system")
    user = "postgres" if os.getuid() == 0 else getpass.getuser()  # it refuses to run as root
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    (port,) = free_ports(1)

    def call(name: str, *arguments: str) -> None:
        subprocess.run([PROGRAMS / name, *arguments], check=True, user=user, cwd=folder, capture_output=True)

    try:
        (folder / "password").write_text(SECRET)
        for path in (folder, folder / "password"):
            shutil.chown(path, user)
        signed = [f"--pwfile={folder / 'password'}", "--auth=scram-sha-256", "--username=triptych"]
        call("initdb", "-D", str(folder / "data"), *signed)
        settings = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        call("pg_ctl", "-D", str(folder / "data"), "-w", "-l", str(folder / "log"), "-o", settings, "start")
        os.environ["PGPASSWORD"] = SECRET
        for name in ("dagster", "mlflow"):
            call("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "triptych", name)
        del os.environ["PGPASSWORD"]
        yield f"triptych:{SECRET}@127.0.0.1:{port}"
    finally:
        subprocess.run([PROGRAMS / "pg_ctl", "-D", folder / "data", "-m", "immediate", "stop"], user=user, check=False)
        shutil.rmtree(folder)


def test_a_run_with_both_in_postgres(server, tiny, home):
    import psycopg2

    home.mkdir()
    settings = (ROOT / "orchestration" / "dagster.yaml").read_text()
    (home / "dagster.yaml").write_text(settings + "storage: {postgres: {postgres_url: {env: DAGSTER_POSTGRES_URL}}}\n")
    env = os.environ | {"TRIPTYCH_HOME": str(home), "PYTHONPATH": str(ROOT)}
    env |= {
        "DAGSTER_POSTGRES_URL": f"postgresql+psycopg2://{server}/dagster",
        "MLFLOW_TRACKING_URI": f"postgresql+psycopg2://{server}/mlflow",
    }

    def triptych(*arguments: str) -> dict:
        command = [sys.executable, "-P", "-m", "orchestration.cli", *arguments, "--json"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=500)
        assert done.returncode == 0, done.stderr
        assert SECRET not in done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    ran = triptych("run", str(tiny))
    assert ran["model"]["version"] == 1
    assert [model["version"] for model in triptych("status", str(tiny))["models"]] == [1]
    assert triptych("predict", str(tiny), "--text", "Is it high?", "--version", "1")["predictions"]
    for database, query, found in (
        ("dagster", "SELECT run_id, status FROM runs", [(ran["dagster_run_id"], "SUCCESS")]),
        ("mlflow", "SELECT name, version FROM model_versions", [("tiny", 1)]),
    ):
        connection = psycopg2.connect(f"postgresql://{server}/{database}")
        with connection, connection.cursor() as cursor:
            cursor.execute(query)
            assert cursor.fetchall() == found
        connection.close()
    assert list((home / "artifacts").rglob("model.safetensors"))
    assert not [path for path in home.rglob("*") if path.suffix == ".db"], "all is in PostgreSQL"
    written = [path for path in home.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert written == []
    erased = triptych("gc", str(tiny), "--erase", "q01", "--purge-artifacts")
    assert erased["purged"] == [1] and not list((home / "artifacts").rglob("model.safetensors"))
