"""A new kind of each family runs from raw files to the gate and to an answer: as one file and one line of the catalogue
in a checkout, and as a user's own module beside the project file. Nothing of ours counts on the kinds that we have."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


class Kind(NamedTuple):
    """A new kind: its class goes into one file, its line into the catalogue."""

    catalogue: str  # file of the catalogue
    family: str  # as it stands there
    scope: str | None
    folder: str
    name: str
    cls: str
    code: str

    @property
    def own(self) -> str:
        return f"own_kinds_of_test:{self.cls}"


KINDS = [
    Kind(
        "assets/catalog.py",
        "SOURCES",
        None,
        "assets/sources",
        "answers",
        "AnswersSource",
        """
import csv
import json
from dataclasses import dataclass
from assets.sources.base import Entry, Source

class AnswersSource(Source):
    @dataclass(frozen=True, kw_only=True)
    class Options:
        book: str = ""

    def list(self):
        path = self.root / self.options.book
        with path.open() as file:
            for number, row in enumerate(csv.DictReader(file), 2):
                attributes = json.dumps({"answer": row["answer"]})
                yield Entry(row["id"], str(path), row=number, text=row["question"], attributes=attributes)

    def open(self, entry):
        yield entry.text.encode()
""",
    ),
    Kind(
        "training/catalog.py",
        "FILTERS",
        "image",
        "training/filters",
        "darkness",
        "DarknessFilter",
        """
from training.filters.base import RangeFilter

class DarknessFilter(RangeFilter):
    version = 1

    def measure(self, content):
        return 255 - float(content.array.mean())
""",
    ),
    Kind(
        "training/catalog.py",
        "FEATURIZERS",
        "image",
        "training/featurizers",
        "edges",
        "EdgesFeaturizer",
        """
from collections.abc import Mapping
from dataclasses import dataclass
import numpy as np
from training.featurizers.base import Featurizer, FeatureShape

class EdgesFeaturizer(Featurizer):
    form, described, version, read = "frames", "edges", 1, "edges"
    tensors: Mapping[str, str] = {"edges": "float32"}

    @dataclass(frozen=True, kw_only=True)
    class Options:
        rows: int = 3

    def featurize(self, content):
        return {"edges": content.array.mean(axis=2)[: self.options.rows, :4].astype(np.float32) / 255}

    def shape(self):
        return FeatureShape(self.form, 4)

    def batch(self, rows):
        from training.padding import padded_frames
        return padded_frames(rows, 4)
""",
    ),
    Kind(
        "training/catalog.py",
        "ENCODERS",
        "frames",
        "training/encoders",
        "mean",
        "MeanFramesEncoder",
        """
from torch import nn
from training.encoders.base import Encoder, all_real

class MeanFramesEncoder(Encoder):
    def __init__(self, source, shape):
        super().__init__(source, shape)
        self.tokens, self.projection = shape.tokens, nn.Linear(source.width, shape.width)

    def forward(self, values, mask):
        mean_BM = (values * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return all_real(self.projection(mean_BM)[:, None].expand(-1, self.tokens, -1))
""",
    ),
    Kind(
        "training/catalog.py",
        "FUSIONS",
        None,
        "training/fusions",
        "total",
        "TotalFusion",
        """
from dataclasses import dataclass
from training.fusions.base import Fusion

class TotalFusion(Fusion):
    @dataclass(frozen=True, kw_only=True)
    class Options:
        factor: float = 1.0

    def __init__(self, modalities, shape, options):
        super().__init__(modalities, shape)
        self.factor = options.factor

    def forward(self, tokens_BNTD, mask_BNT):
        return self.factor * self.filled(tokens_BNTD, mask_BNT).sum(1)
""",
    ),
    Kind(
        "training/catalog.py",
        "OUTPUTS",
        None,
        "training/outputs",
        "share",
        "ShareOutput",
        '''
import pyarrow as pa
from training.metrics import Metric
from training.outputs.base import Output

def error(label, prediction):
    return 1.0 if prediction is None else abs(label - prediction)

class ShareOutput(Output):
    """The labels yes and no mean 1 and 0; an answer is a number."""
    metrics = (Metric("absolute_error", error, higher_is_better=False),)
    arrow_type = pa.float64()

    def read(self, label):
        return {"yes": 1.0, "no": 0.0}[label]

    def targets(self, labels, tokenizer):
        import torch
        return torch.tensor([self.read(label) for label in labels])

    def language_model(self):
        from transformers import AutoModel
        return AutoModel

    def head(self, width):
        from torch import nn
        return nn.Linear(width, 1)

    def logits(self, model, embeddings, mask, targets):
        return model.head(model.read(embeddings, mask).last_hidden_state[:, -1])[:, 0]

    def loss(self, logits, targets, smoothing=0.0):
        from torch.nn import functional
        return functional.mse_loss(logits.float(), targets)

    def answers(self, asked):
        return self.logits(asked.model, asked.embeddings_BSD, asked.mask_BS, None).tolist()

    def constant(self, labels):
        return sum(labels) / len(labels)
''',
    ),
    Kind(
        "training/catalog.py",
        "OBJECTIVES",
        None,
        "training/objectives",
        "smallness",
        "SmallnessObjective",
        """
from training.objectives.base import Objective

class SmallnessObjective(Objective):
    def forward(self, output, batch):
        return {"size": output.x_m.square().mean()}
""",
    ),
    Kind(
        "assets/catalog.py",
        "ENGINES",
        None,
        "assets/engines",
        "serial",
        "SerialEngine",
        """
from assets.engines.base import Engine

class SerialEngine(Engine):
    def map(self, fn, batches):
        return map(fn, batches)
""",
    ),
]


def settings(word: Callable[[Kind], str]) -> dict[str, str]:
    """What uses all of them, each by its word or as a user's own."""
    source, filter, featurizer, encoder, fusion, output, objective, engine = map(word, KINDS)
    return {
        "sources.2": f"{{name: questions, modality: text, kind: '{source}', book: questions.csv}}",
        "filters": f"{{image: {{kind: '{filter}', most: 220}}}}",
        "features.image": f"{{kind: '{featurizer}', rows: 5}}",
        "model.encoders": f"{{image: '{encoder}'}}",
        "model.fusion": f"{{kind: '{fusion}', factor: 0.5}}",
        "model.output": output,
        "training.objectives": f"[answer, {{kind: '{objective}', weight: 0.01}}]",
        "training.epochs": "10",
        "training.learning_rate": "3.0e-3",
        "training.baseline_epochs": "1",
        "promotion.metric": "absolute_error",
        "promotion.must_beat": "[champion]",
        "engine": f"{{kind: '{engine}', batch_size: 16}}",
    }


def add_to_checkout(checkout: Path) -> None:
    """A copy of the code with the kinds in it: a file and a line each."""
    for package in ("orchestration", "assets", "training"):
        shutil.copytree(ROOT / package, checkout / package, ignore=shutil.ignore_patterns("__pycache__"))
    for kind in KINDS:
        (checkout / kind.folder / f"{kind.name}.py").write_text(f'"""Of a test."""\n{kind.code}')
        catalogue = checkout / kind.catalogue
        line = f'"{kind.name}": "{kind.folder.replace("/", ".")}.{kind.name}:{kind.cls}",'
        start = rf'(\n{kind.family} = Family\(\n    "[a-z]+",\n    \{{'
        scoped = start + (rf'(?:(?!\n\)).)*?"{kind.scope}": \{{)' if kind.scope else ")")
        text, count = re.subn(
            scoped, lambda found, line=line: f"{found[1]} {line}", catalogue.read_text(), count=1, flags=re.S
        )
        assert count == 1, kind
        catalogue.write_text(text)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("way", [pytest.param("catalogue", marks=pytest.mark.soak), "own"])
def test_a_new_kind_of_each_family_runs_from_raw_files_to_an_answer(
    make_project: Callable[..., Path], home: Path, tmp_path: Path, way: str
) -> None:
    project = make_project(tmp_path / "project")
    code = ROOT
    if way == "catalogue":
        code = tmp_path / "checkout"
        add_to_checkout(code)
        options = settings(lambda kind: kind.name)
    else:  # beside the project file: nothing else says where it lies
        (project.parent / "own_kinds_of_test.py").write_text("\n".join(kind.code for kind in KINDS))
        options = settings(lambda kind: kind.own)

    def triptych(*arguments: str, **changes: str) -> Any:
        sets = [part for name, value in changes.items() for part in ("--set", f"{name}={value}")]
        env = os.environ | {"PYTHONPATH": str(code)}
        command = [sys.executable, "-P", "-m", "orchestration.cli", *arguments, *sets, "--json"]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1]), done.stderr

    first, words = triptych("run", str(project), **options)
    error, constant = (first["metrics"][f"test/{name}"] for name in ("absolute_error", "majority_absolute_error"))
    assert 0 <= first["metrics"]["test/low"] <= error <= first["metrics"]["test/high"] and 0 < constant <= 1
    assert first["subsets"]["text+image+speech"] == error and len(first["subsets"]) == 7
    assert first["model"]["aliases"] == ["challenger", "champion"] and "test absolute error" in words
    rows, _ = triptych("sql", str(project), "SELECT count(*) AS n FROM image_features WHERE edges IS NOT NULL")
    assert rows["rows"] == [{"n": 47}]
    rows, _ = triptych("sql", str(project), "SELECT DISTINCT reason FROM quarantine WHERE stage = 'filter'")
    assert len(rows["rows"]) <= 1  # nothing of it is darker than that, or some is
    rows, _ = triptych("sql", str(project), "SELECT count(*) AS n FROM measurements")
    assert rows["rows"] == [{"n": 47}]

    if way == "catalogue":
        (answer,) = triptych("predict", str(project), "--text", "Is it bright?")[0]["predictions"]
        assert isinstance(answer["prediction"], float)
        return

    again, _ = triptych("run", str(project), **options)
    assert again["items"]["processed"] == 0 and again["model"]["version"] == first["model"]["version"]
    second, words = triptych("run", str(project), **options | {"training.epochs": "0.1"})
    assert second["model"]["aliases"] == ["challenger"] and second["metrics"]["test/absolute_error"] > error
    assert "the champion: absolute error" in words and "less by -" in words

    (answer,) = triptych("predict", str(project), "--text", "Is it bright?")[0]["predictions"]
    assert isinstance(answer["prediction"], float) and answer["model_version"] == "1"
    picture = project.parent / "photos" / "q01.png"
    (answer,) = triptych("predict", str(project), "--image", str(picture))[0]["predictions"]
    assert isinstance(answer["prediction"], float)
