"""Baselines and model in words, also where nothing could be measured; the whole graph: `tests/test_end_to_end.py`."""

import csv
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from orchestration.cli import main


@pytest.mark.slow
def test_a_test_split_without_a_modality_is_said_and_not_an_error(tiny: Path) -> None:
    table = tiny.parent / "questions.csv"
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "part"])
        writer.writeheader()
        for n, row in enumerate(rows):  # no sample that ends in 3 or 9 has a picture
            writer.writerow(row | {"part": "test" if n % 10 in (3, 9) else "validation" if n % 10 == 0 else "train"})
    options = ["align.group=[]", "align.split={column: part}", "promotion.must_beat=[best_single_modality]"]
    command = ["run", str(tiny), "--json", *(part for option in options for part in ("--set", option))]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout.splitlines()[-1])
    assert summary["subsets"]["image"] is None and summary["subsets"]["text+image"] is not None
    again = CliRunner().invoke(main, [part for part in command if part != "--json"])  # beside a champion
    assert "no test row" in again.stdout
    for said in (result.stderr, again.stderr):
        assert "image not measured (no test row has its inputs)" in said
        assert "image alone was not compared: no test row has image" in said
