"""A number, and any number of labels, from files to the gate and to an answer."""

import csv
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from orchestration.cli import main

pytestmark = pytest.mark.slow


def triptych(*arguments: str, **settings: str) -> dict:
    options = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    result = CliRunner().invoke(main, [*arguments, *options, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture
def labelled(tiny: Path) -> Path:
    """With a price and a list of tags beside each question."""
    table = tiny.parent / "questions.csv"
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for n, row in enumerate(rows):
        tags = [name for name, has in (("bright", n % 2), ("high", n % 3 == 0)) if has]
        row |= {"price": f"{1000 + 500 * (n % 2)}.5", "tags": "|".join(tags) or "|"}
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return tiny


def test_a_number_comes_to_a_champion_and_an_answer(labelled: Path) -> None:
    settings = {
        "align.label": "price",
        "model.output": "number",
        "promotion.metric": "rmse",
        "training.epochs": "4",
        "training.evaluations": "4",
        "training.early_stopping": "2",
        "training.metric": "mae",
    }
    told = triptych("run", str(labelled), **settings)
    assert told["model"]["aliases"] == ["challenger", "champion"] and told["metrics"]["test/n"] > 5
    assert 0 < told["metrics"]["test/mae"] <= told["metrics"]["test/rmse"] < 1000
    assert told["subsets"]["text+image+speech"] == told["metrics"]["test/mae"]
    (answer,) = triptych("predict", str(labelled), "--text", "Is it bright?")["predictions"]
    assert 500 < answer["prediction"] < 2500 and answer["probability"] is None and answer["abstained"] is False


def test_labels_come_to_a_champion_and_an_answer(labelled: Path) -> None:
    settings = {
        "align.label": "tags",
        "model.output": "{kind: multi_label, separator: '|', weights: balanced}",
        "model.abstain_below": "0.3",
        "promotion.metric": "mean_average_precision",
    }
    told = triptych("run", str(labelled), **settings)
    assert told["model"]["aliases"] == ["challenger", "champion"]
    for name in ("sample_f1", "subset_accuracy", "macro_f1", "mean_average_precision", "ece"):
        assert 0 <= told["metrics"][f"test/{name}"] <= 1
    lines = {line["least"]: line for line in told["coverage"]}
    assert lines[0.0]["share"] == 1 and lines[0.3]["rows"] <= lines[0.0]["rows"] == lines[0.3]["of"]
    (answer,) = triptych("predict", str(labelled), "--text", "Is it bright?")["predictions"]
    assert set(answer["prediction"]) <= {"bright", "high"} and 0 < answer["probability"] < 1
    assert [entry["answer"] for entry in answer["best"]] in (["bright", "high"], ["high", "bright"])
