"""Every fusion on digits3: three degraded modalities of which none suffices, a speaker and noises that are never heard.

    python -m benchmarks.digits3 [--data FOLDER] [--models attention,concat,...] [--seeds N] [--epochs N] [--subsets]
                                 [--set KEY=VALUE ...]

FOLDER holds `digits3` (image.tar, speech.tar, samples.csv). Each fusion and each single modality is trained N times on
the same features by `training.train.fit`, small encoders from scratch and the tiny language model, and answers the test
rows; models are built one after the other with all cores. A JSON line a model: accuracy on the test rows (mean and each
seed), what it is when the model is shown one modality only, seconds of a training (median), and the difference from
concat, from the best single modality and from late fusion (`logit`), where these are among the models, with the 95 %
interval of a paired bootstrap over rows (means over seeds). --subsets trains each pair of modalities, too, and beside a
fusion's answers to a subset stands what a model of the same fusion gives that never knew more. --quick trains two
models, one seed each, for a fraction of an epoch.
"""

import csv
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from transformers.utils import logging

from assets import pipeline
from benchmarks import measure
from orchestration.project import load
from training.bootstrap import paired_bootstrap
from training.cache import open_table
from training.catalog import FUSIONS
from training.data import SampleDataset, open_samples
from training.schema import SPLITS, subset_name
from training.train import TrainingTask, fit, make_tokenizer, predict

MODALITIES = ("text", "image", "speech")
BESIDE = ("concat", "logit")
PROJECT = """
name: digits3
sources:
  - {{name: image, modality: image, files: "{data}/image.tar", table: "{data}/samples.csv", key: sample_id,
     file: image}}
  - {{name: speech, modality: speech, files: "{data}/speech.tar", table: "{data}/samples.csv", key: sample_id,
     file: speech}}
  - {{name: text, modality: text, table: "{data}/samples.csv", column: text, key: sample_id}}
align: {{label: label, split: {{column: split}}}}
features:
  image: {{size: 28, color: grey}}
  speech: {{sample_rate: 8000, mels: 40, window_ms: 30, hop_ms: 15}}
model:
  encoders: {{text: small_transformer}}
  output: class
  layers: 1
  tokens: 2
training: {{epochs: 40, batch_size: 32, learning_rate: 1.0e-3, evaluations: 0}}
"""


def prepare(folder: Path, data: Path, changes: list[str]) -> tuple[Any, dict[str, SampleDataset]]:
    """The project and the rows of its splits, made in `folder`."""
    (folder / "project.yaml").write_text(PROJECT.format(data=data))
    settings = [part for change in changes for part in ("--set", change)]
    argv, env = measure.command(folder / "home", "run", str(folder / "project.yaml"), "--select", "+dataset", *settings)
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"the data side failed:\n{done.stderr}")
    os.environ["TRIPTYCH_HOME"] = str(folder / "home")
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    project = load(folder / "project.yaml", changes)
    lake = pipeline.open_lake(project)
    snapshot = pipeline.present_snapshot(lake)
    index = open_table(lake.uri, "dataset", snapshot.version).to_table().sort_by("sample_id")
    splits = {}
    for split in SPLITS:
        part = index.filter(pc.equal(index["split"], split))
        splits[split] = open_samples(part, lake.uri, snapshot.features, project.features, folder / "cache")
    return project, splits


class Runs:
    """Trainings of one project, each with the right and wrong answers of its test rows; the same is trained once."""

    def __init__(self, project: Any, splits: dict[str, SampleDataset], seeds: int) -> None:
        self.project, self.splits, self.seeds = project, splits, seeds
        self.labels = np.array(splits["test"].labels)
        self.tokenizer = make_tokenizer(splits["train"], project.model, project.training)
        self.right: dict[tuple[str, str], np.ndarray] = {}  # fusion and subset -> (seeds, rows)
        self.shown: dict[tuple[str, str], np.ndarray] = {}  # of all modalities' models: fusion and subset shown
        self.seconds: dict[tuple[str, str], float] = {}

    def train(self, fusion: str, keep: tuple[str, ...] = MODALITIES) -> np.ndarray:
        """Right or wrong (seeds, rows) of the fusion's models that read only `keep`."""
        key = fusion, subset_name(keep)
        if key in self.right:
            return self.right[key]
        right, seconds, shown = [], [], {subset: [] for subset in subsets() if len(keep) == len(MODALITIES)}
        for seed in range(self.seeds):
            task = TrainingTask(
                model=replace(self.project.model, fusion=FUSIONS.choose(fusion)),
                training=replace(self.project.training, seed=seed),
                features=self.project.features,
                train=self.splits["train"],
                validation=self.splits["validation"].take([]),
                tokenizer=self.tokenizer,
                keep=frozenset(keep),
            )
            with tempfile.TemporaryDirectory() as checkpoints:
                started = time.perf_counter()
                model = fit(task, Path(checkpoints)).model
                seconds.append(time.perf_counter() - started)
            right.append(self._right(model, None))
            for subset, found in shown.items():
                found.append(self._right(model, frozenset(subset)))
        self.right[key], self.seconds[key] = np.array(right), statistics.median(seconds)
        self.shown |= {(fusion, subset_name(subset)): np.array(found) for subset, found in shown.items()}
        return self.right[key]

    def _right(self, model: Any, keep: frozenset[str] | None) -> np.ndarray:
        answers = predict(model, self.tokenizer, self.splits["test"], self.project.features, keep)
        return np.array(answers) == self.labels


def subsets() -> list[tuple[str, ...]]:
    return [subset for size in (1, 2) for subset in itertools.combinations(MODALITIES, size)]


def accuracy(right: np.ndarray) -> float:
    return round(float(right.mean()), 4)


def line(runs: Runs, fusion: str, keep: tuple[str, ...], beside: dict[str, np.ndarray], pairs: bool) -> dict[str, Any]:
    """What is printed of a fusion (or of a single modality, whose models have no other)."""
    right, key = runs.train(fusion, keep), (fusion, subset_name(keep))
    told: dict[str, Any] = {
        "benchmark": "digits3",
        "what": fusion if keep == MODALITIES else subset_name(keep),
        "unit": "accuracy",
        "ours": accuracy(right),
        "seeds": [accuracy(one) for one in right],
        "test_rows": right.shape[1],
        "epochs": runs.project.training.epochs,
        "seconds": round(runs.seconds[key], 1),
        "memory_mb": round(measure.peak_mb()),
        "cores": measure.CORES,
    }
    for name, other in beside.items():
        if name != told["what"]:
            found = paired_bootstrap(right.mean(0), other.mean(0))
            difference = {"difference": found.difference, "low": found.low, "high": found.high}
            told[f"against_{name}"] = {side: round(value, 4) for side, value in difference.items()}
    if keep == MODALITIES:
        told["shown"] = {
            subset_name(subset): accuracy(runs.shown[fusion, subset_name(subset)])
            for subset in subsets()
            if pairs or len(subset) == 1
        }
        if pairs:
            told["trained_without"] = {subset_name(s): accuracy(runs.train(fusion, s)) for s in subsets()}
    return told


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--models", default=",".join(FUSIONS.names()), help="fusions, by comma")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--subsets", action="store_true")
    parser.add_argument("--set", action="append", default=[])
    arguments = parser.parse_args()
    fusions = [FUSIONS.choose(kind).kind for kind in arguments.models.split(",")]
    changes = list(arguments.set)
    if arguments.quick:
        fusions, arguments.seeds, arguments.epochs = ["concat", "logit"], 1, arguments.epochs or 0.1
    if arguments.epochs:
        changes.append(f"training.epochs={arguments.epochs}")
    data = (arguments.data / "digits3").resolve()
    with (data / "samples.csv").open(newline="") as table:  # fails here, where it says which file is missing
        assert {*MODALITIES, "label", "split"} <= {*next(csv.reader(table))}
    torch.set_num_threads(measure.CORES)
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(*prepare(Path(folder), data, changes), arguments.seeds)
        singles = {(m,): runs.train("concat", (m,)) for m in MODALITIES}
        best = max(singles, key=lambda keep: singles[keep].mean())
        beside = {"best_single": singles[best]}
        for keep in singles:
            print(json.dumps(line(runs, "concat", keep, {}, False)), flush=True)
        # What others are held against comes first.
        for fusion in sorted(fusions, key=lambda kind: kind not in BESIDE):
            print(json.dumps(line(runs, fusion, MODALITIES, beside, arguments.subsets)), flush=True)
            if fusion in BESIDE:
                beside[fusion] = runs.train(fusion)


if __name__ == "__main__":
    main()
