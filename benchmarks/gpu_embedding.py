"""Contents that frozen encoders embed a second, on one GPU, beside preprocessing, encoder and a mean alone.

    python -m benchmarks.gpu_embedding [--quick]

The encoders (ViT-base, Whisper small's encoder) have random weights: no rate depends on what they are. `--quick` is two
layers of each on whatever device there is, to see that it works.
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

from assets.engines.base import WorkerOptions, cores
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
        line = {"benchmark": "gpu_embedding", "what": f"embedding, {name}", "unit": "items/s", **rates}
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
    arguments = measure.parser(__doc__).parse_args()
    if not torch.cuda.is_available() and not arguments.quick:
        print("no GPU here: skipped")
        return
    tell_embedding(arguments.quick)


if __name__ == "__main__":
    main()
