"""Two runs at once on one lake: nothing is lost, nothing counts twice, and all is called as after one run alone."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from assets import pipeline
from assets.asset_checks import check_balance
from assets.lake import Lake
from orchestration.project import load
from training.schema import TABLES

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
# The data side as a run does it, with no lock: two machines on one object store have none.
DATA_SIDE = """
import sys
from assets import featurizing, pipeline
from orchestration.project import load
project = load(sys.argv[1])
lake = pipeline.open_lake(project)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(2):
    pipeline.write_manifest(lake, project)
    for modality in project.modalities:
        featurizing.process_modality(lake, project, modality)
    pipeline.write_samples(lake, project)
    print(pipeline.write_dataset(lake, project).fingerprint)
"""


def start(*command: str, home: Path) -> subprocess.Popen:
    env = os.environ | {"TRIPTYCH_HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-P", *command], env=env, cwd=ROOT, text=True, **pipes)


def finish(process: subprocess.Popen, given: str = "") -> list[str]:
    stdout, stderr = process.communicate(given, timeout=200)
    assert process.returncode == 0, stderr
    return stdout.splitlines()


def logical(lake: Lake) -> dict[str, Any]:
    """What the tables say, each row once; but for when snapshots were made, and of which versions."""
    named = [name for name in TABLES if name != "snapshots"]
    rows = {name: sorted({repr(row) for row in lake.read(name).to_pylist()}) for name in named}
    return rows | {f"{name} note": lake.note(name) for name in ("samples", "dataset")}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, make_project: Callable[..., Path]) -> Path:
    return make_project(tmp_path_factory.mktemp("two") / "project")


@pytest.fixture(scope="module")
def undisturbed(project: Path) -> dict[str, Any]:
    """What a run alone makes."""
    home = project.parent.parent / "alone"
    finish(start("-c", DATA_SIDE, str(project), home=home), "\n")
    return logical(Lake(str(home / "projects" / "tiny" / "lake")))


def test_two_runs_without_a_lock_make_what_one_makes(project, home, undisturbed):
    both = [start("-c", DATA_SIDE, str(project), home=home) for _ in range(2)]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    said = {line for process in both for line in finish(process)}
    settings = load(project)
    lake = pipeline.open_lake(settings)
    assert logical(lake) == undisturbed
    assert said == {undisturbed["dataset note"]["fingerprint"]}
    balance = check_balance(lake, settings)
    assert balance.passed, balance.metadata
    assert pipeline.quarantined(lake, settings).num_rows == 3


def test_runs_of_two_homes_on_one_lake_take_turns(project, tmp_path, undisturbed):
    place = ["--set", f"lake={tmp_path / 'lake'}"]
    command = ["-m", "orchestration.cli", "run", str(project), "--select", "+dataset", "--json", *place]
    both = [start(*command, home=tmp_path / name) for name in ("one", "two")]
    answers = [json.loads(finish(process)[-1]) for process in both]
    fingerprint = undisturbed["dataset note"]["fingerprint"]
    assert [answer["dataset"]["fingerprint"] for answer in answers] == [fingerprint] * 2
    assert sorted(answer["items"]["processed"] for answer in answers) == [0, 155], "what one has made the other has not"
    lake = Lake(str(tmp_path / "lake"))
    assert logical(lake) == undisturbed
    for name in TABLES:
        rows = lake.read(name).to_pylist()
        assert len(rows) == len({repr(row) for row in rows}), name
