"""Answers that people mark become a model: asked, marked, learned from, judged, traced and erased."""

import json
from dataclasses import asdict

import pytest
from click.testing import CliRunner

from assets import pipeline
from orchestration.cli import main
from orchestration.erasure import erase
from orchestration.project import load
from orchestration.trace import trace
from training import model_registry
from training.runs import read_json

pytestmark = pytest.mark.slow
SETTINGS = """
answers: {log: true, inputs: true}
preference: {least: 4, steps: 8, learning_rate: 3.0e-3}
promotion: {must_beat: [champion], margin: 0.9}
personalization: {group: speaker, minimum: 2, epochs: 1}
"""


def triptych(*arguments):
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout.strip().splitlines()[-1])


def test_feedback_becomes_a_version_that_the_gate_judges(tiny, make_png):
    lines = tiny.read_text().replace("model: {", "model: {output: class, ").splitlines()
    tiny.write_text("\n".join(line for line in lines if not line.startswith("promotion:")) + SETTINGS)
    told = triptych("run", tiny)
    assert "champion" in told["model"]["aliases"]
    project = load(tiny)
    adapted = read_json(project.mlflow_uri, told["mlflow_run_id"], "adapters.json")["groups"]
    speakers = [one["group"] for one in adapted]
    assert len(speakers) > 5 and all(one["judged"] and one["rows"] for one in adapted)
    kept = [one["group"] for one in adapted if one["kept"]]
    answers, table = [], tiny.parent / "ask.csv"
    for n in range(100, 106):
        make_png(tiny.parent / f"new{n}.png", n)
    rows = [f"Is it bright?,new{n}.png" for n in range(100, 106)]
    table.write_text("\n".join(["text,image,speaker", *(f"{row},{speakers[0]}" for row in rows)]))
    for said in triptych("predict", tiny, "--table", table)["predictions"]:
        assert said.get("adapter") == (speakers[0] if speakers[0] in kept else None)
        right = {"yes": "no", "no": "yes"}[said["prediction"]]
        marked = triptych("feedback", tiny, said["answer_id"], "wrong", "--answer", right, "--by", "ann")
        assert (marked["verdict"], marked["answer"], marked["by"]) == ("wrong", right, "ann")
        answers.append(said["answer_id"])
    triptych("run", tiny, "--select", "preference")
    lake = pipeline.open_lake(project)
    assert set(lake.sql("SELECT answer_id FROM preferences")["answer_id"].to_pylist()) == set(answers)
    tags = model_registry.version_tags(project.mlflow_uri, "tiny", "2")
    assert (tags["role"], tags["preference_of"]) == ("preference", "1")
    assert json.loads(tags["gate_reasons"]), "it was judged as any model"
    assert model_registry.alias(project.mlflow_uri, "tiny", "champion") == "2", "the margin lets it pass"
    triptych("run", tiny, "--select", "champion,preference")
    assert [v["version"] for v in model_registry.versions(project.mlflow_uri, "tiny")] == [2, 1], "trained once"
    assert model_registry.alias(project.mlflow_uri, "tiny", "champion") == "2", "it keeps its place"
    traced = trace(project, answers[0])
    run_id = model_registry.version_run(project.mlflow_uri, "tiny", "2")
    assert traced.answer["feedback"][0]["by"] == "ann" and traced.answer["learned_by"] == [run_id]
    asked = lake.sql("SELECT inputs FROM answers WHERE answer_id = $id", {"id": answers[0]})["inputs"][0].as_py()
    picture = next(one["sha256"] for one in asked if one["name"] == "image")
    erased = erase(project, picture, dry_run=False, purge=False)
    assert {name: n for name, n in erased.removed.items() if n} == {
        **dict.fromkeys(("clean_image", "image_features", "signatures"), 1),
        **dict.fromkeys(("answers", "answer_inputs", "feedback", "preferences"), 1),
    }
    assert [model.version for model in erased.models] == [2], "which has learned from it"
    assert asdict(erased)["removed"]["feedback"] == 1
    left = lake.sql("SELECT answer_id FROM feedback")["answer_id"].to_pylist()
    assert answers[0] not in left and len(left) == 5
