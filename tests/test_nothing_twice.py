"""A second run costs what is new. `tests/test_end_to_end.py` says the same of the training."""

import csv
import json

import pytest
from click.testing import CliRunner

from orchestration.cli import main


def run(path):
    result = CliRunner().invoke(main, ["run", str(path), "--select", "+dataset", "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


def add_rows(table, *rows):
    with table.open("a", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.mark.slow
def test_ten_new_items_of_all_modalities_cost_ten(tiny, make_png, make_wav):
    folder = tiny.parent
    first = run(tiny)
    assert run(tiny)["items"] == first["items"] | {"processed": 0, "reused": first["items"]["processed"]}
    new = range(60, 63)
    for n in new:
        make_png(folder / "photos" / f"q{n}.png", n)
        make_wav(folder / "recordings" / f"q{n}.wav", n)
    add_rows(folder / "recordings.csv", *([f"q{n}", f"q{n}.wav", "speaker20"] for n in new))
    add_rows(folder / "questions.csv", *([f"q{n}", f"Is it high? ({n})", "yes"] for n in (*new, 63)))
    grown, told = run(tiny), first["items"]
    expected = {"seen": told["seen"] + 10, "processed": 10, "reused": told["processed"], "quarantined": 2}
    assert grown["items"] == expected
    assert sum(grown["dataset"]["rows"].values()) == sum(first["dataset"]["rows"].values()) + 4
    assert run(tiny)["items"] == expected | {"processed": 0, "reused": told["processed"] + 10}
