"""Features of frozen pretrained encoders, from files to a champion that carries its encoders and answers anywhere."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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
    lines = [f"  {m}: {{kind: embedding, model: {folders[m].name}, tokens: 2}}" for m in MODALITIES]
    section = "\n".join(["features:", *lines, ""])
    text = tiny.read_text()
    start = text.index("features:\n")
    end = next(n for n in range(start + 10, len(text)) if text[n - 1] == "\n" and not text[n].isspace())
    tiny.write_text(text[:start] + section + text[end:])

    refused = CliRunner().invoke(main, ["check", str(tiny), "--set", "features.image.model=nowhere"])
    assert refused.exit_code == 1 and "features.image: model is 'nowhere'" in refused.output
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
        stored = {row["id"]: tensor(row, "embedding", "float16") for row in rows.to_pylist()}
        assert len(stored) > 40 and {embedding.shape for embedding in stored.values()} == {(2, 16)}
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
