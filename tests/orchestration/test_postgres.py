"""Dagster and MLflow in PostgreSQL: a real server on loopback, set up as the README says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SECRET = "xyzzy42"  # of the fixture


def test_a_run_with_both_in_postgres(postgres, tiny, home):
    import psycopg2

    pytest.importorskip("dagster_postgres")
    (home / "mlflow.db").unlink()
    settings = (ROOT / "orchestration" / "dagster.yaml").read_text()
    (home / "dagster.yaml").write_text(settings + "storage: {postgres: {postgres_url: {env: DAGSTER_POSTGRES_URL}}}\n")
    env = os.environ | {"TRIPTYCH_HOME": str(home), "PYTHONPATH": str(ROOT)}
    env |= {
        "DAGSTER_POSTGRES_URL": f"postgresql+psycopg2://{postgres}/dagster",
        "MLFLOW_TRACKING_URI": f"postgresql+psycopg2://{postgres}/mlflow",
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
        connection = psycopg2.connect(f"postgresql://{postgres}/{database}")
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
