"""Training samples a second of `training.train.fit`, beside a bare PyTorch loop that trains the same model.

    python -m benchmarks.training [--quick] [--device cpu|cuda] [--folder FOLDER]

Rows and settings are the built-in example's, one epoch, one thread each: its own small model, and a wider and deeper
one, where a step takes 20 ms or more anywhere. The loop does with PyTorch alone what `fit` does with
transformers.Trainer: the same batches in the same order, AdamW (fused), clipping, cosine; it must end with the same
weights. `fit` also makes the model, keeps the history and writes one checkpoint. A second loop gets its batches ready
made, which shows what making them costs. What is prepared (the example's lake takes half a minute) stays in FOLDER and
is taken from there the next time, also on a machine that has only what `training` needs. --data is not used.
"""

import json
import math
import os
import sys
import tempfile
import time
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader
from transformers import get_cosine_schedule_with_warmup
from transformers.utils import logging

from benchmarks import measure
from training.building import build_model
from training.cache import FeatureCache, needed_columns, open_table
from training.collator import make_collator
from training.data import EpochSampler, SampleDataset, open_samples
from training.features import FeatureSettings
from training.model import FusionModel
from training.settings import ModelSettings, TrainingSettings
from training.train import TrainingTask, fit, make_tokenizer
from training.validation import from_dict, to_dict

_ROWS, _QUICK = 4096, 256  # of the example; a larger model is trained on a part of them
# Model -> its settings beside the example's, and the part of the rows it is trained on.
_MODELS: dict[str, tuple[dict[str, int], float]] = {
    "the example's model": ({}, 1),
    "width 192, 4 layers": ({"width": 192, "layers": 4}, 1 / 2),
}


def prepare(folder: Path) -> None:
    """Index, features and settings of the example, in files that need neither the lake nor the project to be read."""
    from assets import pipeline

    with tempfile.TemporaryDirectory() as home:
        project = measure.run_example(Path(home), "--select", "+dataset")
        features = pipeline.present_snapshot(pipeline.open_lake(project)).features
        index = open_table(project.lake_uri, "dataset").to_table().sort_by("sample_id")
        index = index.filter(pc.equal(index["split"], "train")).slice(0, _ROWS)
        open_samples(index, project.lake_uri, features, project.features, folder)  # fills the cache
        pq.write_table(index, folder / "index.parquet")
        parts = {name: to_dict(getattr(project, name)) for name in ("model", "features", "training")}
        (folder / "settings.json").write_text(json.dumps(parts | {"fingerprints": features}))


@cache
def opened(
    folder: Path, rows: int, size: str
) -> tuple[ModelSettings, TrainingSettings, FeatureSettings, SampleDataset, Any]:
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    settings = json.loads((folder / "settings.json").read_text())
    model = from_dict(ModelSettings, settings["model"] | _MODELS[size][0])
    features = from_dict(FeatureSettings, settings["features"])
    kept = {name: settings["training"][name] for name in ("batch_size", "learning_rate")}
    training = TrainingSettings(epochs=1, evaluations=0, **kept)
    caches = {m: FeatureCache(folder, m, f, needed_columns(m, features)) for m, f in settings["fingerprints"].items()}
    samples = SampleDataset(pq.read_table(folder / "index.parquet").slice(0, rows), caches)
    return model, training, features, samples, make_tokenizer(samples, model, training)


def timed(started: float, rows: int, steps: int, network: FusionModel) -> dict[str, Any]:
    weights = sum(float(p.detach().double().square().sum()) for p in network.parameters())  # waits for a GPU, too
    digits = 8 if network.device.type == "cpu" else 3  # a GPU does not add up in the same order each time
    seconds = time.perf_counter() - started
    return {"samples/s": rows / seconds, "ms/step": 1000 * seconds / steps, "check": f"weights {weights:.{digits}g}"}


def ours(folder: Path, rows: int, size: str) -> dict[str, Any]:
    model, training, features, samples, tokenizer = opened(folder, rows, size)
    with tempfile.TemporaryDirectory() as checkpoints:
        started = time.perf_counter()
        task = TrainingTask(
            model=model,
            training=training,
            features=features,
            train=samples,
            validation=samples.take([]),
            tokenizer=tokenizer,
        )
        return timed(started, rows, math.ceil(rows / training.batch_size), fit(task, Path(checkpoints)).model)


def loop(folder: Path, rows: int, size: str, device: str, ready: bool) -> dict[str, Any]:
    """The bare loop; `ready`: the batches lie in memory before the clock starts."""
    model, training, features, samples, tokenizer = opened(folder, rows, size)
    torch.manual_seed(training.seed)
    network = build_model(model, features, tokenizer, samples.modalities)
    collator = make_collator(network, tokenizer, features)
    targets = partial(network.output.targets, tokenizer=tokenizer)
    collator = replace(collator, targets=targets, modality_dropout=model.modality_dropout, seed=training.seed)
    order = EpochSampler(rows, training.seed)
    batches: Any = DataLoader(samples, training.batch_size, sampler=order, collate_fn=collator)
    batches = list(batches) if ready else batches
    started = time.perf_counter()
    network.to(device).train()  # type: ignore[arg-type]  # transformers wraps it
    groups = [
        {"params": [p for p in network.parameters() if (p.ndim > 1) == decays], "weight_decay": rate}
        for decays, rate in ((True, training.weight_decay), (False, 0.0))  # biases and norms do not
    ]
    optimizer = torch.optim.AdamW(groups, training.learning_rate, (0.9, 0.95), fused=True)
    steps = math.ceil(rows / training.batch_size)
    schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(steps * training.warmup), steps)
    for batch in batches:
        network(**{name: tensor.to(device) for name, tensor in batch.items()}).loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), training.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return timed(started, rows, steps, network)


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--folder", type=Path, help="where what is prepared stays (default: nowhere)")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("no GPU here: skipped", file=sys.stderr)
        return
    if arguments.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the Trainer would take a GPU that it sees
    rows = _QUICK if arguments.quick else _ROWS
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        if not (folder / "settings.json").is_file():
            prepare(folder)
        for size, (_, part) in _MODELS.items():
            count = int(rows * part)
            name = "training", f"{count:,} samples, {size}, {arguments.device}"
            left = partial(ours, folder, count, size)
            for ready, beside in ((False, "bare loop"), (True, "bare loop, batches ready made")):
                right = partial(loop, folder, count, size, arguments.device, ready)
                measure.compare(name, left, beside, right, measure.repetitions(arguments))


if __name__ == "__main__":
    main()
