"""What `benchmarks.gpu` trains: models with random weights, and rows of noise.

Nothing but what `training` needs, so that a machine with a GPU needs little.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import torch
import transformers as hf

from benchmarks.llm import write_llama
from training.cache import FeatureCache, needed_columns
from training.data import SampleDataset
from training.features import FeatureSettings
from training.schema import DATASET, features_table
from training.settings import LlmSettings, ModelSettings, TrainingSettings, complete
from training.train import TrainingTask, make_tokenizer

_CONTENTS = 64  # of each modality
_TEXT = "which of the two that you see and hear is more like what was said before and why do you think so"
_WORDS = _TEXT.split()
# Way -> how the language model and the encoders are trained.
WAYS = {"lora": ("lora", "lora"), "full over frozen": ("full", "frozen")}


def write_models(folder: Path, quick: bool) -> dict[str, float]:
    """Writes language model and encoders; returns the parameters of each that work on every token."""
    torch.manual_seed(0)
    shape = (
        {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
        if quick
        else {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32}
        | {"num_key_value_heads": 4}
    )
    vocabulary = 1000 if quick else 32_000
    heads = {"num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4}
    vit = hf.ViTModel(hf.ViTConfig(**heads if quick else {}), add_pooling_layer=False)
    whisper = {"d_model": 48 if quick else 768, "encoder_layers": 2 if quick else 12, "decoder_layers": 1}
    whisper |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4 if quick else 12)
    whisper |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 96 if quick else 3072)
    ears = hf.WhisperModel(hf.WhisperConfig(**whisper))
    encoders = {"image": (vit, hf.ViTImageProcessor()), "speech": (ears, hf.WhisperFeatureExtractor())}
    for modality, parts in encoders.items():
        for part in parts:
            part.save_pretrained(folder / modality)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    with device:  # a billion random numbers take long on a CPU
        parameters = write_llama(folder / "llm", _TEXT, **shape, vocab_size=vocabulary)
    sizes = {"llm": parameters - 2 * vocabulary * shape["hidden_size"]}
    sizes |= {m: sum(p.numel() for p in n.parameters()) for m, n in (("image", vit), ("speech", ears.encoder))}
    return sizes


def make_task(folder: Path, way: str, rows: int, batch: int, compiled: bool, workers: int) -> TrainingTask:
    llm, train = WAYS[way]
    encoders: dict[str, Any] = {
        m: {"kind": "huggingface", "model": str(folder / m), "train": train} for m in ("image", "speech")
    }
    features = FeatureSettings().with_encoders(encoders)
    model = ModelSettings(encoders={"text": "llm", **encoders}, llm=LlmSettings(model=str(folder / "llm"), train=llm))  # type: ignore[arg-type]
    model = complete(model, features.forms)
    training = TrainingSettings(
        epochs=1, batch_size=batch, precision="bfloat16", evaluations=0, compile=compiled, workers=workers
    )
    samples = make_samples(folder / "cache", features, rows)
    return TrainingTask(
        model=model,
        training=training,
        features=features,
        train=samples,
        validation=samples.take([]),
        tokenizer=make_tokenizer(samples, model, training),
    )


def make_samples(folder: Path, features: FeatureSettings, rows: int) -> SampleDataset:
    random = np.random.default_rng(0)
    sentences = [" ".join(random.choice(_WORDS, size=random.integers(4, 41))) for _ in range(_CONTENTS)]
    waves = [
        random.standard_normal(round(16_000 * s)).astype(np.float32) / 10 for s in random.uniform(0.5, 3, _CONTENTS)
    ]
    contents: dict[str, list[Any]] = {
        "text": [SimpleNamespace(text=text) for text in sentences],
        "image": [
            SimpleNamespace(array=random.integers(0, 256, (224, 224, 3), dtype=np.uint8)) for _ in range(_CONTENTS)
        ],
        "speech": [SimpleNamespace(waveform=wave, sample_rate=16_000) for wave in waves],
    }
    caches = {}
    for modality, items in contents.items():
        featurizer, columns = features.featurizer(modality), needed_columns(modality, features)
        caches[modality] = FeatureCache(folder, modality, "f", columns)
        found = [
            {"id": f"{modality}{n}", "fingerprint": "f", **featurizer.featurize(item)}
            | ({"text": item.text} if modality == "text" else {})
            for n, item in enumerate(items)
        ]
        table = ds.dataset(features_table(modality, featurizer.tensors, found))
        caches[modality].add(table, [row["id"] for row in found])
    index = [
        {"sample_id": f"s{n}", "label": " ".join(random.choice(_WORDS, size=random.integers(1, 5)))}
        | {f"{m}_id": f"{m}{random.integers(_CONTENTS)}" for m in contents}
        for n in range(rows)
    ]
    return SampleDataset(pa.Table.from_pylist(index, DATASET), caches)
