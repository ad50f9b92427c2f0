"""Clean and featurize, items a second, beside the bare decoder on the same cores with as many threads.

    python -m benchmarks.featurize [--data ../shared/data] [--quick]

Ours is what the pipeline runs on what is new: bytes read and their hash checked, `Step` on batches through the engine,
Arrow to Arrow. The reference reads the same bytes and decodes them: Pillow to RGB, soundfile to float32. With one
thread, and with one for each core, which is the pipeline's default. JPEG: the photos of DATA/clothing, and the same at
640 x 480; WAV: the recordings of DATA/spoken_digits at their own rate (8 kHz) and at the default 16 kHz. Without the
folder: synthetic media.
"""

import io
import tarfile
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import soundfile

from assets.catalog import ENGINES
from assets.contents import attach_data
from assets.engines.base import Engine
from assets.processing import Outcome, Step
from assets.scan import scan
from assets.source_settings import SourceSettings
from assets.sources.base import Source
from benchmarks import measure
from training.features import FeatureSettings
from training.processor import Processor
from training.settings import MediaLimits

_JPEG, _WAV = "clothing/images.tar", "spoken_digits/recordings.tar"


@cache
def batches(source: SourceSettings, items: int) -> list[pa.RecordBatch]:
    """The first items of a source as the pipeline gives them to the engine."""
    rows = scan(source, Path.cwd()).rows.slice(0, items)
    rows = rows.append_column("need", pa.array([["clean", "features"]] * rows.num_rows))
    return rows.combine_chunks().to_batches(Engine.Options().batch_size)


def timed(work: Callable[[], int]) -> dict[str, Any]:
    started = time.perf_counter()
    items = work()
    return {"items/s": items / (time.perf_counter() - started), "check": items}


def ours(source: SourceSettings, items: int, threads: int, features: FeatureSettings) -> dict[str, Any]:
    step, sources = Step(source.modality, Processor(features, MediaLimits())), {source.name: source.make(Path.cwd())}
    work = partial(process, step=step, sources=sources)
    engine, listed = ENGINES.make(ENGINES.choose({"kind": "threads", "workers": threads})), batches(source, items)
    return timed(lambda: sum(len(done.features) for done in engine.map(work, listed)))


def process(batch: pa.RecordBatch, step: Step, sources: dict[str, Source]) -> Outcome:
    return step(attach_data(batch, sources))


def bare(source: SourceSettings, items: int, threads: int) -> dict[str, Any]:
    listed = batches(source, items)
    with ThreadPoolExecutor(threads) as pool:
        return timed(lambda: sum(pool.map(decode, listed)))


def decode(batch: pa.RecordBatch) -> int:
    is_image = batch["modality"][0].as_py() == "image"
    for uri, offset, size in zip(*(batch[name].to_pylist() for name in ("uri", "offset", "size")), strict=True):
        with open(uri, "rb") as file:
            file.seek(offset or 0)
            data = io.BytesIO(file.read(size))
        if is_image:
            PIL.Image.open(data).convert("RGB")
        else:
            soundfile.read(data, dtype="float32")
    return batch.num_rows


def synthesize(folder: Path, items: int) -> None:
    """A stand-in for DATA: coarse noise and tones."""
    random = np.random.default_rng(0)
    for name in (_JPEG, _WAV):
        (folder / name).parent.mkdir(parents=True)
        with tarfile.open(folder / name, "w") as archive:
            for n in range(items):
                buffer, member = io.BytesIO(), tarfile.TarInfo(f"{n:05d}")
                if name == _JPEG:
                    noise = PIL.Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
                    noise.resize((256, 192)).save(buffer, "JPEG")
                else:
                    tone = np.sin(random.uniform(0.1, 1.5) * np.arange(random.integers(1_100, 18_000)))
                    soundfile.write(buffer, tone, 8000, format="WAV", subtype="PCM_16")
                member.size = buffer.tell()
                buffer.seek(0)
                archive.addfile(member, buffer)


def enlarge(source: SourceSettings, folder: Path, items: int) -> None:
    """`items` photos of 640 x 480 from those of a source, again and again."""
    sources = {source.name: source.make(Path.cwd())}
    data = [content for part in batches(source, items) for content in attach_data(part, sources)["data"].to_pylist()]
    folder.mkdir()
    for n in range(items):
        photo = PIL.Image.open(io.BytesIO(data[n % len(data)])).convert("RGB")
        photo.resize((640, 480)).save(folder / f"{n:05d}.jpg", quality=90)


def main() -> None:
    arguments = measure.parser(__doc__).parse_args()
    items = 128 if arguments.quick else 2000
    with tempfile.TemporaryDirectory() as temporary:
        folder, data = Path(temporary), arguments.data.resolve()
        if not all((data / name).is_file() for name in (_JPEG, _WAV)):
            data = folder / "data"
            synthesize(data, items)
        small = SourceSettings.of(name="small", modality="image", files=str(data / _JPEG))
        large = SourceSettings.of(name="large", modality="image", files=str(folder / "large"))
        spoken = SourceSettings.of(name="spoken", modality="speech", files=str(data / _WAV))
        enlarge(small, folder / "large", items)
        default, slow = FeatureSettings(), FeatureSettings(speech={"sample_rate": 8000})
        for what, source, count, features, beside in (
            ("JPEG 256 px", small, min(items, 500), default, "Pillow decode"),
            ("JPEG 640 x 480", large, items, default, "Pillow decode"),
            ("WAV 8 kHz", spoken, items, slow, "soundfile read"),
            ("WAV 8 to 16 kHz", spoken, items, default, "soundfile read"),
        ):
            for threads in sorted({1, measure.CORES}):
                work = source, count, threads
                name = "featurize", f"{count:,} {what}, threads: {threads}"
                measure.compare(name, partial(ours, *work, features), beside, partial(bare, *work))


if __name__ == "__main__":
    main()
