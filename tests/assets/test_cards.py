"""Cards say what was measured and what people have said, and of the rest that it is not known."""

from typing import Any

import pytest
import yaml

from assets.cards import model_card
from assets.settings import Project
from orchestration.project import load
from training.records import EvaluationRow, Figure, TrainingReport


def report(name: str, seconds: float) -> TrainingReport:
    return TrainingReport(
        name=name, mlflow_run_id="run1", version="3" if name == "model" else None, dataset_fingerprint="d5",
        training_fingerprint="t", metrics={"n": 60, "accuracy": 0.8}, subsets={}, rows={}, filled={}, test_rows=60,
        seconds={"train": seconds},
    )  # fmt: skip


def row(slice: str | None, n: int, value: float) -> EvaluationRow:
    metrics = {"accuracy": Figure(value, value - 0.1, value + 0.1)}
    return EvaluationRow(inputs="text", subset="text", slice=slice, n=n, metrics=metrics)


ROWS = [row(None, 60, 0.8), row("site=a", 30, 0.7), row("site=b", 30, 0.9), row("site=c", 3, 0.0)]


def card(project: Project, results: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The front matter, and what follows it."""
    text = model_card(project, [report("model", 3600), report("text", 1800)], ROWS, results)
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def test_a_card_of_nothing_said_says_so(tiny) -> None:
    head, body = card(load(tiny), {})
    assert head["library_name"] == "transformers" and "license" not in head and head["metrics"] == ["accuracy"]
    for words in ("`card.use`", "`card.limits`", "`evaluation.sensitive`", "`evaluation.noise`", "`card.watts`"):
        assert words in body
    assert "took 1.000 hours, its baselines 0.500" in body and "kWh" not in body


def test_a_card_says_what_people_said_and_where_the_model_fares_worst(tiny) -> None:
    said = "card={use: sorting post, limits: not for parcels, license: cc-by-4.0, watts: 200}"
    ends = [{"value": value, "low": None, "high": None} for value in (0.8, 0.4)]
    curve = {"modality": "image", "metric": "accuracy", "rows": 9, "noise": "grain", "levels": [1], "figures": ends}
    error = {"metric": "ece", "slice": None, "error": {"value": 0.05, "low": 0.02, "high": 0.1}}
    head, body = card(load(tiny, [said]), {"noise": [curve], "calibration": [error]})
    assert head["license"] == "cc-by-4.0" and head["model_name"] == "tiny version 3"
    assert "sorting post" in body and "not for parcels" in body
    assert "It is worth least where site=a: accuracy 0.700 [0.600, 0.800] (n = 30)." in body, (
        "of 3 rows nothing is said"
    )
    assert "site=c: accuracy" not in body and "site=c: 0.000" in body
    assert "expected calibration error (ece): 0.050 [0.020, 0.100]" in body
    assert "image (grain): 0.800 without, 0.400 with the most; area 0.600 (n = 9)" in body
    assert "at 200 watts (`card.watts`) that is 0.3000 kWh" in body, "an hour and a half"


def test_watts_are_above_nothing(tiny) -> None:
    with pytest.raises(ValueError, match=r"watts is 0.0, expected null or a positive number"):
        load(tiny, ["card.watts=0"])
