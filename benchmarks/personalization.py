"""What an adapter of a few samples gains for a speaker that the model has never heard.

    python -m benchmarks.personalization [--data FOLDER] [--speakers george,yweweler] [--epochs N] [--seeds N]

FOLDER holds `spoken_digits`. For each held-out speaker a model of the ten digits is trained on the recordings of the
others; then adapters are trained over it, frozen, on 5, 20 and 50 recordings of the held-out speaker, drawn anew for
each seed, and asked half of that speaker's recordings, of which none is drawn. A JSON line for each number of samples:
accuracy of the shared model, of an adapter that is a bias alone, of one of rank 4, and of a logistic regression on the
fused representation of the same samples (standardised), means over
seeds. One process, as many threads as the environment says. --quick trains for a fraction of an epoch.
"""

import copy
import csv
import json
import os
import statistics
import tarfile
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers.utils import logging

from benchmarks import measure
from training.cache import FeatureCache
from training.collator import make_collator
from training.data import SampleDataset
from training.family import Choice
from training.features import FeatureSettings
from training.model import FusionModel
from training.personalization import add_adapters, learn_adapters
from training.personalization_settings import PersonalizationSettings
from training.processor import Processor
from training.schema import DATASET, features_table
from training.settings import MediaLimits, ModelSettings, TrainingSettings, complete
from training.tokenizer import fit_tokenizer
from training.train import TrainingTask, fit, predict

FEATURES = FeatureSettings(speech={"sample_rate": 8000, "mels": 40, "max_seconds": 5})
SHOTS = (5, 20, 50)
RANKS = {"bias": 0, "lora": 4}
STEPS = 80  # of each adapter


def samples(folder: Path, root: Path, most: int) -> SampleDataset:
    """The recordings, labelled with their digit, with the speaker as a column; of each digit `most` by a speaker."""
    processor, rows, index = Processor(FEATURES, MediaLimits()), [], []
    with (folder / "recordings.csv").open() as table, tarfile.open(folder / "recordings.tar") as tar:
        for row in csv.DictReader(table):
            if int(row["index"]) >= most:
                continue
            file = tar.extractfile(f"recordings/{row['file']}")
            assert file is not None
            made = processor.row(speech=file.read())["speech"]
            rows.append({"id": row["file"], "fingerprint": "f", **made})
            attributes = json.dumps({"speaker": row["speaker"]})
            named = {
                "sample_id": row["file"],
                "label": row["digit"],
                "speech_id": row["file"],
                "attributes": attributes,
            }
            index.append(named)
    stored = FEATURES.stored("speech")
    cache = FeatureCache(root, "speech", "f", stored)
    cache.add(ds.dataset(features_table("speech", stored, rows)), [row["id"] for row in rows])
    return SampleDataset(pa.Table.from_pylist(index, DATASET), {"speech": cache}, ("speaker",))


def shared_model(rows: SampleDataset, epochs: float, tokenizer: Any) -> FusionModel:
    settings = ModelSettings(width=64, layers=2, tokens=4, output=Choice("class"), modality_dropout=0.0)
    task = TrainingTask(
        model=complete(settings, {"speech": FEATURES.forms["speech"]}),
        training=TrainingSettings(epochs=epochs, batch_size=32, learning_rate=1e-3, evaluations=0),
        features=FEATURES,
        train=rows,
        validation=rows.take([]),
        tokenizer=tokenizer,
    )
    with tempfile.TemporaryDirectory() as folder:
        return fit(task, Path(folder)).model


def right(told: Sequence[Any], rows: SampleDataset) -> float:
    return float(np.mean([one == label for one, label in zip(told, rows.labels, strict=True)]))


def regressed(network: FusionModel, tokenizer: Any, few: SampleDataset, test: SampleDataset) -> float:
    """A logistic regression on x_m of the few."""
    collate = make_collator(network, tokenizer, FEATURES)

    def places(rows: SampleDataset) -> np.ndarray:
        return network.pooled_x_m(collate(rows.__getitems__(range(len(rows))))).numpy()

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return right(model.fit(places(few), few.labels).predict(places(test)), test)


def figures(rows: SampleDataset, speaker: str, epochs: float, seeds: int, quick: bool) -> Iterator[dict[str, Any]]:
    """A line for each number of samples of one held-out speaker."""
    tokenizer = fit_tokenizer(["0"], 300)
    of = rows.column("speaker")
    others, own = ([n for n, name in enumerate(of) if (name == speaker) == mine] for mine in (False, True))
    started = time.monotonic()
    network, seconds = shared_model(rows.take(others), epochs, tokenizer), {}
    seconds["shared"] = time.monotonic() - started
    test, pool = rows.take(own[1::2]), own[::2]
    shared = right(predict(network, tokenizer, test, FEATURES), test)
    for shots in SHOTS:
        found: dict[str, list[float]] = {name: [] for name in (*RANKS, "regression")}
        for seed in range(seeds):
            few = rows.take(sorted(np.random.default_rng(seed).permutation(pool)[:shots].tolist()))
            found["regression"].append(regressed(network, tokenizer, few, test))
            for name, rank in RANKS.items():
                started, adapted = time.monotonic(), copy.deepcopy(network)
                add_adapters(adapted, "speaker", [speaker], rank)
                batches = -(-len(few) // 32)
                steps = 2 if quick else STEPS
                settings = PersonalizationSettings(group="speaker", rank=rank, epochs=steps / batches, seed=seed)
                learn_adapters(adapted, tokenizer, FEATURES, few, settings, lambda words: None)
                seconds[name] = time.monotonic() - started
                found[name].append(right(predict(adapted, tokenizer, test, FEATURES), test))
        means = {name: round(statistics.mean(values), 4) for name, values in found.items()}
        spread = {f"{name}_each": [round(value, 4) for value in values] for name, values in found.items()}
        told = {"what": f"{speaker}, {shots} samples", "unit": "accuracy", "shared": round(shared, 4), **means}
        yield {**told, **spread, "rows": len(test), "seconds": {name: round(s, 1) for name, s in seconds.items()}}


def main() -> None:
    options = measure.parser(__doc__)
    options.add_argument("--speakers", default="george,yweweler", help="held out, one after the other")
    options.add_argument("--epochs", type=float, default=8.0)
    options.add_argument("--seeds", type=int, default=3)
    arguments = options.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    logging.disable_progress_bar()
    quick = arguments.quick
    with tempfile.TemporaryDirectory() as temporary:
        rows = samples(arguments.data / "spoken_digits", Path(temporary), 8 if quick else 1000)
        there = sorted(set(rows.column("speaker")))
        for speaker in arguments.speakers.split(",")[: 1 if quick else None]:
            if speaker not in there:
                options.error(f"--speakers {speaker}: there are {', '.join(there)}")
            epochs, seeds = (0.2, 1) if quick else (arguments.epochs, arguments.seeds)
            for line in figures(rows, speaker, epochs, seeds, quick):
                print(json.dumps({"benchmark": "personalization", **line}), flush=True)


if __name__ == "__main__":
    main()
