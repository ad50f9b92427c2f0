"""Files to features in Parquet, whole: items a second from the start of Python to the last commit, beside the peers.

    python -m benchmarks.featurize [--data ../shared/data] [--quick]

Every side is a program of its own, started anew for each repetition, in turns with the others:

- ours: the manifest step (listing and hashing), then clean and features through the engine into the lake;
- DataLoader: torchvision or torchaudio in a `torch.utils.data.DataLoader` with two workers, written by pyarrow;
- Hugging Face: `datasets.map(num_proc=2)` with the same transforms;
- bare (pictures only): decoding to a scale with `simplejpeg` and Pillow's resize in two processes, nothing kept.

JPEG: photos of DATA/clothing at 640 x 480 to 224 x 224; WAV: recordings of DATA/spoken_digits (8 kHz) to log-mel and
MFCC at 16 kHz. Without the folder: synthetic media. Memory is the peak of the largest process of a side.
"""

import io
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure

_SOURCES = {"image": "clothing/images.tar", "speech": "spoken_digits/recordings.tar"}
_NAMES = {"image": "JPEG 640 x 480", "speech": "WAV 8 kHz"}
_WORKERS = 2
_PROJECT = """
name: features
sources:
  - {{name: media, modality: {modality}, files: {folder}}}
align: {{label: answer}}
"""


def ours(modality: str, folder: Path, out: Path) -> int:
    from assets import featurizing, pipeline
    from orchestration.project import load

    out.mkdir()
    (out / "project.yaml").write_text(_PROJECT.format(modality=modality, folder=folder))
    project = load(out, [f"lake={out / 'lake'}"])
    lake = pipeline.open_lake(project)
    pipeline.write_manifest(lake, project)
    counts = featurizing.process_modality(lake, project, modality)
    return counts["processed"] - counts["quarantined"]


def transform(modality: str, data: bytes) -> dict[str, Any]:
    """What a user would write with torchvision or torchaudio."""
    import torch

    if modality == "image":
        import PIL.Image
        from torchvision.transforms import v2

        resize = v2.Compose([v2.Resize(224), v2.CenterCrop(224)])
        picture = PIL.Image.open(io.BytesIO(data)).convert("RGB")
        return {"pixels": resize(v2.functional.pil_to_tensor(picture)).numpy().tobytes()}
    import soundfile

    resample, mel, dct = _audio()
    waveform, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    spectrum = mel(resample(torch.from_numpy(waveform))).clamp(min=1e-10).log().T
    return {"log_mel": spectrum.numpy().tobytes(), "mfcc": (spectrum @ dct).numpy().tobytes()}


_TRANSFORMS: list[Any] = []


def _audio() -> Any:
    """Made once in each process."""
    if not _TRANSFORMS:
        from torchaudio import functional, transforms

        mel = transforms.MelSpectrogram(16000, n_fft=512, win_length=400, hop_length=160, n_mels=64)
        _TRANSFORMS.append((transforms.Resample(8000, 16000), mel, functional.create_dct(20, 64, "ortho")))
    return _TRANSFORMS[0]


class Files:
    """A dataset as `torch.utils.data` wants it."""

    def __init__(self, modality: str, paths: list[Path]) -> None:
        self.modality, self.paths = modality, paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, n: int) -> dict[str, Any]:
        import torch

        torch.set_num_threads(1)
        return {"name": self.paths[n].name} | transform(self.modality, self.paths[n].read_bytes())


def dataloader(modality: str, folder: Path, out: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from torch.utils.data import DataLoader

    rows, writer = 0, None
    files: Any = Files(modality, sorted(folder.iterdir()))
    for batch in DataLoader(files, 64, num_workers=_WORKERS, collate_fn=list):
        table = pa.Table.from_pylist(batch)
        writer = writer or pq.ParquetWriter(out, table.schema, compression="NONE")
        writer.write_table(table)
        rows += len(batch)
    assert writer is not None
    writer.close()
    return rows


def hugging_face(modality: str, folder: Path, out: Path) -> int:
    import datasets

    datasets.disable_progress_bars()
    table = datasets.Dataset.from_dict({"path": [str(path) for path in sorted(folder.iterdir())]})
    made = table.map(_of_path, fn_kwargs={"modality": modality}, num_proc=_WORKERS, cache_file_name=f"{out}.arrow")
    made.to_parquet(str(out))
    return len(made)


def _of_path(row: dict[str, str], modality: str) -> dict[str, Any]:
    return transform(modality, Path(row["path"]).read_bytes())


def bare(modality: str, folder: Path, out: Path) -> int:
    assert modality == "image"
    with ProcessPoolExecutor(_WORKERS, get_context("spawn")) as pool:
        return sum(pool.map(_decode, sorted(folder.iterdir()), chunksize=64))


def _decode(path: Path) -> int:
    import PIL.Image
    import simplejpeg

    pixels = simplejpeg.decode_jpeg(path.read_bytes(), min_width=224, min_height=224, min_factor=1)
    picture = PIL.Image.fromarray(pixels).resize((224, 224), PIL.Image.Resampling.BILINEAR)
    return len(np.asarray(picture)) // 224


_SIDES = {"ours": ours, "DataLoader": dataloader, "Hugging Face map": hugging_face, "bare": bare}


def run(side: str, modality: str, folder: Path, items: int) -> tuple[float, float]:
    """Items a second of one side in a new process, and its peak memory in MB."""
    with tempfile.TemporaryDirectory() as temporary:
        arguments = [side, modality, str(folder), str(Path(temporary) / "out")]
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.featurize", "--side", *arguments],
            capture_output=True, text=True, check=False, cwd=measure.ROOT,
        )  # fmt: skip
        seconds = time.perf_counter() - started
    if done.returncode != 0:
        sys.exit(f"{side}, {modality}: {done.stderr}")
    made, memory = done.stdout.split()[-2:]
    if int(made) != items:
        sys.exit(f"{side}, {modality}: {made} of {items} items were made")
    return items / seconds, float(memory)


def prepare(modality: str, data: Path, folder: Path, items: int) -> None:
    """`items` files; where there are fewer real ones, again under other bytes at the end, which no decoder reads."""
    import PIL.Image

    archive = data / _SOURCES[modality]
    if not archive.is_file():
        synthesize(archive, modality, min(items, 500))
    with tarfile.open(archive) as tar:
        real = [tar.extractfile(member).read() for member in tar if member.isfile()][:items]  # type: ignore[union-attr]
    if modality == "image":
        for n, content in enumerate(real):
            photo, large = PIL.Image.open(io.BytesIO(content)).convert("RGB").resize((640, 480)), io.BytesIO()
            photo.save(large, "JPEG", quality=90)
            real[n] = large.getvalue()
    folder.mkdir()
    for n in range(items):
        content = real[n % len(real)]
        if n >= len(real) and modality == "speech":  # one sample is another, louder than any of them ends
            content = content[:-2] + (30_000 + n // len(real)).to_bytes(2, "little")
        elif n >= len(real):
            content += (n // len(real)).to_bytes(2, "little")
        (folder / f"{n:06d}.{'jpg' if modality == 'image' else 'wav'}").write_bytes(content)


def synthesize(archive: Path, modality: str, items: int) -> None:
    """A stand-in for DATA: coarse noise and tones."""
    import PIL.Image
    import soundfile

    random = np.random.default_rng(0)
    archive.parent.mkdir(parents=True)
    with tarfile.open(archive, "w") as tar:
        for n in range(items):
            buffer, member = io.BytesIO(), tarfile.TarInfo(f"{n:05d}")
            if modality == "image":
                noise = PIL.Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
                noise.resize((256, 192)).save(buffer, "JPEG")
            else:
                tone = np.sin(random.uniform(0.1, 1.5) * np.arange(random.integers(1_100, 18_000)))
                soundfile.write(buffer, tone, 8000, format="WAV", subtype="PCM_16")
            member.size = buffer.tell()
            buffer.seek(0)
            tar.addfile(member, buffer)


def main() -> None:
    if sys.argv[1:2] == ["--side"]:
        side, modality, folder, out = sys.argv[2:]
        made = _SIDES[side](modality, Path(folder), Path(out))
        print(made, max(measure.peak_mb(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024))
        return
    arguments = measure.parser(__doc__).parse_args()
    times = measure.repetitions(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        data = arguments.data.resolve()
        if not all((data / name).is_file() for name in _SOURCES.values()):
            data = Path(temporary) / "data"
        for items in (64,) if arguments.quick else (2_000, 6_000):
            for modality, name in _NAMES.items():
                folder = Path(temporary) / f"{modality}{items}"
                prepare(modality, data, folder, items)
                sides = ["ours", "DataLoader", "Hugging Face map", *(["bare"] if modality == "image" else [])]
                turns = [{side: run(side, modality, folder, items) for side in sides} for _ in range(1 + times)][1:]
                rates, memory = ({s: [turn[s][at] for turn in turns] for s in sides} for at in (0, 1))
                for side in sides[1:]:
                    peaks = max(memory["ours"]), max(memory[side])
                    what = "featurize", f"{items:,} {name}"
                    measure.tell(what, "items/s", rates["ours"], side, rates[side], peaks)


if __name__ == "__main__":
    main()
