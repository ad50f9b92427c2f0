"""What the benchmarks share: two things side by side, each in a process of its own; a JSON line for each figure.

A line has benchmark, what, unit, ours (median), beside (what the reference is), reference (median), ratio
(ours / reference), repetitions, memory_mb and reference_memory_mb (peak resident memory of either process, libraries
included), cores, and what a benchmark adds.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from assets.engines.base import cores
from training import children

ROOT = Path(__file__).parents[1]
CORES = cores()


def parser(description: str | None) -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of real media")
    options.add_argument("--quick", action="store_true", help="small sizes and one turn, to see that it works")
    return options


def repetitions(arguments: argparse.Namespace) -> int:
    """How often a figure is measured."""
    return 1 if arguments.quick else 3


class Side:
    """A process that does the work of one side, so that its peak memory is its own and its caches stay warm."""

    def __enter__(self) -> "Side":
        # Standard output is for the lines alone: what libraries print there (DuckDB its progress) goes to stderr.
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=os.dup2, initargs=(2, 1))
        return self

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._pool.submit(function, *arguments).result()

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()


def peak_mb(pid: int | None = None) -> float:
    """Peak resident memory of this process or another one (Linux)."""
    # Not getrusage: there a process starts with the peak of the one that started it.
    peak = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid or 'self'}/status").read_text())
    assert peak is not None
    return int(peak[1]) / 1024


def compare(
    name: tuple[str, str],
    ours: Callable[[], dict[str, Any]],
    beside: str,
    reference: Callable[[], dict[str, Any]],
    times: int,
    server: int | None = None,
) -> None:
    """Runs both once to warm up, then in turns, and prints a line for each figure (unit -> value) that they return.

    Args:
        name: of the benchmark, and of what is measured.
        ours, reference: return the same units, and under `check` what must be equal if both did the same.
        times: how often each is measured.
        server: id of the process that does our work, where `ours` only asks it.
    """
    with Side() as left, Side() as right:
        turns = [(left(ours), right(reference)) for _ in range(1 + times)][1:]
        memory = left(peak_mb, server), right(peak_mb)
    if len(checks := {str(figures.pop("check")) for turn in turns for figures in turn}) > 1:
        sys.exit(f"{name}: not the same work as {beside}: {' and '.join(sorted(checks))}")
    for unit in turns[0][0]:
        tell(name, unit, [a[unit] for a, _ in turns], beside, [b[unit] for _, b in turns], memory)


def tell(
    name: tuple[str, str],
    unit: str,
    ours: Sequence[float],
    beside: str,
    reference: Sequence[float],
    memory: Sequence[float],
    **more: Any,
) -> None:
    medians = [statistics.median(values) for values in (ours, reference)]
    shown = [float(f"{median:.4g}") for median in medians]
    line = {"benchmark": name[0], "what": name[1], "unit": unit, "ours": shown[0], "beside": beside}
    line |= {"reference": shown[1], "ratio": round(medians[0] / medians[1], 3), "repetitions": len(ours)}
    line |= {"memory_mb": round(memory[0]), "reference_memory_mb": round(memory[1]), "cores": CORES}
    print(json.dumps(line | more), flush=True)


def command(home: Path, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """A `triptych` command and its environment, with its state in `home`."""
    env = children.environment(TRIPTYCH_HOME=str(home))
    env.pop("MLFLOW_TRACKING_URI", None)
    return [sys.executable, "-P", "-m", "orchestration.cli", *arguments], env


def run_example(home: Path, *options: str) -> Any:
    """Runs the built-in example with its state in `home`; returns its project."""
    from orchestration.project import load

    argv, env = command(home, "run", *options)
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"the example did not run:\n{done.stderr}")
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.environ["TRIPTYCH_HOME"] = str(home)
    return load(home / "examples" / "digits")
