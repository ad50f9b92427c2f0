"""A training step and the peak memory of a language model that is trained frozen, through LoRA, and whole.

    python -m benchmarks.finetune [--quick] [--llm FOLDER]

Rows are what a small multimodal model sees: a question, a picture and a recording, six soft tokens, an answer; words
are drawn, and how many they are is as in a set of questions about traffic: of questions 4 to 60, mostly about 12, of
answers 1 to 40, mostly about 2. Each way is a process of its own, so that its peak is its own; the first steps warm up
and do not count. A line has benchmark, what, train, packing, precision, gradient_checkpointing, parameters and trained
(millions), ms/step, tokens/s (real ones, that the language model reads), padding (share of what it reads that is none),
memory_mb (peak resident memory, libraries included), checkpoint_mb (what resuming needs), batch and cores. The language
model is FOLDER, or a Llama with random weights of the size of SmolLM2-135M. --data is not used.
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
from benchmarks.llm import Reads, StepClock, write_llama
from training.cache import FeatureCache, needed_columns
from training.checkpoints import last_checkpoint
from training.data import SampleDataset
from training.features import FeatureSettings
from training.schema import DATASET, features_table
from training.settings import LlmSettings, ModelSettings, TrainingSettings
from training.train import TrainingTask, make_tokenizer, make_trainer, new_model

_BATCH, _STEPS, _WARM = 8, 12, 2
_TEXT = "what is the sum of the digit that you see on the left and of all those that you hear behind the noise"
_WORDS = _TEXT.split()
_DTYPES = {"text": {"input_ids": "int32"}, "image": {"pixels": "uint8"}, "speech": {"log_mel": "float32"}}
_WAYS: tuple[dict[str, Any], ...] = (
    {"train": "frozen"},
    {"train": "frozen", "packing": False},
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
    write_llama(folder, _TEXT, **size, **heads, tie_word_embeddings=True)


def samples(folder: Path, features: FeatureSettings) -> SampleDataset:
    random, caches, count = np.random.default_rng(0), {}, _BATCH * _STEPS
    questions, labels = _texts(random, count, 12, 0.5, (4, 60)), _texts(random, count, 2, 1.3, (1, 40))
    columns: dict[str, list[dict[str, Any]]] = {
        "text": [{"text": text, "input_ids": np.frombuffer(text.encode(), np.uint8)} for text in questions],
        "image": [{"pixels": random.integers(0, 256, (1, 14, 14))}],
        "speech": [{"log_mel": random.normal(size=(40, 40))}],
    }
    for modality, contents in columns.items():
        rows = [{"id": f"{modality}{n}", "fingerprint": "f"} | content for n, content in enumerate(contents)]
        caches[modality] = FeatureCache(folder, modality, "f", needed_columns(modality, features))
        caches[modality].add(ds.dataset(features_table(modality, _DTYPES[modality], rows)), [row["id"] for row in rows])
    index = [
        {"sample_id": f"s{n}", "label": label, "text_id": f"text{n}", "image_id": "image0", "speech_id": "speech0"}
        for n, label in enumerate(labels)
    ]
    return SampleDataset(pa.Table.from_pylist(index, DATASET), caches)


def _texts(
    random: np.random.Generator, count: int, typical: float, spread: float, limits: tuple[int, int]
) -> list[str]:
    """Of as many words as a log-normal distribution says."""
    words = random.lognormal(np.log(typical), spread, count).clip(*limits).astype(int)
    return [" ".join(random.choice(_WORDS, n)) for n in words]


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
        packing=way.pop("packing", None),
    )
    model = ModelSettings(llm=LlmSettings(model=str(llm), **way), tokens=2, max_new_tokens=512)
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
        reads = Reads(network)
        make_trainer(task, network, folder, [clock], None).train()
        checkpoint = last_checkpoint(folder)
        assert checkpoint is not None
        stored = sum(path.stat().st_size for path in Path(checkpoint).iterdir())
    timed, seconds = range(_WARM, _STEPS - 1), np.diff(clock.begins)
    counts = {
        "parameters": sum(p.numel() for p in network.parameters()),
        "trained": sum(p.numel() for p in network.parameters() if p.requires_grad),
    }
    return {
        "packing": network.packs,
        **{name: round(count / 1e6, 2) for name, count in counts.items()},
        "ms/step": round(1000 * statistics.median(seconds[_WARM:]), 1),
        "tokens/s": round(sum(float(reads.tokens[n]) for n in timed) / seconds[_WARM:].sum()),
        "padding": round(reads.padding(timed), 3),
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
