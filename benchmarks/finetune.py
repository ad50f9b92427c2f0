"""A training step and the peak memory of a language model that is trained frozen, through LoRA, and whole.

    python -m benchmarks.finetune [--quick] [--llm FOLDER]

Rows are what a small multimodal model sees: a question, a picture and a recording, six soft tokens, an answer of one
token. Each way is a process of its own, so that its peak is its own; the first steps warm up and do not count. A line
has benchmark, what, train, precision, gradient_checkpointing, parameters and trained (millions), ms/step, memory_mb
(peak resident memory, libraries included), checkpoint_mb (what resuming needs), batch and cores. The language model is
FOLDER, or a Llama with random weights of the size of SmolLM2-135M. --data is not used.
"""

import json
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from benchmarks import measure
from benchmarks.llm import StepClock, write_llama
from training.cache import FeatureCache, needed_columns
from training.checkpoints import last_checkpoint
from training.data import SampleDataset
from training.features import FeatureSettings
from training.schema import DATASET, features_table
from training.settings import LlmSettings, ModelSettings, TrainingSettings
from training.train import TrainingTask, make_tokenizer, make_trainer, new_model

_BATCH, _STEPS, _WARM = 8, 12, 2
_QUESTION = "What is the sum of the digit you see and the digit you hear?"
_DTYPES = {"text": {"input_ids": "int32"}, "image": {"pixels": "uint8"}, "speech": {"log_mel": "float32"}}
_WAYS: tuple[dict[str, Any], ...] = (
    {"train": "frozen"},
    {"train": "lora", "rank": 8},
    {"train": "full"},
    {"train": "full", "gradient_checkpointing": True},
    {"train": "lora", "rank": 8, "precision": "bfloat16"},
)


def language_model(folder: Path, quick: bool) -> None:
    """Writes one with random weights."""
    size = (
        {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 1000}
        if quick
        else {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49_152}
    )
    heads = {"num_attention_heads": 4} if quick else {"num_attention_heads": 9, "num_key_value_heads": 3}
    write_llama(folder, _QUESTION, **size, **heads, tie_word_embeddings=True)


def samples(folder: Path, features: FeatureSettings) -> SampleDataset:
    random, caches = np.random.default_rng(0), {}
    rows: dict[str, dict[str, Any]] = {
        "text": {"text": _QUESTION, "input_ids": np.frombuffer(_QUESTION.encode(), np.uint8)},
        "image": {"pixels": random.integers(0, 256, (1, 14, 14))},
        "speech": {"log_mel": random.normal(size=(40, 40))},
    }
    for modality, row in rows.items():
        caches[modality] = FeatureCache(folder, modality, "f", needed_columns(modality, features))
        table = features_table(modality, _DTYPES[modality], [{"id": modality, "fingerprint": "f"} | row])
        caches[modality].add(ds.dataset(table), [modality])
    ids = {f"{modality}_id": modality for modality in rows}
    index = [{"sample_id": f"s{n}", "label": str(n % 10)} | ids for n in range(_BATCH * _STEPS)]
    return SampleDataset(pa.Table.from_pylist(index, DATASET), caches)


def trained(llm: Path, way: dict[str, Any]) -> dict[str, Any]:
    """Trains in this process; what a line says of it."""
    way = dict(way)
    training = TrainingSettings(
        epochs=1,
        batch_size=_BATCH,
        evaluations=0,
        checkpoint_steps=_STEPS,
        precision=way.pop("precision", "float32"),
        gradient_checkpointing=way.pop("gradient_checkpointing", False),
    )
    model = ModelSettings(llm=LlmSettings(model=str(llm), **way), tokens=2)
    features, clock = FeatureSettings(image={"size": 14, "color": "grey"}, speech={"mels": 40}), StepClock()
    with tempfile.TemporaryDirectory() as temporary:
        rows = samples(Path(temporary) / "cache", features)
        task = TrainingTask(
            model=model,
            training=training,
            features=features,
            train=rows,
            validation=rows.take([]),
            tokenizer=make_tokenizer(rows, model, training),
        )
        network, folder = new_model(task), Path(temporary) / "checkpoints"
        make_trainer(task, network, folder, [clock], None).train()
        checkpoint = last_checkpoint(folder)
        assert checkpoint is not None
        stored = sum(path.stat().st_size for path in Path(checkpoint).iterdir())
    counts = {
        "parameters": sum(p.numel() for p in network.parameters()),
        "trained": sum(p.numel() for p in network.parameters() if p.requires_grad),
    }
    return {
        **{name: round(count / 1e6, 2) for name, count in counts.items()},
        "ms/step": round(1000 * statistics.median(np.diff(clock.begins)[_WARM:]), 1),
        "memory_mb": round(measure.peak_mb()),
        "checkpoint_mb": round(stored / 2**20, 1),
    }


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--llm", type=Path, help="folder of a causal language model")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        llm = arguments.llm or Path(temporary)
        if arguments.llm is None:
            language_model(llm, arguments.quick)
        for way in _WAYS:
            with measure.Side() as side:
                figures = side(partial(trained, llm.resolve(), way))
            said = {"precision": "float32", "gradient_checkpointing": False} | way
            line = {"benchmark": "finetune", "what": arguments.llm.name if arguments.llm else "random weights"}
            print(json.dumps(line | said | figures | {"batch": _BATCH, "cores": measure.CORES}), flush=True)


if __name__ == "__main__":
    main()
