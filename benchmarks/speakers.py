"""Exact match on speakers that were never heard, beside a plain three-layer transformer over two small CNNs.

    python -m benchmarks.speakers [--data FOLDER] [--speakers george,jackson] [--epochs N] [--set KEY=VALUE ...]

FOLDER holds `spoken_digits` (and `noise`). For each choice of the held-out speaker the project `spoken_digits` is run
up to its model, and the plain model is trained on the same rows and features for as many epochs, drawn anew in each as
ours are (`align.pairing`), without augmentation; each with one thread, at the same time. A JSON line a speaker: exact
match on the test rows, for all and by kind of question, and the seconds of training. --quick trains for a fraction of
an epoch.
"""

import collections
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from assets import pipeline
from benchmarks import measure
from orchestration.project import load
from training import runs
from training.cache import open_table
from training.collator import Collator
from training.data import EpochSampler, open_samples
from training.outputs.class_ import ClassOutput
from training.train import make_tokenizer

_BATCH, _RATE, _WIDTH = 32, 1e-3, 96


class Plain(nn.Module):
    """A transformer over the question's tokens, four of the image and four of the speech; a class for each answer."""

    def __init__(self, vocabulary: int, answers: int, size: int, mels: int) -> None:
        super().__init__()

        def block(before: int, after: int, stride: int | tuple[int, int]) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU())

        self.see = nn.Sequential(block(1, 16, 1), block(16, 32, 2), block(32, 64, 2), nn.AdaptiveAvgPool2d(2))
        self.hear = nn.Sequential(
            block(1, 16, 2), block(16, 32, 2), block(32, 64, (1, 2)), nn.AdaptiveAvgPool2d((4, 5))
        )
        self.image, self.speech = nn.Linear(64, _WIDTH), nn.Linear(64 * 5, _WIDTH)
        self.embed = nn.Embedding(vocabulary, _WIDTH)
        self.place = nn.Parameter(torch.randn(64, _WIDTH) * 0.1)
        layer = nn.TransformerEncoderLayer(_WIDTH, 4, 2 * _WIDTH, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(_WIDTH, answers)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        present = batch["present"][:, :, None].float()  # text, image, speech; what a row lacks is zero
        seen = self.image(self.see(batch["image"]).flatten(2).transpose(1, 2)) * present[:, 1:2]
        spoken = self.hear(batch["speech"][:, None] * batch["speech_mask"][:, None, :, None])
        heard = self.speech(spoken.transpose(1, 2).flatten(2)) * present[:, 2:3]
        x = torch.cat([seen, heard, self.embed(batch["prompt_ids"])], 1)
        real = torch.cat([torch.ones(len(x), 8, dtype=torch.bool), batch["prompt_mask"]], 1)
        return self.head(self.layers(x + self.place[: x.shape[1]], src_key_padding_mask=~real)[:, -1])


def train_plain(project: Any, cache: Path, epochs: float) -> tuple[list[dict[str, Any]], float]:
    """Rows with label, answer and kind of the test set, and the seconds of training."""
    lake = pipeline.open_lake(project)
    snapshot = pipeline.present_snapshot(lake)
    index = open_table(lake.uri, "dataset", snapshot.version).to_table().sort_by("sample_id")

    def rows(split: str) -> tuple[pa.Table, Any]:
        part = index.filter(pc.equal(index["split"], split))
        return part, open_samples(part, lake.uri, snapshot.features, project.features, cache)

    (_, train), (table, test) = rows("train"), rows("test")
    torch.manual_seed(0)
    tokenizer = make_tokenizer(train, project.model, project.training)
    answers = sorted(set(train.labels))
    targets = partial(ClassOutput({"classes": answers}).targets, tokenizer=tokenizer)
    collate = Collator(tokenizer, project.features, ("text", "image", "speech"), "text", targets=targets)
    size, mels = project.features.options("image").size, project.features.options("speech").mels
    model = Plain(len(tokenizer), len(answers), size, mels)
    drawn = train.paired(0)  # in each epoch anew, as ours
    steps = round(len(train) / _BATCH * epochs)
    optimizer = torch.optim.AdamW(model.parameters(), _RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, max(2, steps), pct_start=0.05)
    sampler, started, done = EpochSampler(len(train), 0), time.monotonic(), 0
    while done < steps:
        sampler.set_epoch(sampler.epoch + 1)
        for batch in torch.utils.data.DataLoader(drawn, _BATCH, sampler=sampler, collate_fn=collate):
            loss = nn.functional.cross_entropy(model(batch), batch["labels"])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            done += 1
            if done == steps:
                break
    seconds = time.monotonic() - started
    model.eval()
    answered = []
    with torch.inference_mode():
        for batch in torch.utils.data.DataLoader(test, 256, collate_fn=collate):
            answered += [answers[n] for n in model(batch).argmax(1).tolist()]
    kinds = [json.loads(attributes)["kind"] for attributes in table["attributes"].to_pylist()]
    rows = zip(test.labels, answered, kinds, strict=True)
    return [{"label": label, "answer": answer, "kind": kind} for label, answer, kind in rows], seconds


def exact(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Share of right answers by kind of question, and of all."""
    kinds = collections.defaultdict(list)
    for row in rows:
        kinds[row["kind"]].append(row["label"] == row["answer"])
        kinds["all"].append(row["label"] == row["answer"])
    return {kind: round(sum(right) / len(right), 4) for kind, right in sorted(kinds.items())}


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--speakers", default="")
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--set", action="append", default=[])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = (arguments.data / "spoken_digits").resolve()
    with (folder / "recordings.csv").open(newline="") as table:
        speakers = sorted({row["speaker"] for row in csv.DictReader(table)})
    if arguments.speakers:
        speakers = arguments.speakers.split(",")
    with tempfile.TemporaryDirectory() as home:
        os.environ["TRIPTYCH_HOME"] = home
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        for speaker in speakers:
            options = [f"data={folder}", f"align.test_values={{speaker: [{speaker}]}}", *arguments.set]
            if arguments.epochs or arguments.quick:
                options.append(f"training.epochs={arguments.epochs or 0.05}")
            settings = [part for option in options for part in ("--set", option)]

            def run(select: str, settings: list[str] = settings) -> subprocess.Popen[str]:
                argv, env = measure.command(Path(home), "run", "spoken_digits", *settings, "--select", select, "--json")
                env["OMP_NUM_THREADS"] = "1"
                return subprocess.Popen(argv, env=env, cwd=home, stdout=subprocess.PIPE, text=True)

            if run("+dataset").wait() != 0:
                sys.exit("the data side failed")
            project = load(Path(home) / "examples" / "spoken_digits", options)
            ours = run("model")
            plain, seconds = train_plain(project, Path(home) / "plain", project.training.epochs)
            output, _ = ours.communicate()
            if ours.returncode != 0:
                sys.exit("the model was not trained")
            summary = json.loads(output.splitlines()[-1])
            measured = runs.read_json(project.mlflow_uri, summary["mlflow_run_id"], "evaluation.json")["rows"]
            accuracies = {row["slice"]: round(row["accuracy"], 4) for row in measured if row["subset"] == row["inputs"]}
            line = {
                "benchmark": "speakers",
                "held_out": speaker,
                "test_rows": len(plain),
                "ours": {"all": accuracies[None]}
                | {s.removeprefix("kind="): value for s, value in accuracies.items() if s and s.startswith("kind=")},
                "plain": exact(plain),
                "seconds": {"ours": round(summary["seconds"]["model"], 1), "plain": round(seconds, 1)},
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
