"""The whole job with its tables and MLflow's files in an object store: a server on loopback that speaks S3."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from orchestration.cli import main
from tests.assets.s3_server import SECRET, storing

pytestmark = pytest.mark.slow

RAY = "engine={kind: ray, workers: 1, batch_size: 16}"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of boto3 for the bucket that the project lies in."""
    with storing() as (environment, client):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield client


def keys(store: Any, prefix: str) -> set[str]:
    pages = store.get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=prefix)
    return {item["Key"].removeprefix(prefix) for page in pages for item in page.get("Contents", [])}


def triptych(*arguments: Any) -> dict[str, Any]:
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    assert SECRET not in result.output
    return json.loads(result.stdout.splitlines()[-1])


def test_the_whole_job(tiny: Path, home: Path, store: Any) -> None:
    with tiny.open("a") as file:
        file.write("lake: s3://bucket/lake\nartifacts: s3://bucket/artifacts\n")
    assert triptych("check", tiny)["sources"]["photos"]["listed"] == 48
    first, again = triptych("run", tiny), triptych("run", tiny)
    assert first["model"]["aliases"] == ["challenger", "champion"]
    assert (first["items"]["processed"], again["items"]["processed"]) == (155, 0)
    assert again["model"]["version"] == 1

    assert {name.partition("/")[0] for name in keys(store, "lake/")} >= {"manifest", "clean_text", "samples", "dataset"}
    assert any(name.endswith(".safetensors") for name in keys(store, "artifacts/"))
    assert not (home / "artifacts").exists() and not (home / "projects" / "tiny" / "lake").exists()

    photo = tiny.parent / "photos" / "q01.png"
    (told,) = triptych("predict", tiny, "--text", "Is it bright? (1)", "--image", photo)["predictions"]
    assert told["dataset_fingerprint"] == first["dataset"]["fingerprint"]
    status = triptych("status", tiny)
    assert status["lake"] == "s3://bucket/lake" and status["models"][0]["version"] == 1
    counted = triptych("sql", tiny, "SELECT count(*) AS n FROM samples WHERE image_id IS NOT NULL")
    assert counted["rows"] == [{"n": 47}]

    on_ray = triptych("run", tiny, "--select", "+dataset", "--set", RAY, "--set", "lake=s3://bucket/ray")
    assert on_ray["dataset"] == first["dataset"] and on_ray["items"]["processed"] == 155

    erased = triptych("gc", tiny, "--erase", "q01", "--purge-artifacts")
    assert erased["removed"]["clean_image"] == 1
    assert not any(name.endswith(".safetensors") for name in keys(store, "artifacts/"))
    assert not any(SECRET.encode() in file.read_bytes() for file in home.rglob("*") if file.is_file())
