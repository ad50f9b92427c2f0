"""Contents that frozen encoders embed a second, on one GPU, beside preprocessing, encoder and a mean alone.

    python -m benchmarks.gpu_embedding [--quick]

The encoders (ViT-base, Whisper small's encoder) have random weights: no rate depends on what they are. Pictures are of
224 x 224 pixels, which are not resized, and of 640 x 480, which are. `bare` takes a content after the other through the
preprocessing, `ours` is what a thread of the featurize step does, then several of them; `busy` is the share of the time
in which a kernel ran (by the profiler, of one more turn). `--quick` is two layers of each on whatever device there is,
to see that it works.
"""

import json
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from torch.profiler import ProfilerActivity, profile

from assets.engines.base import WorkerOptions
from assets.engines.threads import ThreadsEngine
from benchmarks import measure
from benchmarks.llm import synchronize
from training.preprocessing import Picture, Recording
from training.pretrained import load_encoder


def tell_embedding(quick: bool) -> None:
    random = np.random.default_rng(0)
    tiny = {"num_hidden_layers": 2} if quick else {}
    vit = hf.ViTModel(hf.ViTConfig(**tiny)), hf.ViTImageProcessor()
    layers = {"encoder_layers": 2 if quick else 12, "decoder_layers": 1, "d_model": 768}
    layers |= {"encoder_attention_heads": 12, "decoder_attention_heads": 12, "encoder_ffn_dim": 3072}
    whisper = hf.WhisperModel(hf.WhisperConfig(**layers)), hf.WhisperFeatureExtractor()
    count = 64 if quick else 512
    pictures, photos = (
        [Picture(pixels) for pixels in random.integers(0, 256, (n, *size, 3), dtype=np.uint8)]
        for n, size in ((count, (224, 224)), (count, (480, 640)))
    )
    lengths = random.uniform(0.5, 6, count)
    waves: list[Any] = [
        Recording(random.standard_normal(round(16_000 * s)).astype(np.float32) / 10, 16_000) for s in lengths
    ]
    cases: tuple[tuple[str, Any, list[Any], str], ...] = (
        ("image", vit, pictures, "ViT-base, 224 x 224"),
        ("image", vit, photos, "ViT-base, 640 x 480"),
        ("speech", whisper, waves, "Whisper small, 0.5 to 6 s"),
    )
    for modality, parts, contents, name in cases:
        with tempfile.TemporaryDirectory() as temporary:
            for part in parts:
                part.save_pretrained(temporary)
            encoder = load_encoder(modality, Path(temporary))
        sides: dict[str, Callable[[], Any]] = {
            "bare": lambda e=encoder, c=contents: bare(e, c, 64),
            "ours": lambda e=encoder, c=contents: e.embed(c, 4, -1, 64),
        }
        for workers in (2,) if quick else (2, 4):
            sides[f"ours, {workers} threads"] = lambda e=encoder, c=contents, w=workers: threads(e, c, w)
        times: dict[str, list[float]] = {side: [] for side in sides}
        for turn in range(3):
            for side, function in sides.items():
                synchronize()
                started = time.perf_counter()
                function()
                synchronize()
                times[side] += [time.perf_counter() - started] if turn else []
        rates = {side: round(len(contents) / statistics.median(seconds)) for side, seconds in times.items()}
        line = {"benchmark": "gpu_embedding", "what": f"embedding, {name}", "unit": "items/s", **rates}
        best = max(sides, key=lambda side: rates[side])
        line |= {"ratio": round(rates["ours"] / rates["bare"], 3), "best": best, "busy": busy(sides[best])}
        print(json.dumps(line), flush=True)


def busy(function: Callable[[], Any]) -> float | None:
    if not torch.cuda.is_available():
        return None
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        synchronize()
        started = time.perf_counter()
        function()
        synchronize()
        seconds = time.perf_counter() - started
    kernels = [e for e in profiled.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return round(sum(e.time_range.elapsed_us() for e in kernels) / 1e6 / seconds, 3)


def threads(encoder: Any, contents: list[Any], workers: int) -> None:
    """As the featurize step does: batches of 64 contents by threads."""
    batches = (contents[at : at + 64] for at in range(0, len(contents), 64))
    engine = ThreadsEngine(WorkerOptions(workers=workers))
    deque(engine.map(partial(encoder.embed, tokens=4, layer=-1, batch_size=64), batches), 0)


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
    arguments = measure.parser(__doc__).parse_args()
    if not torch.cuda.is_available() and not arguments.quick:
        print("no GPU here: skipped")
        return
    tell_embedding(arguments.quick)


if __name__ == "__main__":
    main()
