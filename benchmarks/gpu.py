"""Training of a language model of 1.1 billion parameters that hears and sees through pretrained encoders inside the
model, in bfloat16 on one GPU, beside a bare loop.

    python -m benchmarks.gpu [--quick] [--seconds 270] [--ways lora,...] [--sides ours,loop,...] [--kernels FILE]

The language model (Llama's kind, 22 layers of width 2048) and the encoders (ViT-base, Whisper small's encoder) have
random weights, and the contents are noise: no rate depends on what they are. A row is a question of 4 to 40 words, a
picture of 224 x 224 pixels, a recording of 0.5 to 3 seconds, and an answer of 1 to 4 words; one in ten of each modality
is hidden. The ways to train: all with LoRA; and the language model whole over frozen encoders. The sides: `ours`, what
`training.train.make_trainer` makes; `compiled`, the same with `training.compile`; `loop`, the same model and batches
under autocast with fused AdamW and clipping, and nothing else.

A line is printed as soon as it is known, and a part ends at its limit, so that a run that is cut keeps what it has:

    tokens/s  real tokens that the language model reads (padding not counted), of the median step
    mfu       model FLOPs utilisation: forward 2, backward to the inputs 2 and to the weights 2 FLOPs for each parameter
              and real token, of what does each (LoRA: its own few parameters not counted; a frozen encoder: forward
              alone), without attention's own and without embeddings; over the dense bfloat16 rate, 989 TFLOP/s of an
              H100 or H200
    padding   share of the positions that the language model reads and that are none
    gpu_gb    peak of what PyTorch had allocated
    profile   of one more step: shares of the time of all kernels, and `busy`: of the time that the step took

The first steps warm up: three, and twelve where layers are compiled (`warm_s` has the time, and `setup_s` that before
the first step). `--kernels` writes what each kernel took. `--quick` is a tiny model on whatever device there is, to see
that it works; nothing is compiled then.
"""

import contextlib
import gc
import json
import re
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader

from benchmarks import measure
from benchmarks.gpu_model import WAYS, make_task, write_models
from benchmarks.llm import Reads, StepClock, synchronize
from training.model import FusionModel
from training.train import TrainingTask, make_trainer, new_model

_PEAK = 989e12  # FLOP a second
_BATCH, _STEPS, _WARM, _WARM_COMPILED = 256, 24, 3, 12
_KINDS = {  # of kernels on a GPU, or operators on a CPU; the first that fits
    "optimizer": "adam|multi_tensor|foreach",
    "attention": "flash|fmha|attention|softmax",
    "matmul": "gemm|nvjet|cutlass|xmma|cublas|splitk|mm$|conv",
    "compiled": "triton|inductor",
    "copies and casts": "copy|memcpy|memset|cat",
    "norms and sums": "reduce|norm|mean|sum",
    "elementwise": "elementwise|mul|add|silu|gelu|rsqrt|pow",
}


class Meter(Reads):
    """Counts what the encoders read, too."""

    def __init__(self, network: FusionModel) -> None:
        super().__init__(network)
        self.encoded: dict[str, list[int]] = {"image": [], "speech": []}
        encode = network.encode

        def counted_encode(present: torch.Tensor, **batch: Any) -> Any:
            config: Any = network.config
            shown = dict(zip(config.modalities, present.cpu().sum(0).tolist(), strict=True))
            self.encoded["image"].append(197 * shown["image"])
            frames = batch["speech_mask"].cpu() & present.cpu()[:, config.modalities.index("speech"), None]
            self.encoded["speech"].append(int(frames.sum()) // 2)  # its second convolution halves them
            return encode(present, **batch)

        network.encode = counted_encode  # type: ignore[method-assign]

    def flops(self, step: int, sizes: dict[str, float], way: str) -> float:
        llm, encoders = WAYS[way]
        each = {"full": 6, "lora": 4, "frozen": 2}
        total = each[llm] * sizes["llm"] * float(self.tokens[step])
        return total + sum(each[encoders] * sizes[m] * counts[step] for m, counts in self.encoded.items())


class Profile(hf.TrainerCallback):
    """Of the last step; without what the CPU does, where there is a GPU: reading that takes a minute."""

    def __init__(self, last: int, part: "Part", kernels: Path | None) -> None:
        self.last, self.part, self.kernels, self.seconds = last, part, kernels, 0.0
        activity = ProfilerActivity.CUDA if torch.cuda.is_available() else ProfilerActivity.CPU
        self._profile = profile(activities=[activity], acc_events=True)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.last:
            self.part.tell()  # whatever becomes of the profile
            self._profile.start()
            self.seconds = -time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step <= self.last:
            return
        synchronize()
        self.seconds += time.perf_counter()
        self._profile.stop()
        events = self._profile.key_averages()
        print(json.dumps(self.part.what | {"profile": self._shares(events)}), flush=True)
        if self.kernels:
            by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
            with self.kernels.open("a") as out:
                out.write(events.table(sort_by=by, row_limit=60, max_name_column_width=90))

    def _shares(self, events: Any) -> dict[str, float]:
        times = dict.fromkeys([*_KINDS, "other"], 0.0)
        for event in events:
            on_gpu = event.device_type == torch.autograd.DeviceType.CUDA
            if on_gpu != torch.cuda.is_available() or getattr(event, "is_user_annotation", False):
                continue
            if event.key.startswith(("Optimizer.", "ProfilerStep", "Torch-Compiled")):
                continue
            spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            name = event.key.lower()
            times[next((kind for kind, words in _KINDS.items() if re.search(words, name)), "other")] += spent
        total = sum(times.values()) or 1.0
        shares = {kind: round(spent / total, 3) for kind, spent in times.items()}
        return shares | {"busy": round(total / 1e6 / self.seconds, 3)}


class Part:
    """What is known of one way and side, and told once: when all its steps are done, or when it is cut."""

    def __init__(self, task: TrainingTask, what: dict[str, Any], sizes: dict[str, float]) -> None:
        self.task, self.what, self.sizes = task, what, sizes
        self.started, self.clock, self.meter, self.milliseconds = time.perf_counter(), StepClock(), None, 0.0
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def watch(self, network: FusionModel) -> None:
        self.meter = Meter(network)

    def tell(self) -> None:
        steps, meter = np.diff(self.clock.begins).tolist(), self.meter
        warm = _WARM_COMPILED if self.task.training.compile else _WARM
        timed = range(warm, len(steps))
        line = {"setup_s": round(self.clock.begins[0] - self.started, 1) if self.clock.begins else None}
        line |= {"steps": len(timed), "warm_s": round(sum(steps[:warm]), 1)}
        if timed and meter is not None and not self.milliseconds:
            self.milliseconds = round(1000 * statistics.median(steps[warm:]), 1)
            flops = [meter.flops(n, self.sizes, self.what["way"]) / steps[n] for n in timed]
            line |= {
                "ms/step": self.milliseconds,
                "tokens/s": round(statistics.median(float(meter.tokens[n]) / steps[n] for n in timed)),
                "mfu": float(f"{statistics.median(flops) / _PEAK:.3g}"),
                "padding": round(meter.padding(timed), 3),
                "gpu_gb": round(torch.cuda.max_memory_allocated() / 2**30, 1) if torch.cuda.is_available() else 0.0,
                "batch": self.task.training.batch_size,
                "workers": self.task.training.workers,
            }
        print(json.dumps(self.what | line), flush=True)


def ours(task: TrainingTask, part: Part, kernels: Path | None) -> None:
    network = new_model(task)
    part.watch(network)
    watched = Profile(len(task.train) // task.training.batch_size - 1, part, kernels)
    with tempfile.TemporaryDirectory() as checkpoints:
        trainer = make_trainer(task, network, Path(checkpoints), [part.clock, watched], None)
        trainer._save_checkpoint = lambda *_, **__: None  # type: ignore[method-assign,assignment]  # no part of a step
        trainer.train()


def loop(task: TrainingTask, part: Part, kernels: Path | None) -> None:
    training, device = task.training, torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    network = new_model(task)
    with tempfile.TemporaryDirectory() as nowhere:  # for its batches in their order
        trainer = make_trainer(
            replace(task, training=replace(training, precision="float32")), network, Path(nowhere), [], None
        )
    batches: Any = DataLoader(
        task.train,
        training.batch_size,
        sampler=trainer._get_train_sampler(task.train),
        collate_fn=trainer.data_collator,
        num_workers=training.workers,
        pin_memory=device.type == "cuda",
    )
    network.to(device).train()  # type: ignore[arg-type]  # transformers wraps it
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, training.learning_rate, (0.9, 0.95), fused=True)
    part.watch(network)
    for batch in batches:
        part.clock.on_step_begin()
        with torch.autocast(device.type, torch.bfloat16):
            loss = network(**{name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, training.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    part.tell()


@contextlib.contextmanager
def limited(seconds: float, part: Part, failed: list[str]) -> Iterator[None]:
    """Ends what is within after so many seconds; what went wrong is a line, and the next part goes on."""
    end = time.monotonic() + seconds

    def cut(*_: Any) -> None:
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, cut)
    signal.setitimer(signal.ITIMER_REAL, max(0.01, seconds))
    try:
        yield
    except Exception as error:  # a compiler wraps what ends it
        if time.monotonic() < end:
            failed.append(f"{type(error).__name__}: {error}"[:500])
        said = {"error": failed[-1]} if time.monotonic() < end else {"cut_after_s": round(seconds)}
        print(json.dumps(part.what | said), flush=True)
        if not part.milliseconds:
            part.tell()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


SIDES: dict[str, Callable[[TrainingTask, Part, Path | None], None]] = {"ours": ours, "loop": loop, "compiled": ours}


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--seconds", type=float, default=270, help="for all parts together")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--kernels", type=Path)
    arguments = parser.parse_args()
    hf.utils.logging.disable_progress_bar()
    if not torch.cuda.is_available() and not arguments.quick:
        print("no GPU here: skipped")
        return
    end = time.monotonic() + arguments.seconds
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    print(json.dumps({"benchmark": "gpu", "device": name}), flush=True)
    batch, steps = (4, 10) if arguments.quick else (_BATCH, _STEPS)
    ways, sides = arguments.ways.split(","), arguments.sides.split(",")
    if arguments.quick:
        sides = [side for side in sides if side != "compiled"]  # compilers take minutes
    room = Path("/dev/shm").is_dir() and shutil.disk_usage("/dev/shm").free > 8 * 2**30
    workers = 4 if room and not arguments.quick else 0  # pictures of a batch are 150 MB; a worker hands them over there
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        sizes = write_models(Path(temporary), arguments.quick)
        line = {name: round(size / 1e6, 1) for name, size in sizes.items()}
        print(json.dumps({"benchmark": "gpu", "what": "parameters, millions", **line}), flush=True)
        for way in ways:
            took: dict[str, float] = {}
            for side in sides:
                what = {"benchmark": "gpu", "what": "training", "way": way, "side": side}
                task = make_task(Path(temporary), way, steps * batch, batch, side == "compiled", workers)
                part = Part(task, what, sizes)
                with limited(min(end - time.monotonic(), arguments.seconds / 3), part, failed):
                    SIDES[side](task, part, arguments.kernels)
                if part.milliseconds:
                    took[side] = part.milliseconds
            if {"ours", "loop"} <= took.keys():
                ratio = round(took["loop"] / took["ours"], 3)
                print(json.dumps({"benchmark": "gpu", "what": "ours / loop", "way": way, "ratio": ratio}), flush=True)
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
