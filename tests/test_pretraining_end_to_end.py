"""Encoders that learn without labels, from files to a champion that starts from them."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from orchestration.cli import main
from training.runs import search

pytestmark = pytest.mark.slow


def run(path: Path, *arguments: str) -> dict:
    told = CliRunner().invoke(main, ["run", str(path), *arguments, "--json"])
    assert told.exit_code == 0, told.output
    return json.loads(told.stdout.splitlines()[-1])


def runs(home: Path, role: str) -> list:
    found = search(f"sqlite:///{home / 'mlflow.db'}", "tiny", status="FINISHED")
    return [one for one in found if one.data.tags["triptych.role"] == role]


def test_a_model_starts_from_encoders_that_read_no_label(tiny, home):
    tiny.write_text(tiny.read_text() + "pretraining: {epochs: 2, batch_size: 16}\n")
    table = tiny.parent / "questions.csv"
    rows = table.read_text().splitlines()
    for n in (2, 4, 5, 51):  # rows without a label; the speaker of one of the first is that of 3 and 5
        rows[n] = rows[n].rpartition(",")[0] + ","
    table.write_text("\n".join(rows))
    told = run(tiny)
    assert told["model"]["version"] == 1
    (learned,) = runs(home, "pretraining")
    metrics = learned.data.metrics
    assert {"validation_masked_image", "validation_masked_speech", "validation_contrastive_image_speech"} <= {*metrics}

    rows[1] = rows[1].rpartition(",")[0] + (",no" if rows[1].endswith("yes") else ",yes")
    table.write_text("\n".join(rows))
    again = run(tiny, "--select", "+pretraining")
    assert again["dataset"] != told["dataset"]
    assert len(runs(home, "pretraining")) == 1, "labels are nothing to it"

    run(tiny, "--select", "pretraining", "--set", "pretraining.masked=0.3")
    assert len(runs(home, "pretraining")) == 2
    refused = CliRunner().invoke(main, ["check", str(tiny), "--set", "pretraining.masked=1"])
    assert refused.exit_code == 1 and "pretraining: masked is 1.0, expected 0 to 0.9" in refused.output
