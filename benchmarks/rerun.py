"""What a run costs where nothing has changed, and with ten new items, beside the first run and a bare look.

    python -m benchmarks.rerun [--quick] [--items 1000000] [--kinds rows]

Two projects of 100,000 items (or as many as said): rows of Parquet files (distinct texts of 40 characters), and files
of 75 bytes (8 x 8 pixels) with a table. Each of the three repetitions (one of a million items and more) has a lake of
its own: first run, rerun, bare look, ten new items, all in fresh processes; seconds for each step of the data side,
without Dagster. The bare look is what nobody can leave out: DuckDB's anti-join of the hashed texts with the clean
table; os.scandir and stat of the folder. `processed` counts the contents that were decoded in each repetition: 0 in a
rerun, 10 with ten new items. --data is not used.
"""

import csv
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from assets import featurizing, pipeline
from benchmarks import measure
from orchestration.project import load

_NEW = 10
_SETTLED = 2.5  # seconds after which the time of a file is relied on
_PROJECT = """
name: {0}
sources: [{{name: items, modality: {1}, key: id, {2}}}]
align: {{label: answer}}
features: {{image: {{size: 8, color: grey}}}}
"""
_PROJECTS = {
    "rows": ("text", "table: '*.parquet', column: note"),
    "files": ("image", "table: items.csv, file: file, files: files"),
}
_MILLION = 1_000_000


def add(folder: Path, start: int, count: int) -> None:
    """Adds items to the project in `folder`; no two have the same content."""
    numbers = range(start, start + count)
    if folder.name == "rows":
        rows = {
            "id": [str(n) for n in numbers],
            "note": [f"Parcel {n:08d} stands at gate {n % 97:02d}, here." for n in numbers],
            "answer": [str(n % 2) for n in numbers],
        }
        pq.write_table(pa.table(rows), folder / f"{start:08d}.parquet")
    else:
        with (folder / "items.csv").open("a", newline="") as table:
            writer = csv.writer(table)
            if start == 0:
                writer.writerow(["id", "file", "answer"])
            for n in numbers:
                file = folder / "files" / f"{n // 1000:03d}" / f"{n:06d}.pgm"
                writer.writerow([n, f"{file.parent.name}/{file.name}", n % 2])
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(b"P5 8 8 255\n" + n.to_bytes(64))
    time.sleep(_SETTLED)


def run(folder: Path, lake: Path) -> dict[str, float]:
    """The data side of a run: seconds of each step; how many contents were processed."""
    project = load(folder, [f"lake={lake}"])
    tables, seconds = pipeline.open_lake(project), {}
    results: dict[str, Any] = {}
    steps: dict[str, Callable[..., Any]] = {
        "manifest": pipeline.write_manifest,
        "clean": partial(featurizing.process_modality, modality=project.modalities[0]),
        "samples": pipeline.write_samples,
        "dataset": pipeline.write_dataset,
    }
    for name, step in steps.items():
        started = time.perf_counter()
        results[name] = step(tables, project)
        seconds[name] = time.perf_counter() - started
    return seconds | {"all": sum(seconds.values()), "processed": results["clean"]["processed"]}


def look(folder: Path, lake: Path) -> dict[str, float]:
    """Seconds of the bare look."""
    started = time.perf_counter()
    if folder.name == "rows":
        new = "SELECT count(*) FROM read_parquet($items) ANTI JOIN read_parquet($clean) c ON c.id = sha256(note)"
        files = {"items": str(folder / "*.parquet"), "clean": str(lake / "clean_text" / "*.parquet")}
        assert duckdb.execute(new, files).fetchone() == (0,), "it finds what is there"
    else:
        for part in os.scandir(folder / "files"):
            for file in os.scandir(part.path):
                file.stat()
    return {"all": time.perf_counter() - started}


def apart(work: Callable[..., dict[str, float]], *arguments: Path) -> dict[str, float]:
    """What it returns, in a process of its own, and that process's peak memory."""
    with measure.Side() as side:
        return side(work, *arguments) | {"memory": side(measure.peak_mb)}


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--kinds", nargs="+", choices=_PROJECTS, default=list(_PROJECTS))
    arguments = parser.parse_args()
    items = 1_000 if arguments.quick else arguments.items
    for kind in arguments.kinds:
        words = _PROJECTS[kind]
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / kind
            folder.mkdir()
            (folder / "project.yaml").write_text(_PROJECT.format(kind, *words))
            add(folder, 0, items)
            runs: dict[str, list[dict[str, float]]] = {}
            for n in range(1 if items >= _MILLION else measure.repetitions(arguments)):
                lake = Path(temporary) / f"lake{n}"
                for name, work in (("first run", run), ("nothing changed", run), ("bare look", look)):
                    runs.setdefault(name, []).append(apart(work, folder, lake))
                add(folder, items + _NEW * n, _NEW)
                runs.setdefault("10 new", []).append(apart(run, folder, lake))
        for what in ("nothing changed", "10 new"):
            for step in ("manifest", "clean", "samples", "dataset", "all"):
                for beside in ("first run", *(["bare look"] if step == "all" else [])):
                    ours, reference = ([result[step] for result in runs[name]] for name in (what, beside))
                    memory = [max(result["memory"] for result in runs[name]) for name in (what, beside)]
                    processed = [result["processed"] for result in runs[what]]
                    case = "rerun", f"{items:,} {kind}, {what}: {step}"
                    measure.tell(case, "s", ours, beside, reference, memory, processed=processed)


if __name__ == "__main__":
    main()
