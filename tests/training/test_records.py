"""What crosses from one process to another comes back as it was, through JSON."""

import json
from dataclasses import replace
from typing import Any

import pytest

from training.records import Comparison, EvaluationRow, Figure, Means, Standing, TrainingReport, Verdict

STANDING = Standing(
    name="champion",
    all=Comparison(a=0.5, b=0.25, rows=4, difference=0.25, low=0.0, high=0.5, p=0.25, better=False, differ=1, needed=5),
    answered=Means(a=1.0, b=0.5, rows=2),
)
RECORDS = [
    EvaluationRow(
        inputs="text+image",
        subset="image",
        slice="kind=sum",
        n=3,
        metrics={"error": Figure(0.5, 0.25, 1.5), "f1": Figure(), "accuracy": Figure(1.0, 0.5, 1.0)},
        filled=Figure(0.75, 0.5, 1.0),
    ),
    STANDING,
    TrainingReport(
        name="text",
        mlflow_run_id="m",
        version=None,
        dataset_fingerprint="d",
        training_fingerprint="t",
        metrics={"n": 3, "accuracy": None},
        subsets={"text": 0.5, "image": None},
        rows={"text": 3, "image": 0},
        filled={"text": 0.5, "image": 0.25},
        test_rows=3,
        seconds={"train": 1.5},
    ),
    Verdict(version=2, champion_before="none", champion="2", aliases=["champion"], reasons=["better"], test_looks=1),
    Verdict(version=2, champion_before="1", champion="1", standings=[STANDING, replace(STANDING, answered=None)]),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_comes_back_from_json(record: Any) -> None:
    assert type(record).from_json(json.loads(json.dumps(record.to_json()))) == record


def test_the_first_metric_gives_the_interval_its_plain_names() -> None:
    assert RECORDS[0].to_json() == {
        "inputs": "text+image",
        "subset": "image",
        "slice": "kind=sum",
        "filled": {"value": 0.75, "low": 0.5, "high": 1.0},
        "contributions": {},
        "n": 3,
        "error": 0.5,
        "low": 0.25,
        "high": 1.5,
        "f1": None,
        "f1_low": None,
        "f1_high": None,
        "accuracy": 1.0,
        "accuracy_low": 0.5,
        "accuracy_high": 1.0,
    }
