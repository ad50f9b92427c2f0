"""A champion's variants, from the project file to a version that answers in another process; and again for free."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from orchestration.cli import main
from orchestration.project import load
from training.model_registry import alias, fetch_model, version_run, version_tags
from training.runs import read_artifact, read_json
from training.score import score_command

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
KINDS = ["full", "int8", "pruned-0.9", "onnx"]


def run(project: Path, *more: str) -> tuple[dict[str, Any], str, str]:
    """`triptych run --json` in a process of its own: its last line, and what it said."""
    command = [sys.executable, "-P", "-m", "orchestration.cli", "run", str(project), *more]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]) if "--json" in more else {}, done.stdout, done.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, make_project: Callable[..., Path]) -> Any:
    folder = tmp_path_factory.mktemp("variants")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TRIPTYCH_HOME", "DAGSTER_HOME"):
            patch.setenv(name, str(folder / "home"))
        path = make_project(folder / "project")
        text = path.read_text().replace("model: {", "model: {output: class, ")
        path.write_text(text + "variants: [int8, {kind: pruned, sparsity: 0.9}, onnx]\n")
        told, _, _ = run(path, "--json")
        yield path, told


def test_each_variant_is_measured_beside_the_champion(made):
    path, told = made
    project, rows = load(path), told["variants"]
    assert [row["variant"] for row in rows] == KINDS and rows[0]["gate"] == "champion"
    for row in rows[1:]:
        assert row["gate"] in ("passed", "refused") and (row["version"] != "") == (row["gate"] == "passed")
        assert row["beside the full model"] and " ms, p95 " in row["one row"]
    assert rows[3]["gate"] == "passed", "the graph answers as the model does"
    table = read_json(project.mlflow_uri, version_run(project.mlflow_uri, "tiny", "1"), "variants.json")
    assert [dict(zip(table["columns"], row, strict=True)) for row in table["data"]] == rows
    assert alias(project.mlflow_uri, "tiny", "champion") == "1"
    assert alias(project.mlflow_uri, "tiny", "champion-onnx") == rows[3]["version"]
    tags = version_tags(project.mlflow_uri, "tiny", rows[3]["version"])
    assert tags["variant"] == "onnx" and tags["variant_of"] == "1"
    assert tags["dataset_fingerprint"] == told["dataset"]["fingerprint"]


def test_a_registered_variant_answers_in_another_process_as_it_was_judged(made, tmp_path):
    path, told = made
    project, version = load(path), told["variants"][3]["version"]
    asked = ["predict", str(path), "--text", "Is it bright? (2)", "--image", str(path.parent / "photos" / "q01.png")]
    answers = {}
    for which in ("champion", "champion-onnx", version):
        result = CliRunner().invoke(main, [*asked, "--version", which, "--json"])
        assert result.exit_code == 0, result.output
        (answers[which],) = json.loads(result.stdout.splitlines()[-1])["predictions"]
    assert answers["champion-onnx"] == answers[version] and answers[version]["model_version"] == version
    assert answers[version]["prediction"] == answers["champion"]["prediction"]
    assert answers[version]["probability"] == pytest.approx(answers["champion"]["probability"], abs=2e-4)
    # All test rows from their media, by the code that was logged: what it was judged by.
    from assets.gate import write_raw
    from assets.pipeline import open_lake

    rows, said = tmp_path / "rows.parquet", tmp_path / "answers.parquet"
    write_raw(open_lake(project), rows, "test", project.make_sources())
    command, environment = score_command(fetch_model(project.mlflow_uri, "tiny", version), rows, said)
    subprocess.run(command, env=environment, check=True, capture_output=True)
    run_id = version_run(project.mlflow_uri, "tiny", version)
    (tmp_path / "judged.parquet").write_bytes(read_artifact(project.mlflow_uri, run_id, "predictions.parquet"))
    judged = {row["sample_id"]: row for row in pq.read_table(tmp_path / "judged.parquet").to_pylist()}
    served = pq.read_table(said).to_pylist()
    assert {row["sample_id"] for row in served} == judged.keys()
    for row in served:
        assert row["prediction"] == judged[row["sample_id"]]["prediction"]
        assert row["probability"] == pytest.approx(judged[row["sample_id"]]["probability"], abs=1e-4)


def test_a_second_run_makes_none_anew_and_a_changed_rule_is_judged_without(made):
    path, told = made
    again, _, stderr = run(path, "--json", "--select", "variants")
    assert again["variants"] == told["variants"] and "(as before)" in stderr
    _, out, _ = run(path, "--select", "variants", "--set", "promotion.margin=1")
    assert "The champion in other forms" in out and out.count("  passed") == 3 and "refused" not in out
    project = load(path)
    assert all(alias(project.mlflow_uri, "tiny", f"champion-{name}") for name in ("int8", "pruned-0_9", "onnx"))


def test_what_cannot_be_made_is_told_before_anything_runs(made):
    result = CliRunner().invoke(main, ["check", str(made[0]), "--set", "model.output=text"])
    assert result.exit_code != 0 and "output text writes its answers step by step" in result.output
