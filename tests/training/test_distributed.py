"""Processes that train one model together, on the CPU: what they learn is what one process learns."""

import itertools
import json
import multiprocessing
import os
import socket
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from tests.training import tiny_encoders, tiny_vectors
from training import distributed
from training.building import build_model
from training.cache import FeatureCache, needed_columns
from training.catalog import OUTPUTS
from training.checkpoints import last_checkpoint
from training.data import SampleDataset
from training.family import Choice
from training.features import FeatureSettings
from training.layers import BatchNorm
from training.schema import DATASET, features_table
from training.settings import LlmSettings, ModelSettings, TrainingSettings, complete
from training.train import TrainingTask, fit, make_tokenizer

ROWS, BATCH, EPOCHS = 40, 8, 2


class Stop(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 7:
            raise KeyboardInterrupt


class StillNorms(TrainerCallback):
    """Batch normalisation sees the part of a batch that its process has; here it goes by its running averages."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        for module in model.modules():
            if isinstance(module, BatchNorm):
                module.eval()
                vars(module)["train"] = lambda mode=True, module=module: module


class Gradients(TrainerCallback):
    """Their size at each step, which the optimizer does not see: it goes by their directions."""

    def __init__(self) -> None:
        self.sizes: list[float] = []
        self.are_parted = False

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.are_parted = any(isinstance(p, DTensor) for p in model.parameters())
        norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
        self.sizes.append(float(torch.stack([n.full_tensor() if isinstance(n, DTensor) else n for n in norms]).norm()))


def make_task(folder: Path) -> TrainingTask:
    """A picture (LoRA), a recording (frozen) and a question (read by a language model, LoRA); of each row something is
    missing, so that batches lack whole modalities."""
    random = np.random.default_rng(0)
    encoders: dict[str, Any] = {"text": "llm"}
    for modality, family, train in (("image", "vit", "lora"), ("speech", "whisper", "frozen")):
        model = tiny_encoders.make(family, folder / family)
        encoders[modality] = {"kind": "huggingface", "model": str(model), "train": train}
    features = FeatureSettings().with_encoders(encoders)
    contents = {
        "text": [SimpleNamespace(text=text) for text in ("is it bright?", "what is it?")],
        "image": [SimpleNamespace(array=random.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(2)],
        "speech": [SimpleNamespace(waveform=tiny_encoders.noise(0.1).waveform, sample_rate=16_000) for _ in range(2)],
    }
    caches = {}
    for modality, items in contents.items():
        featurizer = features.featurizer(modality)
        columns = needed_columns(modality, features)
        caches[modality] = FeatureCache(folder / "cache", modality, "f", columns)
        rows = [
            {"id": f"{modality}{n}", "fingerprint": "f"}
            | ({"text": item.text} if modality == "text" else {})
            | featurizer.featurize(item)
            for n, item in enumerate(items)
        ]
        table = features_table(modality, featurizer.tensors, rows)
        caches[modality].add(ds.dataset(table), [row["id"] for row in rows])
    index = []
    for n in range(ROWS):
        asked, seen, heard = random.integers(0, 2, 3)
        ids = {"text_id": f"text{asked}", "image_id": f"image{seen}", "speech_id": f"speech{heard}"}
        shown = ([*ids][n % 3],) if n < ROWS // 2 else [name for name in ids if random.random() < 0.5] or [*ids][:1]
        index.append({"sample_id": f"s{n:02d}", "label": "yn"[seen]} | {name: ids[name] for name in shown})
    samples = SampleDataset(pa.Table.from_pylist(index, schema=DATASET), caches)
    model = ModelSettings(width=16, layers=1, heads=2, tokens=1, max_new_tokens=3, modality_dropout=0.3)
    training = TrainingSettings(
        epochs=EPOCHS, batch_size=BATCH, learning_rate=5e-3, checkpoint_steps=3, evaluations=2, vocabulary=300
    )
    tokenizer = make_tokenizer(samples, model, training)
    llm = folder / "llm"
    tokenizer.save_pretrained(llm)
    torch.manual_seed(1)
    build_model(model, FeatureSettings(), tokenizer, ("text",), ["y"]).llm.save_pretrained(llm)
    model = replace(model, encoders=encoders, llm=LlmSettings(model=str(llm), train="lora"))
    model = complete(model, {m: features.forms[m] for m in contents})
    return TrainingTask(
        model=model, training=training, features=features, train=samples, validation=samples, tokenizer=tokenizer
    )


def make_places(folder: Path) -> TrainingTask:
    """An embedding, of which each row is told from all others of its batch."""
    samples, output = tiny_vectors.make(folder), Choice("embedding")
    rows = samples.index.to_pylist()
    for row in rows:
        contents = {m: row[f"{m}_id"] for m in tiny_vectors.MODALITIES if row[f"{m}_id"] is not None}
        row["label"] = OUTPUTS.make(output, {}).own_label(contents)
    samples = SampleDataset(pa.Table.from_pylist(rows, DATASET), samples.caches)
    model = ModelSettings(width=16, layers=1, heads=2, tokens=1, output=output)
    model = complete(model, tiny_vectors.FEATURES.forms)
    training = TrainingSettings(epochs=EPOCHS, batch_size=BATCH, evaluations=4, early_stopping=3)
    return TrainingTask(
        model=model,
        training=replace(training, learning_rate=5e-3, vocabulary=300, max_grad_norm=100),
        features=tiny_vectors.FEATURES,
        train=samples,
        validation=samples,
        tokenizer=make_tokenizer(samples, model, training),
    )


def learn(task: TrainingTask, places: TrainingTask, folder: Path) -> None:
    """Trains undisturbed, and cut and resumed, and an embedding; writes down what came of it."""
    torch.set_num_threads(1)
    task = replace(task, tokenizer=make_tokenizer(task.train, task.model, task.training))
    trained = fit(task, folder / "whole", [StillNorms()])
    with pytest.raises(KeyboardInterrupt):
        fit(task, folder / "cut", [StillNorms(), Stop()])
    torch.manual_seed(99)  # another process has another state
    again = fit(task, folder / "cut", [StillNorms()])
    checkpoint = last_checkpoint(folder / "cut")
    assert checkpoint is not None
    stored = load_file(Path(checkpoint) / "model.safetensors")
    pretrained = [name for name in stored if ".network." in name or name.startswith("llm.")]
    assert pretrained and all(".lora_" in name for name in pretrained)
    gradients = Gradients()
    placed = fit(places, folder / "places", [StillNorms(), gradients])
    assert gradients.are_parted == distributed.shards()
    placed.history.extend({"gradient": size} for size in gradients.sizes)
    if distributed.is_first():
        for name, one in (("whole", trained), ("cut", again), ("places", placed)):
            save_file({n: t.clone() for n, t in one.model.state_dict().items()}, folder / f"{name}.safetensors")
            (folder / f"{name}.json").write_text(json.dumps(one.history))


def process(number: int, port: int, environment: dict[str, str], *work: Any) -> None:
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2", **environment}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    learn(*work)
    distributed.leave()


def together(*work: Any, **environment: str) -> None:
    """`learn` in two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=process, args=(number, port, environment, *work)) for number in range(2)]
    for one in processes:
        one.start()
    for one in processes:
        one.join()
    assert [one.exitcode for one in processes] == [0, 0]


@pytest.mark.slow
def test_two_processes_learn_what_one_does_and_resume(tmp_path: Path) -> None:
    tasks = make_task(tmp_path), make_places(tmp_path / "places")
    parted = partial(together, **{distributed.SHARD: "1"})  # each has a part of the language model's layers
    for way, do in (("one", learn), ("two", together), ("parted", parted)):
        (tmp_path / way).mkdir()
        do(*tasks, tmp_path / way)
    for way, (name, steps) in itertools.product(("two", "parted"), (("whole", 10), ("places", 2 * 8))):
        alone, history = (json.loads((tmp_path / w / f"{name}.json").read_text()) for w in ("one", way))
        assert len(alone) >= steps and any("validation_loss" in entry for entry in alone)
        assert [entry.keys() for entry in history] == [entry.keys() for entry in alone]
        for expected, found in zip(alone, history, strict=True):
            if name == "places":  # whose validation rows are told from those of their own process
                expected.pop("validation_loss", None)
                found.pop("validation_loss", None)
            assert found == pytest.approx(expected, rel=1e-3, abs=1e-5), way
        alone, weights = (load_file(tmp_path / w / f"{name}.safetensors") for w in ("one", way))
        assert weights.keys() == alone.keys()
        assert all(torch.allclose(tensor, alone[n], rtol=0.05, atol=0.01) for n, tensor in weights.items())
    for way in ("two", "parted"):
        weights, again = (load_file(tmp_path / way / f"{name}.safetensors") for name in ("whole", "cut"))
        assert all(torch.equal(tensor, again[name]) for name, tensor in weights.items())


def test_a_batch_that_cannot_be_shared_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert distributed.part_of(12) == 4
    with pytest.raises(ValueError, match=r"training\.batch_size is 64, and 3 processes share each batch"):
        distributed.part_of(64)
