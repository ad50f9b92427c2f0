"""A model that silos train, beside the same model trained on all of their rows together.

    python -m benchmarks.federation [--data FOLDER] [--rows N] [--rounds N] [--passes N] [--epochs N] [--set KEY=VALUE]

FOLDER holds `spoken_digits`. Each of its speakers is a silo: a process with a folder and a home of its own, which has
that speaker's recordings, pictures that no other has, and N questions about pairs of them, as the example
`spoken_digits` asks; the last speaker has no pictures. The coordinator has recordings and pictures that no silo has: a
few rows to train baselines, and the test rows, which both models answer. A JSON line: accuracy of the model that silos
trained, of the one that was trained on their rows together, their ratio, the rows, and the seconds. A round moves the
weights about as far as one silo's steps do, and not as those of all: so silos read their rows more often.
--quick trains for one round on few rows.
"""

import csv
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks import measure
from orchestration.examples.questions import WORDINGS, answer
from training.federation.settings import TOKEN
from training.federation.wire import token_of

_KINDS = ("see", "hear", "larger")  # those that few rows teach
COORDINATOR = "coordinator"
_OF_SILO = {"train": range(42), "validation": range(42, 43), "test": range(43, 44)}  # the recordings of a word
_OF_COORDINATOR = {"train": range(44, 45), "validation": range(45, 46), "test": range(46, 50)}
_SECRET = "of the benchmark"
_PROJECT = """
name: spoken_digits
sources:
{sources}
align:
  table: rows.csv
  id: id
  columns: {{{columns}}}
  label: answer
  split: {{column: split}}
  max_missing: 1
features:
  image: {{size: 28, color: grey}}
  speech: {{sample_rate: 8000, mels: 40, window_ms: 30, hop_ms: 15, channel_seconds: 0.3}}
duplicates: {{{duplicates}}}
model: {{output: class, layers: 1, tokens: 2, modality_dropout: 0.02, linear_share: 0}}
training: {{batch_size: 32, learning_rate: 1.0e-3, evaluations: 3, baseline_epochs: 1, parallel: 1}}
promotion: {{must_beat: [champion, majority]}}
"""
_FEDERATION = """
federation:
  silos: [{silos}]
  modalities: [text, image, speech]
  labels: ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", unknown]
  rounds: {rounds}
  epochs: {passes}
  wait_seconds: 900
  silent_seconds: 60
"""
Medium = tuple[str, int]  # file, digit


def questions(
    name: str, split: str, recordings: Sequence[Medium], pictures: Sequence[Medium], count: int, seed: int
) -> Iterator[dict[str, str]]:
    """Rows of a link table: pairs drawn at will, and what is asked of them."""
    random = np.random.default_rng(seed)
    for number in range(count):
        kind = str(random.choice(_KINDS if pictures else ("hear", "hear", "see")))
        speech = recordings[int(random.integers(len(recordings)))]
        picture = pictures[int(random.integers(len(pictures)))] if pictures else None
        yield {
            "id": f"{name}{split}{number:05d}",
            "question": str(random.choice(WORDINGS[kind])),
            "image": Path(picture[0]).stem if picture else "",
            "speech": Path(speech[0]).stem,
            "answer": answer(kind, picture and picture[1], speech[1]),
            "split": split,
        }


def write_project(folder: Path, rows: Sequence[Mapping[str, str]], media: Mapping[str, bytes], federation: str) -> Path:
    """A project of these rows and the media that they name."""
    used = {row[m] for row in rows for m in ("image", "speech") if row[m]}
    for file, data in media.items():
        kind = "image" if file.endswith(".png") else "speech"
        if Path(file).stem in used:
            (folder / kind).mkdir(parents=True, exist_ok=True)
            (folder / kind / Path(file).name).write_bytes(data)
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    there = [m for m in ("image", "speech") if (folder / m).is_dir()]
    sources = [f"  - {{name: {m}, modality: {m}, files: {m}}}" for m in there]
    sources.append("  - {name: questions, modality: text, table: rows.csv, column: question, key: id}")
    text = _PROJECT.format(
        sources="\n".join(sources),
        columns=", ".join([*(f"{m}: {m}" for m in there), "questions: id"]),
        duplicates=", ".join(f"{m}: off" for m in there),
    )
    path = folder / "project.yaml"
    path.write_text(text + federation)
    return path


def layouts(data: Path, folder: Path, count: int, rounds: int, passes: float) -> dict[str, Path]:
    """Projects by name: of each silo, the coordinator, and all rows together."""
    with (data / "recordings.csv").open(newline="") as file:
        told = [(row["speaker"], row["file"], int(row["digit"]), int(row["index"])) for row in csv.DictReader(file)]
    with (data / "handwriting.csv").open(newline="") as file:
        pictures = [(row["file"], int(row["label"])) for row in csv.DictReader(file)]
    pictures = [pictures[n] for n in np.random.default_rng(0).permutation(len(pictures))]
    media = {}
    for name in ("recordings.tar", "handwriting.tar"):
        with tarfile.open(data / name) as tar:
            for member in tar:
                if member.isfile():
                    media[member.name] = (tar.extractfile(member) or io.BytesIO()).read()
    speakers = sorted({speaker for speaker, *_ in told})
    federation = _FEDERATION.format(silos=", ".join(speakers), rounds=rounds, passes=passes)
    share = len(pictures) // (len(speakers) + 1)
    rows: dict[str, list[dict[str, str]]] = {}
    for n, name in enumerate([*speakers, COORDINATOR]):
        own, seen = [r for s, *r in told if name in (s, COORDINATOR)], pictures[n * share : (n + 1) * share]
        if n + 1 == len(speakers):
            seen = []
        rows[name] = []
        for at, (split, numbers) in enumerate((_OF_COORDINATOR if name == COORDINATOR else _OF_SILO).items()):
            size = {"train": count, "validation": 40, "test": 40}[split]
            if name == COORDINATOR:
                size = {"train": 100, "validation": 200, "test": min(1000, 2 * count)}[split]
            heard = [(file, digit) for file, digit, number in own if number in numbers]
            part = seen[at * len(seen) // 3 : (at + 1) * len(seen) // 3]
            rows[name] += questions(name, split, heard, part, size, n)
    rows["together"] = [row for name in speakers for row in rows[name] if row["split"] == "train"]
    rows["together"] += [row for row in rows[COORDINATOR] if row["split"] != "train"]
    return {
        name: write_project(folder / name, of, media, "" if name == "together" else federation)
        for name, of in rows.items()
    }


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--passes", type=float, default=2, help="over a silo's rows, in each round")
    parser.add_argument("--epochs", type=float, default=12, help="of the model that is trained on all rows together")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--set", action="append", default=[])
    arguments = parser.parse_args()
    count, rounds = (60, 1) if arguments.quick else (arguments.rows, arguments.rounds)
    epochs = 1 if arguments.quick else arguments.epochs
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        projects = layouts((arguments.data / "spoken_digits").resolve(), folder, count, rounds, arguments.passes)

        def start(command: str, name: str, token: str, *more: str) -> subprocess.Popen[str]:
            own = [f"training.epochs={epochs}"] if name == "together" else []
            asked = [o for o in arguments.set if name != "together" or not o.startswith("federation.")]
            settings = [part for option in (*own, *asked) for part in ("--set", option)]
            home = folder / name / "home"
            argv, env = measure.command(home, command, str(projects[name]), *more, *settings, "--json")
            env |= {TOKEN: token, "OMP_NUM_THREADS": "1"}
            return subprocess.Popen(argv, env=env, cwd=folder / name, stdout=subprocess.PIPE, text=True)

        def summary(process: subprocess.Popen[str]) -> dict:
            output, _ = process.communicate()
            if process.returncode != 0:
                sys.exit("a run failed")
            return json.loads(output.splitlines()[-1])

        silos = [name for name in projects if name not in (COORDINATOR, "together")]
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        started = time.monotonic()
        coordinator = start("federate", COORDINATOR, _SECRET, "--listen", f"127.0.0.1:{arguments.port}")
        url = f"http://127.0.0.1:{arguments.port}"
        others = [start("silo", name, token_of(_SECRET, name), "--coordinator", url, "--name", name) for name in silos]
        federated = summary(coordinator)
        done = [summary(other) for other in others]
        seconds = time.monotonic() - started
        together = summary(start("run", "together", "", "--select", "+model"))
        ours, reference = (run["metrics"]["test/accuracy"] for run in (federated, together))
        line = {
            "benchmark": "federation",
            "silos": {silo["silo"]: {"rows": silo["rows"], "rounds": silo["rounds"]} for silo in done},
            "without_images": silos[-1],
            "test_rows": federated["subset_rows"][max(federated["subset_rows"], key=len)],
            "ours": round(ours, 4),
            "beside": "the same model on all rows together",
            "reference": round(reference, 4),
            "ratio": round(ours / reference, 4),
            "aliases": federated["model"]["aliases"],
            "seconds": {"ours": round(seconds, 1), "reference": round(together["seconds"]["model"], 1)},
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
