"""Nothing counts on there being text, image and speech: another modality is a file, with its features, and a line."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
MODALITY = '''
"""Readings of a sensor: float32 values, one after the other."""

from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from training.media import MediaError
from training.modalities.base import Modality


class SensorModality(Modality):
    name = "sensor"
    described = "finite readings"
    version = 1
    packages = ("numpy",)
    columns: ClassVar = {"readings": pa.int64()}
    limits: ClassVar = {"max_seconds": "readings / 10"}
    default_featurizer = "series"

    def decode(self, data, limits, size=None) -> Any:
        if not data or len(data) % 4 or not np.isfinite(np.frombuffer(data, "<f4")).all():
            raise MediaError("corrupt", "these are no readings: write float32")
        return np.frombuffer(data, "<f4")

    def describe(self, content) -> dict[str, Any]:
        return {"readings": len(content), "warnings": []}

    def example(self) -> bytes:
        return np.arange(5, dtype="<f4").tobytes()
'''
FEATURIZER = '''
"""Readings as frames of one value."""

from collections.abc import Mapping

from training.featurizers.base import Featurizer, FeatureShape


class SeriesFeaturizer(Featurizer):
    form, described, version, read = "frames", "readings", 1, "series"
    tensors: Mapping[str, str] = {"series": "float32"}

    def __init__(self):
        super().__init__(None)

    def featurize(self, content):
        return {"series": content[:, None]}

    def shape(self):
        return FeatureShape(self.form, 1)

    def batch(self, rows):
        from training.padding import padded_frames

        return padded_frames(rows, 1)
'''


def make_checkout(folder: Path) -> None:
    for package in ("orchestration", "assets", "training"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "training" / "modalities" / "sensor.py").write_text(MODALITY)
    (folder / "training" / "featurizers" / "series.py").write_text(FEATURIZER)
    catalogue = folder / "training" / "catalog.py"
    text = catalogue.read_text()
    for before, line in (
        ('    "modality",\n    {\n', '"sensor": "training.modalities.sensor:SensorModality",'),
        ('    "features",\n    {\n', '"sensor": {"series": "training.featurizers.series:SeriesFeaturizer"},'),
    ):
        assert text.count(before) == 1
        text = text.replace(before, f"{before}        {line}\n")
    catalogue.write_text(text)


@pytest.mark.timeout(600)
def test_a_fourth_modality_runs_from_raw_files_to_an_answer(
    make_project: Callable[..., Path], home: Path, tmp_path: Path
) -> None:
    make_checkout(tmp_path / "checkout")
    project = make_project(tmp_path / "project")
    (project.parent / "sensors").mkdir()
    with (project.parent / "questions.csv").open() as file:
        for n, row in enumerate(csv.DictReader(file)):
            if n % 5:
                values = np.sin(np.arange(5 + n)) + (row["answer"] == "yes")
                (project.parent / "sensors" / f"{row['id']}.f32").write_bytes(values.astype("<f4").tobytes())
    (project.parent / "sensors" / "q01.f32").write_bytes(b"abc")
    text = project.read_text().replace("sources:\n", "sources:\n  - {name: meters, modality: sensor, files: sensors}\n")
    project.write_text(text)

    def triptych(*arguments: str) -> Any:
        env = os.environ | {"PYTHONPATH": str(tmp_path / "checkout")}
        command = [sys.executable, "-P", "-m", "orchestration.cli", *arguments, "--json"]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    assert triptych("check", str(project))["sources"]["meters"]["listed"] == 48
    run = triptych("run", str(project), "--set", "training.epochs=5", "--set", "training.baseline_epochs=0.5")
    assert len(run["subsets"]) == 15 and run["subsets"]["sensor"] is not None
    assert run["model"]["aliases"] == ["challenger", "champion"]
    refused = triptych("sql", str(project), "SELECT reason FROM quarantine WHERE modality = 'sensor'")["rows"]
    assert refused == [{"reason": "corrupt"}]
    counts = triptych("sql", str(project), "SELECT count(sensor_id) AS n, count(text_id) AS t FROM samples")["rows"]
    assert counts == [{"n": 47, "t": 60}]
    reading = project.parent / "sensors" / "q02.f32"
    (answer,) = triptych("predict", str(project), "--sensor", str(reading), "--text", "Is it bright?")["predictions"]
    assert answer["model_version"] == "1" and "error" not in answer
    assert triptych("run", str(project), "--set", "limits.max_seconds=3601")["items"]["processed"] == 0
