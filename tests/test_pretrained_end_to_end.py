"""Pretrained encoders, as features and in the model, from files to a champion that answers anywhere."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from assets import featurizing, pipeline
from orchestration.cli import main
from orchestration.project import load
from tests.training import tiny_encoders
from training.schema import MODALITIES, tensor

pytestmark = pytest.mark.slow

ENCODERS = {"text": "bert", "image": "vit", "speech": "whisper"}


def triptych(*arguments: str) -> Any:
    result = CliRunner().invoke(main, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


def test_encoders_are_run_once_for_each_content_and_go_with_the_model(tiny: Path, home: Path, tmp_path: Path) -> None:
    folders = {m: tiny_encoders.make(family, tiny.parent / family) for m, family in ENCODERS.items()}
    project_file: Any = yaml.safe_load(tiny.read_text())
    project_file["features"] = {
        m: {"kind": "embedding", "model": folders[m].name, "tokens": 2} for m in MODALITIES if m != "speech"
    }
    inside = {"kind": "huggingface", "model": folders["speech"].name, "train": "lora", "learning_rate": 1e-3}
    project_file.setdefault("model", {})["encoders"] = {"speech": inside}
    tiny.write_text(yaml.safe_dump(project_file))

    for setting, words in (
        ("features.image.model=nowhere", "features.image: model is 'nowhere'"),
        ("model.encoders.speech.model=nowhere", "model.encoders.speech: model is 'nowhere'"),
        ("model.encoders.speech.targets=nothing", "model.encoders.speech: targets nothing: no layer is called so"),
    ):
        refused = CliRunner().invoke(main, ["check", str(tiny), "--set", setting])
        assert refused.exit_code == 1 and words in refused.output
    triptych("check", str(tiny))
    settings = ("--set", "training.epochs=2", "--set", "training.baseline_epochs=1")
    first = triptych("run", str(tiny), *settings)
    assert first["model"]["aliases"] == ["challenger", "champion"]
    again = triptych("run", str(tiny), *settings)
    assert first["items"]["processed"] > 150 and again["items"]["processed"] == 0

    project = load(tiny)
    lake, processor = pipeline.open_lake(project), featurizing.make_processor(project)
    for modality in MODALITIES:
        rows = lake.sql(f"SELECT * FROM {modality}_features WHERE fingerprint = '{processor.fingerprint(modality)}'")
        name, shape = ("processed", (50, 81)) if modality == "speech" else ("embedding", (2, 16))
        stored = {row["id"]: tensor(row, name, "float16") for row in rows.to_pylist()}
        assert len(stored) > 40 and {features.shape for features in stored.values()} == {shape}
        if modality == "image":
            from hashlib import sha256

            photo = (tiny.parent / "photos" / "q01.png").read_bytes()
            served = processor.row(image=photo)["image"]["embedding"]
            np.testing.assert_allclose(served, stored[sha256(photo).hexdigest()], atol=2e-3)

    for folder in folders.values():
        shutil.rmtree(folder)
    photo_path = tiny.parent / "photos" / "q01.png"
    project_without = tiny.read_text()
    (answer,) = triptych("predict", str(tiny), "--image", str(photo_path), "--text", "Is it bright? (1)")["predictions"]
    assert answer["model_version"] == "1" and "error" not in answer, project_without
