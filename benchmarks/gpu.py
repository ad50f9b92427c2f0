"""Training of a language model of a billion parameters in bfloat16 on one GPU, by `training.train.fit`, beside a bare
loop; and what frozen encoders embed a second.

    python -m benchmarks.gpu --folder FOLDER [--quick]

FOLDER is one that `benchmarks.training --folder` has prepared: the built-in example's rows, in files that need nothing
but what `training` needs. The language model (Llama's kind, 22 layers of width 2048, 1.1 billion parameters) and the
encoders (ViT-base, Whisper small's encoder) have random weights: no rate depends on what they are. All weights are
trained, in float32 with bfloat16 autocast and fused AdamW.

Model FLOPs utilisation is 6 x parameters x tokens (padding not counted) a second over the card's dense bfloat16 rate,
989 TFLOP/s of an H100 or H200; attention is left out, which is under two percent at these lengths. Steps are timed from
the fourth on, between synchronisations. `--quick` is a tiny model on whatever device there is, to see that it works.
"""

import json
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from torch.utils.data import DataLoader

from assets.engines.base import WorkerOptions, cores
from assets.engines.threads import ThreadsEngine
from benchmarks import measure
from benchmarks.llm import StepClock, synchronize, write_llama
from benchmarks.training import opened
from training.building import build_model
from training.data import EpochSampler, make_collator
from training.preprocessing import Picture, Recording
from training.pretrained import load_encoder
from training.settings import LlmSettings
from training.train import TrainingTask, fit, make_tokenizer

_PEAK = 989e12  # FLOP a second
_WARM = 3  # steps
_BATCH = 256


def language_model(folder: Path, quick: bool) -> int:
    """Writes a language model with random weights; returns its parameters."""
    shape = (
        {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
        if quick
        else {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32}
        | {"num_key_value_heads": 4}
    )
    return write_llama(folder, "What do you see and hear?", **shape, vocab_size=32_000)


def task_of(folder: Path, llm: Path, rows: int) -> TrainingTask:
    model, training, features, samples, _ = opened(folder, rows, "the example's model")
    model = replace(model, llm=LlmSettings(model=str(llm)))
    training = replace(training, batch_size=min(_BATCH, rows // 8), precision="bfloat16")
    tokenizer = make_tokenizer(samples, model, training)
    nothing = samples.take([])
    return TrainingTask(
        model=model, training=training, features=features, train=samples, validation=nothing, tokenizer=tokenizer
    )


def ours(task: TrainingTask) -> list[float]:
    """Seconds of each step."""
    clock = StepClock()
    with tempfile.TemporaryDirectory() as checkpoints:
        # What is saved at the end is no part of a step: 13 GB would be written.
        hf.Trainer._save_checkpoint = lambda *_, **__: None  # type: ignore[method-assign,assignment]
        fit(task, Path(checkpoints), [clock])
    return np.diff(clock.begins).tolist()


def loop(task: TrainingTask) -> tuple[list[float], float]:
    """Seconds of each step, and real tokens that the language model reads in one."""
    training, device = task.training, torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    torch.manual_seed(training.seed)
    network = build_model(task.model, task.features, task.tokenizer, task.modalities)
    collator = make_collator(network, task.tokenizer, task.features)
    targets = partial(network.output.targets, tokenizer=task.tokenizer)
    collator = replace(collator, targets=targets, modality_dropout=task.model.modality_dropout, seed=training.seed)
    samples: Any = task.train
    order = EpochSampler(len(samples), training.seed)
    network.to(device).train()  # type: ignore[arg-type]  # transformers wraps it
    optimizer = torch.optim.AdamW(network.parameters(), training.learning_rate, (0.9, 0.95), fused=True)
    begins, tokens = [], []
    read = network.read

    def counted(embeddings_BSD: torch.Tensor, mask_BS: torch.Tensor, **options: Any) -> Any:
        tokens.append(mask_BS.sum())
        return read(embeddings_BSD, mask_BS, **options)

    network.read = counted  # type: ignore[method-assign]
    for batch in DataLoader(samples, training.batch_size, sampler=order, collate_fn=collator):
        synchronize()
        begins.append(time.perf_counter())
        with torch.autocast(device.type, torch.bfloat16):
            loss = network(**{name: tensor.to(device) for name, tensor in batch.items()}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), training.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    return np.diff(begins).tolist(), float(torch.stack(tokens).float().mean())


def tell_training(folder: Path, quick: bool) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        parameters = language_model(Path(temporary), quick)
        task = task_of(folder, Path(temporary), 128 if quick else 4096)
        figures = {}
        memory = {}
        for side in ("loop", "ours", "loop", "ours"):  # the first of each warms up
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            steps: Any = loop(task) if side == "loop" else ours(task)
            if side == "loop":
                steps, tokens = steps
            figures[side] = statistics.median(steps[_WARM:])
            memory[side] = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
        for side, seconds in figures.items():
            utilisation = 6 * parameters * tokens / seconds / _PEAK
            line = {"benchmark": "gpu", "what": f"training, {parameters / 1e9:.2f} billion parameters, {side}"}
            line |= {"ms/step": round(1000 * seconds, 1), "tokens/s": round(tokens / seconds)}
            line |= {"mfu": round(utilisation, 3), "gpu_gb": round(memory[side], 1), "batch": task.training.batch_size}
            print(json.dumps(line), flush=True)
        print(
            json.dumps(
                {"benchmark": "gpu", "what": "training, ours / loop", "ratio": figures["loop"] / figures["ours"]}
            )
        )


def tell_embedding(quick: bool) -> None:
    random = np.random.default_rng(0)
    tiny = {"num_hidden_layers": 2} if quick else {}
    vit = hf.ViTModel(hf.ViTConfig(**tiny)), hf.ViTImageProcessor()
    layers = {"encoder_layers": 2 if quick else 12, "decoder_layers": 1, "d_model": 768}
    layers |= {"encoder_attention_heads": 12, "decoder_attention_heads": 12, "encoder_ffn_dim": 3072}
    whisper = hf.WhisperModel(hf.WhisperConfig(**layers)), hf.WhisperFeatureExtractor()
    count = 64 if quick else 2048
    pictures = [Picture(pixels) for pixels in random.integers(0, 256, (count, 224, 224, 3), dtype=np.uint8)]
    lengths = random.uniform(0.5, 6, count)
    waves: list[Any] = [
        Recording(random.standard_normal(round(16_000 * s)).astype(np.float32) / 10, 16_000) for s in lengths
    ]
    cases: tuple[tuple[str, Any, list[Any], str], ...] = (
        ("image", vit, pictures, "ViT-base"),
        ("speech", whisper, waves, "Whisper small, 0.5 to 6 s"),
    )
    for modality, parts, contents, name in cases:
        with tempfile.TemporaryDirectory() as temporary:
            for part in parts:
                part.save_pretrained(temporary)
            encoder = load_encoder(modality, Path(temporary))
        sides: dict[str, Callable[[], Any]] = {
            "ours, one thread": lambda e=encoder, c=contents: e.embed(c, 4, -1, 64),
            "bare": lambda e=encoder, c=contents: bare(e, c, 64),
            "ours": lambda e=encoder, c=contents: threads(e, c),
        }
        times: dict[str, list[float]] = {side: [] for side in sides}
        for turn in range(4):
            for side, function in sides.items():
                synchronize()
                started = time.perf_counter()
                function()
                synchronize()
                times[side] += [time.perf_counter() - started] if turn else []
        rates = {side: round(count / statistics.median(seconds)) for side, seconds in times.items()}
        line = {"benchmark": "gpu", "what": f"embedding, {name}", "unit": "items/s", **rates}
        ratio = round(rates["ours, one thread"] / rates["bare"], 3)
        print(json.dumps(line | {"ratio": ratio, "threads": cores()}), flush=True)


def threads(encoder: Any, contents: list[Any]) -> None:
    """As the featurize step does: a thread for each core, batches of 64 contents."""
    batches = (contents[at : at + 64] for at in range(0, len(contents), 64))
    deque(ThreadsEngine(WorkerOptions()).map(partial(encoder.embed, tokens=4, layer=-1, batch_size=64), batches), 0)


def bare(encoder: Any, contents: list[Any], batch_size: int) -> None:
    """Preprocessing, encoder and a mean, in batches of one length, and nothing else."""
    inputs = [part.tensors for content in contents for part in encoder.preprocessing.inputs(content)]
    inputs.sort(key=lambda tensors: [tuple(tensor.shape) for tensor in tensors.values()])
    with torch.inference_mode():
        start = 0
        while start < len(inputs):
            shapes = [tensor.shape for tensor in inputs[start].values()]
            batch = [t for t in inputs[start : start + batch_size] if [x.shape for x in t.values()] == shapes]
            start += len(batch)
            tensors = {name: torch.cat([t[name] for t in batch]).to(encoder.device) for name in batch[0]}
            encoder.tower.states(encoder.network, tensors, -1).mean(1).half().cpu().numpy()


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="what `benchmarks.training --folder` prepared")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() and not arguments.quick:
        print("no GPU here: skipped")
        return
    print(json.dumps({"benchmark": "gpu", "device": str(torch.accelerator.current_accelerator(check_available=True))}))
    tell_embedding(arguments.quick)
    tell_training(arguments.folder.resolve(), arguments.quick)


if __name__ == "__main__":
    main()
