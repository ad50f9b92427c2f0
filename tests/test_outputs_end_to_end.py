"""A class, two texts, a number and any number of labels at once, from files to the gate and to an answer."""

import csv
import json
import math
import re
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from orchestration.cli import main

pytestmark = pytest.mark.slow

# Without recordings: each modality and each combination of them is another training, or another evaluation.
OUTPUTS = """
  width: 16
  heads: 2
  layers: 1
  tokens: 1
  fusion: concat
  outputs: {answer: class, note: text, price: number, remark: text,
    tags: {kind: multi_label, separator: "|", weights: balanced}}
  abstain_below: 0.3
training: {epochs: 4, baseline_epochs: 1, batch_size: 16, evaluations: 4, early_stopping: 2, metric: price.mae}
evaluation: {sensitive: [site], noise: 8}
card: {use: sorting, license: cc-by-4.0, license_column: site, watts: 50}
promotion: {must_beat: [champion], metric: tags.mean_average_precision, worst_slice: 0.01}
engine"""


def triptych(*arguments: str) -> str:
    result = CliRunner().invoke(main, [*arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def ask(*arguments: str) -> dict:
    return json.loads(triptych(*arguments, "--json").splitlines()[-1])


@pytest.fixture
def labelled(tiny: Path) -> Path:
    """With a note, a price and a list of tags beside each question; of some rows one of the four is not known."""
    table = tiny.parent / "questions.csv"
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for n, row in enumerate(rows):
        tags = [name for name, has in (("bright", n % 2), ("high", n % 3 == 0)) if has]
        row |= {"price": f"{1000 + 500 * (n % 2)}.5" if n % 5 else "", "tags": "|".join(tags) or "|"}
        row |= {"answer": row["answer"] if n % 7 else "", "note": ["", "it is high", "it is not"][n % 3]}
        row |= {"remark": ["seen", "heard", ""][n % 3], "site": ["north", "south", ""][n % 3]}
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    text = re.sub("  - {name: recordings.*\n|  speech: .*\n|group: .speaker., |label: answer, ", "", tiny.read_text())
    head, _, tail = text.partition("model:")
    tiny.write_text(f"{head}model:{OUTPUTS}{tail.partition('engine')[2]}")
    return tiny


def test_several_answers_come_to_a_champion_and_to_answers(labelled: Path) -> None:
    told = ask("run", str(labelled))
    metrics, n = told["metrics"], told["dataset"]["rows"]["test"]
    assert told["model"]["aliases"] == ["challenger", "champion"] and told["metric"] == "mean_score"
    assert told["subsets"]["text+image"] == metrics["test/mean_score"]
    for name in (
        "answer.accuracy",
        "note.token_f1",
        "remark.token_f1",
        "tags.sample_f1",
        "tags.subset_accuracy",
        "tags.mean_average_precision",
        "tags.ece",
    ):
        assert 0 <= metrics[f"test/{name}"] <= 1
    assert 0 < metrics["test/price.mae"] <= metrics["test/price.rmse"] < 1000
    assert metrics["test/tags.n"] == n and all(n > metrics[f"test/{m}.n"] > 0 for m in ("answer", "note", "price"))
    assert [(o["output"], o["metric"], o["n"]) for o in told["outputs"]] == [
        (name, f"{name}.{metric}", metrics[f"test/{name}.n"])
        for name, metric in (
            ("answer", "accuracy"),
            ("note", "accuracy"),
            ("price", "mae"),
            ("remark", "accuracy"),
            ("tags", "sample_f1"),
        )
    ]
    for output in told["outputs"]:
        assert output["majority"] == pytest.approx(metrics[f"test/majority_{output['metric']}"])
    lines = {(line["metric"], line["least"]): line for line in told["coverage"]}
    assert {metric for metric, _ in lines} == {"answer.accuracy", "note.accuracy", "remark.accuracy", "tags.sample_f1"}
    assert lines["answer.accuracy", 0.3]["of"] == metrics["test/answer.n"] >= lines["answer.accuracy", 0.3]["rows"]
    assert {s["all"]["rows"] for s in told["standings"]} == {n}
    (fair,) = told["fairness"]
    assert fair["column"] == "site" and fair["metric"] == "tags.mean_average_precision" and fair["rows"] == n
    assert {one["group"] for one in fair["groups"]} == {"north", "south", "(none)"} and fair["gap"]["value"] is None
    assert [(curve["modality"], len(curve["figures"])) for curve in told["noise"]] == [("text", 5), ("image", 5)]
    assert all(0 < curve["rows"] <= 8 for curve in told["noise"])
    errors = {line["metric"]: line for line in told["calibration"] if line["slice"] is None}
    assert list(errors) == ["answer.ece", "note.ece", "remark.ece", "tags.ece"]
    assert all(line["error"]["value"] == pytest.approx(metrics[f"test/{name}"]) for name, line in errors.items())
    assert {line["slice"] for line in told["calibration"]} >= {"given=text", "given=text+image"}
    assert any("price: 12 of 60 samples have no label" in finding for finding in told["findings"])

    row = ["--text", "Is it bright?"]
    (answer,) = ask("predict", str(labelled), *row)["predictions"]
    outputs = answer["outputs"]
    assert answer["prediction"] == {name: part["prediction"] for name, part in outputs.items()}
    assert 500 < outputs["price"]["prediction"] < 2500 and outputs["price"]["probability"] is None
    assert set(outputs["tags"]["prediction"] or ()) <= {"bright", "high"}
    assert {entry["answer"] for entry in outputs["tags"]["best"]} == {"bright", "high"}
    assert {entry["answer"] for entry in outputs["answer"]["best"]} == {"yes", "no"}
    together = math.prod(outputs[name]["probability"] for name in ("answer", "note", "remark", "tags"))
    assert answer["probability"] == pytest.approx(together, abs=1e-3)
    assert isinstance(outputs["note"]["best"][0]["answer"], str)
    assert triptych("predict", str(labelled), *row).startswith("answer: ")
    report = Path(ask("report", str(labelled))["report"])
    page, model = report.read_text(), report.with_name("model_card.md").read_text()
    assert model.startswith("---\nlibrary_name: transformers") and "license: cc-by-4.0" in model and "sorting" in model
    assert "kWh" in model and "tags.ece" in model and "site is not compared" in model
    data = report.with_name("data_card.md").read_text()
    assert "- north: 20" in data and "- (none): 20" in data and "`card.consent_column` names no column" in data
    assert "by site is not compared: fewer than two groups have 20 rows" in page
    assert "Whether it is as sure as it should be" in page and 'alt="calibration"' in page
    assert 'alt="noise"' in page
    assert "What it answers, one by one" in page and "<td>price</td><td>mae</td>" in page and "answer: yes" in page
    price = pytest.approx(answer["prediction"]["price"], rel=1e-4)  # float32, in batches of another size
    assert served(labelled, told["model"]["version"]) == [answer["prediction"] | {"price": price}] * 2
    known = json.loads(triptych("sql", str(labelled), "SELECT label FROM samples ORDER BY sample_id LIMIT 1", "--json"))
    assert json.loads(known["rows"][0]["label"]) == {"remark": "seen", "tags": "high"}, "no answer, no price"


def served(project: Path, version: int) -> list[dict]:
    """What the version answers as MLflow loads it, to one row twice."""
    import mlflow

    from orchestration.project import load

    mlflow.set_tracking_uri(load(project).mlflow_uri)
    model = mlflow.pyfunc.load_model(f"models:/tiny/{version}", model_config={"abstain_below": 0.3})
    assert "outputs" in {column.name for column in model.metadata.signature.outputs}
    return model.predict(pd.DataFrame({"text": ["Is it bright?"] * 2}))["prediction"].tolist()
