"""What the data side costs as the number of items grows: seconds and peak memory of each step, and the slope.

    python -m benchmarks.scale [--quick] [--items 10000 100000 1000000] [--kinds tables archives]

Projects of as many manifest rows as said, in at most 1,000 files: `tables`, rows of Parquet files (texts of 40
characters with two columns beside them); `archives`, members of tars (8 x 8 pixels, 75 bytes). Each is run in a lake of
its own, each run in a fresh process and without Dagster: the first run, one where nothing is new, and one with 1 % of
files more. A line for each step has its seconds with so many items (`ours`) beside those with a tenth or whatever the
size before was (`reference`); `slope` is the exponent: 1 where ten times the items cost ten times as much. `cpu_s` are
the processor seconds, of child processes, too: on a busy machine these tell more. --data is not used.
"""

import io
import math
import os
import tarfile
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from assets import featurizing, pipeline
from benchmarks import measure
from orchestration.project import load

_FILES = 1_000  # at most, in which the items lie
_FEWEST = 100  # items of a file
_SETTLED = 2.5  # seconds after which the time of a file is relied on
_PROJECT = """
name: {0}
sources: [{{name: items, modality: {1}, {2}}}]
align: {{label: answer}}
features: {{image: {{size: 8, color: grey}}}}
"""
_KINDS = {
    "tables": ("text", "table: '*.parquet', column: note, key: id"),
    "archives": ("image", "files: '*.tar', path: '{name}_{answer}'"),
}


def add(folder: Path, start: int, count: int, each: int) -> None:
    """Adds items to the project in `folder`, so many a file; no two have the same content."""
    for first in range(start, start + count, each):
        numbers = range(first, min(first + each, start + count))
        if folder.name == "tables":
            rows = {
                "id": [str(n) for n in numbers],
                "note": [f"Parcel {n:08d} stands at gate {n % 97:02d}, here." for n in numbers],
                "answer": [str(n % 2) for n in numbers],
                "gate": [f"gate {n % 97}" for n in numbers],
            }
            pq.write_table(pa.table(rows), folder / f"{first:08d}.parquet")
        else:
            with tarfile.open(folder / f"{first:08d}.tar", "w") as archive:
                for n in numbers:
                    content = b"P5 8 8 255\n" + n.to_bytes(64)
                    member = tarfile.TarInfo(f"{n:08d}_{n % 2}.pgm")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    time.sleep(_SETTLED)


def run(folder: Path, lake: Path) -> dict[str, float]:
    """The data side of a run: seconds and peak memory of each step, and how many contents were processed."""
    project = load(folder, [f"lake={lake}"])
    tables, figures = pipeline.open_lake(project), {}
    results: dict[str, Any] = {}
    steps: dict[str, Callable[..., Any]] = {
        "manifest": pipeline.write_manifest,
        "clean and features": partial(featurizing.process_modality, modality=project.modalities[0]),
        "samples": pipeline.write_samples,
        "dataset": pipeline.write_dataset,
        "balance": pipeline.balance,
    }
    for name, step in steps.items():
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew (Linux)
        started, before = time.perf_counter(), sum(os.times()[:4])
        results[name] = step(tables, project)
        figures[name], figures[f"{name} MB"] = time.perf_counter() - started, measure.peak_mb()
        figures[f"{name} cpu"] = sum(os.times()[:4]) - before
    for unit, whole in (("", sum), (" MB", max), (" cpu", sum)):
        figures[f"all{unit}"] = whole(figures[f"{name}{unit}"] for name in steps)
    return figures | {"processed": results["clean and features"]["processed"]}


def sized(kind: str, items: int) -> dict[str, dict[str, float]]:
    """The figures of each run of a project with so many items."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, lake = Path(temporary) / kind, Path(temporary) / "lake"
        folder.mkdir()
        (folder / "project.yaml").write_text(_PROJECT.format(kind, *_KINDS[kind]))
        each = max(_FEWEST, items // _FILES)
        add(folder, 0, items, each)
        runs = {}
        for name in ("first run", "nothing new", "1 % new"):
            if name == "1 % new":
                add(folder, items, max(1, items // 100), each)
            with measure.Side() as side:
                runs[name] = side(run, folder, lake)
        return runs


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--kinds", nargs="+", choices=_KINDS, default=list(_KINDS))
    arguments = parser.parse_args()
    sizes = [500, 1_000] if arguments.quick else sorted(arguments.items)
    for kind in arguments.kinds:
        before, fewer = sized(kind, sizes[0]), sizes[0]
        for items in sizes[1:] or sizes:
            now = before if items == fewer else sized(kind, items)
            for name, figures in now.items():
                for step in [step for step in figures if f"{step} MB" in figures]:
                    ours, reference = figures[step], before[name][step]
                    slope = math.log(ours / reference) / math.log(items / fewer) if items > fewer else None
                    memory = [of[f"{step} MB"] for of in (figures, before[name])]
                    case = "scale", f"{items:,} items in {kind}, {name}: {step}"
                    more = {"slope": None if slope is None else round(slope, 2), "processed": figures["processed"]}
                    more |= {"cpu_s": round(figures[f"{step} cpu"], 2)}
                    measure.tell(case, "s", [ours], f"{fewer:,} items", [reference], memory, **more)
            before, fewer = now, items


if __name__ == "__main__":
    main()
