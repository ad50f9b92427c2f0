"""Every fusion on digits3: three degraded modalities of which none suffices, a speaker and noises that are never heard.

    python -m benchmarks.digits3 [--data FOLDER] [--folder FOLDER] [--models attention,concat,...] [--seeds N]
                                 [--epochs N] [--no-singles] [--subsets] [--missing PATTERN] [--set KEY=VALUE ...]
                                 [--attack EPSILON] [--labels SHARE] [--pretraining EPOCHS]
                                 [--jobs N] [--results FILE] [--device cpu|cuda]

FOLDER of --data holds `digits3` (image.tar, speech.tar, samples.csv). Each fusion and each single modality is trained N
times on the same features by `training.train.fit`, small encoders from scratch and the tiny language model, and answers
the test rows. A JSON line a training, as soon as it has ended: accuracy on the test rows, and where the model is shown
a part of its modalities only. Then a JSON line a model: accuracy (mean and each seed), seconds of a training (median),
and the difference from concat, from the best single modality and from late fusion (`logit`), where these are among the
models, with the 95 % interval of a paired bootstrap over rows (means over seeds).

--subsets trains a model of the same fusion for each pair of modalities, too: what a fusion answers to a subset
(`shown`) stands beside what a model answers that never knew more (`trained_without`; of one modality alone there is one
model for all fusions). --no-singles trains no single modality. --missing hides modalities from training rows: `two`
leaves each row two of them, `one` only one, `any` one to three. --set changes settings of `model` and `training`.
--attack asks each model of all modalities the test rows once more, changed by EPSILON of the length of what encoders
read: by an adversary in one step (`fgm`) and in ten (`pgd`), and in a random direction (`noise`); beside it stands
--set 'training.adversary={kind: fgm, "on": inputs}'.
--labels leaves so large a share of the training rows their labels, others for each seed, and trains on these alone;
--pretraining lets the encoders learn from all training rows before, without labels, for so many epochs.
--jobs trains so many models at once, on one core each, and with --device cuda all on one GPU.

What is prepared stays in the folder of --folder and is taken from there the next time, also on a machine that has only
what `training` needs. Trainings that the file of --results has are not repeated, and others are added to it. --quick
trains two models, one seed each, for a fraction of an epoch.
"""

import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import yaml
from transformers.utils import logging

from benchmarks import measure
from training.adversaries.base import Adversary, Changes, length
from training.adversaries.options import Options
from training.bootstrap import paired_bootstrap
from training.cache import FeatureCache, needed_columns, open_table
from training.catalog import ADVERSARIES, FUSIONS
from training.data import SampleDataset, open_samples
from training.family import Choice
from training.features import FeatureSettings
from training.model import FusionModel
from training.pretraining import pretrain
from training.pretraining_settings import PretrainingSettings
from training.schema import SPLITS, subset_name
from training.settings import ModelSettings, TrainingSettings
from training.train import TrainingTask, fit, make_tokenizer, predict
from training.under_attack import answers_under_attack
from training.validation import from_dict, to_dict

MODALITIES = ("text", "image", "speech")
SUBSETS = [subset for size in (1, 2) for subset in itertools.combinations(MODALITIES, size)]
BESIDE = ("concat", "logit")
MISSING = {"two": (2,), "one": (1,), "any": (1, 2, 3)}  # how many modalities a training row keeps
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


def prepare(folder: Path, project_file: str) -> None:
    """Index, features and settings of a project in files that need neither the lake nor the project to be read."""
    from assets import pipeline
    from orchestration.project import load

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        (file := Path(work, "project.yaml")).write_text(project_file)
        argv, env = measure.command(Path(work, "home"), "run", str(file), "--select", "+dataset")
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"the data side failed:\n{done.stderr}")
        os.environ["TRIPTYCH_HOME"] = str(Path(work, "home"))
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        project = load(file)
        lake = pipeline.open_lake(project)
        snapshot = pipeline.present_snapshot(lake)
        index = open_table(lake.uri, "dataset", snapshot.version).to_table().sort_by("sample_id")
        open_samples(index, lake.uri, snapshot.features, project.features, folder)  # fills the cache
        pq.write_table(index, folder / "index.parquet")
        parts = {name: to_dict(getattr(project, name)) for name in ("model", "features", "training")}
        (folder / "settings.json").write_text(json.dumps(parts | {"fingerprints": snapshot.features}))


@dataclass(frozen=True)
class Training:
    """One model: its fusion, the modalities that it knows, and its seed."""

    fusion: str
    keep: tuple[str, ...]
    seed: int


@dataclass(frozen=True)
class Setup:
    """What all trainings share."""

    folder: Path
    changes: tuple[str, ...]  # KEY=VALUE of settings
    missing: str | None  # of MISSING
    attack: float | None  # of what the encoders read: the share by which it is changed
    labels: float = 1.0  # share of the training rows that have one
    pretraining: float = 0.0  # epochs; 0: none

    @property
    def words(self) -> list[str]:
        attack = [] if self.attack is None else [f"attack={self.attack}"]
        labels = [] if self.labels == 1 else [f"labels={self.labels}"]
        pretraining = [] if self.pretraining == 0 else [f"pretraining={self.pretraining}"]
        return [*self.changes, f"missing={self.missing}", *attack, *labels, *pretraining]

    def settings(self, training: Training) -> tuple[ModelSettings, TrainingSettings]:
        parts = json.loads((self.folder / "settings.json").read_text())
        for change in (*self.changes, f"model.fusion={training.fusion}", f"training.seed={training.seed}"):
            key, _, value = change.partition("=")
            section, *path = key.split(".")
            if section not in ("model", "training") or not path:
                sys.exit(f"--set {change}: expected model.KEY=VALUE or training.KEY=VALUE")
            values = parts[section]
            for name in path[:-1]:
                values = values.setdefault(name, {})
            values[path[-1]] = yaml.safe_load(value)
        return from_dict(ModelSettings, parts["model"]), from_dict(TrainingSettings, parts["training"])


@cache
def opened(folder: Path, missing: str | None) -> tuple[FeatureSettings, dict[str, SampleDataset]]:
    """Features, and the rows of each split."""
    settings = json.loads((folder / "settings.json").read_text())
    features = from_dict(FeatureSettings, settings["features"])
    caches = {m: FeatureCache(folder, m, f, needed_columns(m, features)) for m, f in settings["fingerprints"].items()}
    index = pq.read_table(folder / "index.parquet")
    parts = {split: index.filter(pc.equal(index["split"], split)) for split in SPLITS}
    if missing is not None:
        parts["train"] = lacking(parts["train"], MISSING[missing])
    return features, {split: SampleDataset(part, caches) for split, part in parts.items()}


def lacking(index: pa.Table, sizes: Sequence[int]) -> pa.Table:
    """The rows, each with one of the subsets of such sizes, drawn evenly."""
    subsets = [s for size in sizes for s in itertools.combinations(MODALITIES, size)]
    drawn = np.random.default_rng(0).integers(len(subsets), size=index.num_rows)
    for modality in MODALITIES:
        column = f"{modality}_id"
        kept = pa.array([modality in subsets[n] for n in drawn])
        ids = pc.if_else(kept, index[column], pa.scalar(None, pa.string()))
        index = index.set_column(index.column_names.index(column), column, ids)
    return index


class Noise(Adversary):
    """Changes as large as an adversary's, and in no direction."""

    def worsen(self, model: FusionModel, batch: Any, changes: Changes, plain: torch.Tensor) -> None:
        for modality, change in changes.of.items():
            drawn = torch.randn(change.shape, generator=torch.Generator().manual_seed(0)).to(change)
            changes.of[modality] = drawn * self.epsilon * changes.lengths[modality] / length(drawn)


def attacks(epsilon: float) -> dict[str, Adversary]:
    on = {"on": "inputs", "epsilon": epsilon}
    kinds = {"fgm": Choice("fgm", on), "pgd": Choice("pgd", on | {"steps": 10})}
    return {"noise": Noise(Options(**on))} | {name: ADVERSARIES.make(choice) for name, choice in kinds.items()}


def train(setup: Setup, training: Training) -> dict[str, Any]:
    """Trains a model and asks it the test rows; its line, with the rows that it got right, packed, in hexadecimal."""
    logging.disable_progress_bar()
    features, splits = opened(setup.folder, setup.missing)
    model, settings = setup.settings(training)
    tokenizer = make_tokenizer(splits["train"], model, settings)
    rows, ids = splits["train"], splits["train"].index.select([f"{m}_id" for m in training.keep])
    if training.keep != MODALITIES:  # rows that have nothing of it teach a model nothing
        rows = rows.take([n for n, of_row in enumerate(zip(*ids.to_pydict().values(), strict=True)) if any(of_row)])
    labelled = np.random.default_rng(training.seed).permutation(len(rows))[: math.ceil(setup.labels * len(rows))]
    task = TrainingTask(
        model=model,
        training=settings,
        features=features,
        train=rows if setup.labels == 1 else rows.take(np.sort(labelled)),
        validation=splits["validation"].take([]),
        tokenizer=tokenizer,
        keep=frozenset(training.keep),
    )
    with tempfile.TemporaryDirectory() as checkpoints:
        started = time.perf_counter()
        if setup.pretraining:
            how = PretrainingSettings(epochs=setup.pretraining, seed=training.seed)
            task = replace(task, start=pretrain(task, rows, how, lambda words: None).weights)
        trained = fit(task, Path(checkpoints)).model
        seconds = time.perf_counter() - started
    labels = np.array(splits["test"].labels)
    shown = SUBSETS if training.keep == MODALITIES else []
    right = {
        subset_name(keep): np.array(predict(trained, tokenizer, splits["test"], features, frozenset(keep))) == labels
        for keep in (*shown, training.keep)
    }
    held = attacks(setup.attack) if setup.attack and training.keep == MODALITIES else {}
    for name, adversary in held.items():
        answers = answers_under_attack(trained, tokenizer, splits["test"], features, adversary)
        right[name] = np.array([answer.prediction for answer in answers]) == labels
    return {
        "benchmark": "digits3",
        "training": training.fusion,
        "keep": list(training.keep),
        "seed": training.seed,
        "setup": setup.words,
        "unit": "accuracy",
        "ours": accuracy(right[subset_name(training.keep)]),
        "shown": {subset_name(subset): accuracy(right[subset_name(subset)]) for subset in shown},
        "attacked": {name: accuracy(right[name]) for name in held},
        "test_rows": len(labels),
        "seconds": round(seconds, 1),
        "memory_mb": round(measure.peak_mb()),
        "threads": torch.get_num_threads(),
        "device": trained.device.type,
        "right": {name: np.packbits(rows).tobytes().hex() for name, rows in right.items()},
    }


def accuracy(right: np.ndarray) -> float:
    return round(float(right.mean()), 4)


def trained(setup: Setup, trainings: Sequence[Training], jobs: int, file: Path | None) -> dict[Training, dict]:
    """The lines of the trainings: from the file, or new; new ones are printed and added to it as they come."""
    known = [json.loads(line) for line in file.read_text().splitlines()] if file and file.is_file() else []
    lines = {
        Training(line["training"], tuple(line["keep"]), line["seed"]): line
        for line in known
        if "training" in line and line["setup"] == setup.words
    }
    for training, line in run(setup, [t for t in trainings if t not in lines], jobs):
        lines[training] = line
        print(json.dumps(line), flush=True)
        if file:
            with file.open("a") as out:
                out.write(json.dumps(line) + "\n")
    return lines


def run(setup: Setup, trainings: Iterable[Training], jobs: int) -> Iterator[tuple[Training, dict]]:
    if jobs == 1:
        torch.set_num_threads(measure.CORES)
        yield from ((training, train(setup, training)) for training in trainings)
        return
    # Standard output is for the lines alone.
    with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = {pool.submit(train, setup, training): training for training in trainings}
        for future in as_completed(futures):
            yield futures[future], future.result()


class Results:
    """What the trainings have found, by fusion and modalities."""

    def __init__(self, lines: dict[Training, dict], seeds: int) -> None:
        self.lines, self.seeds = lines, seeds

    def of(self, fusion: str, keep: tuple[str, ...]) -> list[dict]:
        return [self.lines[Training(fusion, keep, seed)] for seed in range(self.seeds)]

    def right(self, fusion: str, keep: tuple[str, ...], shown: tuple[str, ...] | None = None) -> np.ndarray:
        """Right or wrong (seeds, rows) of models that know `keep`, and are shown that or less."""
        packed = [bytes.fromhex(line["right"][subset_name(shown or keep)]) for line in self.of(fusion, keep)]
        rows = self.of(fusion, keep)[0]["test_rows"]
        return np.array([np.unpackbits(np.frombuffer(bits, np.uint8))[:rows] for bits in packed])

    def line(self, fusion: str, keep: tuple[str, ...], beside: dict[str, np.ndarray], pairs: bool) -> dict[str, Any]:
        """What is printed of a fusion (or of a single modality, whose models have no other)."""
        right, lines = self.right(fusion, keep), self.of(fusion, keep)
        told: dict[str, Any] = {
            "benchmark": "digits3",
            "what": fusion if keep == MODALITIES else subset_name(keep),
            "unit": "accuracy",
            "ours": accuracy(right),
            "seeds": [accuracy(one) for one in right],
            "test_rows": right.shape[1],
            "seconds": statistics.median(line["seconds"] for line in lines),
            "memory_mb": max(line["memory_mb"] for line in lines),
        }
        for name, other in beside.items():
            if name != told["what"]:
                found = paired_bootstrap(right.mean(0), other.mean(0))
                difference = {"difference": found.difference, "low": found.low, "high": found.high}
                told[f"against_{name}"] = {side: round(value, 4) for side, value in difference.items()}
        if keep == MODALITIES:
            told["shown"] = {subset_name(s): accuracy(self.right(fusion, keep, s)) for s in SUBSETS}
            attacked = [line.get("attacked", {}) for line in lines]
            told["attacked"] = {n: round(statistics.mean(one[n] for one in attacked), 4) for n in attacked[0]}
            if pairs:
                rivals = {s: ("concat" if len(s) == 1 else fusion, s) for s in SUBSETS}
                known = {subset_name(s): rival for s, rival in rivals.items() if Training(*rival, 0) in self.lines}
                told["trained_without"] = {name: accuracy(self.right(*rival)) for name, rival in known.items()}
        return told


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--folder", type=Path, help="where what is prepared stays (default: nowhere)")
    parser.add_argument("--models", default=",".join(FUSIONS.names()), help="fusions, by comma")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--no-singles", action="store_true")
    parser.add_argument("--subsets", action="store_true")
    parser.add_argument("--missing", choices=MISSING)
    parser.add_argument("--attack", type=float)
    parser.add_argument("--labels", type=float, default=1.0)
    parser.add_argument("--pretraining", type=float, default=0.0)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    fusions = [FUSIONS.choose(kind).kind for kind in arguments.models.split(",")]
    fusions.sort(key=lambda kind: kind not in BESIDE)  # what others are held against comes first
    changes = list(arguments.set)
    if arguments.quick:
        fusions, arguments.seeds, arguments.epochs = ["concat", "logit"], 1, arguments.epochs or 0.1
    if arguments.epochs:
        changes.append(f"training.epochs={arguments.epochs}")
    if arguments.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the Trainer would take a GPU that it sees
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        if not (folder / "settings.json").is_file():
            prepare(folder, PROJECT.format(data=(arguments.data / "digits3").resolve()))
        setup = Setup(
            folder, tuple(changes), arguments.missing, arguments.attack, arguments.labels, arguments.pretraining
        )
        seeds = range(arguments.seeds)
        # By seed, so that what is cut off has some of everything.
        singles = [] if arguments.no_singles else [("concat", (m,)) for m in MODALITIES]
        models = singles + [(fusion, MODALITIES) for fusion in fusions]
        pairs = [(fusion, s) for fusion in fusions for s in SUBSETS if arguments.subsets and len(s) == 2]
        trainings = [Training(*model, seed) for part in (models, pairs) for seed in seeds for model in part]
        results = Results(trained(setup, trainings, arguments.jobs, arguments.results), arguments.seeds)
    rights = [results.right(*single) for single in singles]
    beside = {"best_single": max(rights, key=lambda right: float(right.mean()))} if rights else {}
    beside |= {fusion: results.right(fusion, MODALITIES) for fusion in BESIDE if fusion in fusions}
    for fusion, keep in models:
        told = results.line(fusion, keep, beside if keep == MODALITIES else {}, arguments.subsets)
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
