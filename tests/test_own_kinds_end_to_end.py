"""A project whose fusion, output and objective are its own, from raw files to an answer: nothing of ours counts on the
kinds that we have."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
# The labels of the small project are yes and no; here they mean 1 and 0, and an answer is a number.
KINDS = """
import pyarrow as pa
import torch
from torch import nn

from training.fusions.base import Fusion
from training.metrics import Metric
from training.objectives.base import Objective
from training.outputs.base import Output


class SumFusion(Fusion):
    def forward(self, tokens_BNTD, mask_BNT):
        return self.filled(tokens_BNTD, mask_BNT).sum(1)


class SizeObjective(Objective):
    def forward(self, output, batch):
        return {"size": output.x_m.square().mean()}


def error(label, prediction):
    return 1.0 if prediction is None else abs(label - prediction)


class ShareOutput(Output):
    metrics = (Metric("absolute_error", error, higher_is_better=False),)
    arrow_type = pa.float64()

    def read(self, label):
        return {"yes": 1.0, "no": 0.0}[label]

    def targets(self, labels, tokenizer):
        return torch.tensor([self.read(label) for label in labels])

    def language_model(self):
        from transformers import AutoModel

        return AutoModel

    def head(self, width):
        return nn.Linear(width, 1)

    def logits(self, model, embeddings, mask, targets):
        return model.head(model.read(embeddings, mask).last_hidden_state[:, -1])[:, 0]

    def loss(self, logits, targets, smoothing=0.0):
        return nn.functional.mse_loss(logits.float(), targets)

    def answers(self, model, embeddings, mask, tokenizer):
        return self.logits(model, embeddings, mask, None).tolist()

    def constant(self, labels):
        return sum(labels) / len(labels)
"""
SETTINGS = {
    "model.fusion": "share_of_yes:SumFusion",
    "model.output": "share_of_yes:ShareOutput",
    "training.objectives": "[answer, {kind: 'share_of_yes:SizeObjective', weight: 0.01}]",
    "training.epochs": "10",
    "training.baseline_epochs": "1",
    "promotion.metric": "absolute_error",
    "promotion.must_beat": "[champion]",
}


@pytest.mark.timeout(600)
def test_own_kinds_from_raw_files_to_an_answer(make_project: Callable[..., Path], home: Path, tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "share_of_yes.py").write_text(KINDS)

    def triptych(*arguments: str, **settings: str) -> Any:
        options = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
        env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path / "code")])}
        command = [sys.executable, "-P", "-m", "orchestration.cli", *arguments, *options, "--json"]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1]), done.stderr

    first, words = triptych("run", str(project), **SETTINGS)
    error, constant = (first["metrics"][f"test/{name}"] for name in ("absolute_error", "majority_absolute_error"))
    assert 0 <= first["metrics"]["test/low"] <= error <= first["metrics"]["test/high"] and 0 < constant <= 1
    assert first["subsets"]["text+image+speech"] == error and len(first["subsets"]) == 7
    assert first["model"]["aliases"] == ["challenger", "champion"] and "test absolute error" in words

    second, words = triptych("run", str(project), **SETTINGS | {"training.epochs": "0.1"})
    assert second["model"]["aliases"] == ["challenger"] and second["metrics"]["test/absolute_error"] > error
    assert "the champion: absolute error" in words and "less by -" in words

    (answer,) = triptych("predict", str(project), "--text", "Is it bright?")[0]["predictions"]
    assert isinstance(answer["prediction"], float) and answer["model_version"] == "1"
