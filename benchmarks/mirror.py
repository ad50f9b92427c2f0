"""Which digits a model's drawings and utterances are, by judges that have learned from real media only.

    python -m benchmarks.mirror [--data FOLDER] [--quick]

Trains the example `mirror` (or, with the FOLDER of real voices and MNIST that `spoken_digits` reads, the same model on
those), asks it to draw each recording and to say each picture of the test rows, and prints for each answer what share
the judge recognises, beside its accuracy on real pictures and recordings of the same test rows, and the ratio of the
two. The judges are small convolutional networks, trained on the training rows.
"""

import argparse
import importlib.resources
import io
import itertools
import json
import os
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from PIL import Image
from torch import nn

from assets.settings import Project
from training.spectra import SpectrumOptions, resample, speech_spectra, trim

_FRAMES, _MELS, _RATE, _SIDE = 64, 40, 8000, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with handwriting and recordings, each a .tar and a .csv")
    parser.add_argument("--home", type=Path, help="where the trained example is kept; default: a folder that goes")
    parser.add_argument("--quick", action="store_true", help="a look whether it runs")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["TRIPTYCH_HOME"] = str(arguments.home or temporary)
        project, seconds = trained(arguments.data, arguments.quick)
        for figures in judged(project, 2 if arguments.quick else 12):
            print(json.dumps({"benchmark": "mirror", "seconds": round(seconds), **figures}), flush=True)


def trained(data: Path | None, quick: bool) -> tuple[Project, float]:
    """The project, after its run, and how long that took."""
    from click.testing import CliRunner

    from orchestration.cli import main as triptych
    from orchestration.examples.layout import lay_out
    from orchestration.project import home, load

    folder = home() / "examples" / "mirror"
    path = lay_out("mirror", folder) if data is None else real(data, folder)
    short = "training.epochs=0.05", "model.outputs.drawn.codec.steps=5", "model.outputs.said.codec.steps=5"
    overrides = short if quick else ()
    started = time.monotonic()
    options = [word for override in overrides for word in ("--set", override)]
    result = CliRunner().invoke(triptych, ["run", str(path), *options], catch_exceptions=False)
    if result.exit_code:
        raise SystemExit(result.output)
    return load(path, overrides), time.monotonic() - started


def real(data: Path, folder: Path) -> Path:
    """The project file of the example over other media; pairs are drawn from them."""
    from orchestration.examples.making import write_csv
    from orchestration.examples.mirror import COUNTS
    from orchestration.examples.questions import same_digits
    from orchestration.project import load

    folder.mkdir(parents=True, exist_ok=True)
    text = (importlib.resources.files("orchestration") / "examples" / "mirror.yaml").read_text()
    for name in ("handwriting", "recordings"):
        text = text.replace(f"data/{name}", f"{data.resolve()}/{name}")
    path = folder / "project.yaml"
    path.write_text(text.replace("group: [image, voice]", "group: [image, speech]").replace("data/pairs", "pairs"))
    tables = data / "handwriting.csv", data / "recordings.csv"
    write_csv(folder / "pairs.csv", same_digits(*tables, load(path).align, COUNTS))
    return path


def judged(project: Project, epochs: int) -> list[dict[str, Any]]:
    """For each answer: the judge's accuracy on real contents, and on those that were made."""
    from orchestration.predict import answer
    from training.media_files import file_of_url

    found, files = [], {modality: media(project, modality) for modality in ("image", "speech")}
    for name, made, given in (("drawn", "image", "speech"), ("said", "speech", "image")):
        train, test, asked = files[made]["train"], files[made]["test"], files[given]["test"]
        judge = Judge([shown(data, made) for data, _ in train], [digit for _, digit in train], epochs)
        real_ones = judge.accuracy([shown(data, made) for data, _ in test], [digit for _, digit in test])
        answers = answer(project, [{given: data} for data, _ in asked], "challenger", 0)
        urls = [row["prediction"][name] for row in answers]
        recognised = judge.accuracy([shown(file_of_url(url)[0], made) for url in urls], [digit for _, digit in asked])
        ratio = round(recognised / real_ones, 4)
        figures = {"answer": name, "judge_on_real": round(real_ones, 4), "judge_on_made": round(recognised, 4)}
        found.append({**figures, "ratio": ratio, "real": len(test), "made": len(asked)})
    return found


def media(project: Project, modality: str) -> dict[str, list[tuple[bytes, int]]]:
    """Split -> the files of that modality that its samples have, each with its digit."""
    from assets import pipeline

    query = f"""
        SELECT DISTINCT s.split, m.uri, m.member, json_extract_string(s.attributes, '$.digit')::INTEGER AS digit
        FROM samples s JOIN manifest m ON m.item_id = s.{modality}_item ORDER BY ALL
    """
    found: dict[str, list[tuple[bytes, int]]] = {}
    archives: dict[str, dict[str, bytes]] = {}
    for row in pipeline.open_lake(project).sql(query).to_pylist():
        if (uri := row["uri"]) not in archives:
            with tarfile.open(uri.removeprefix("file://")) as archive:
                archives[uri] = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
        found.setdefault(row["split"], []).append((archives[uri][row["member"]], row["digit"]))
    return found


def shown(data: bytes, modality: str) -> np.ndarray:
    """What a judge sees of a file: float32 (height, width), about zero."""
    if modality == "image":
        picture = Image.open(io.BytesIO(data)).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
        return np.asarray(picture, np.float32) / 127.5 - 1
    waveform, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    settings = SpectrumOptions(sample_rate=_RATE, mels=_MELS, window_ms=32, hop_ms=16)
    ((log_TM, _),) = speech_spectra([resample(trim(waveform.mean(1), rate, settings), rate, _RATE)], settings)
    return np.pad(log_TM[:_FRAMES], ((0, max(0, _FRAMES - len(log_TM))), (0, 0))).astype(np.float32)


class Judge:
    """A small convolutional network that tells digits."""

    def __init__(self, real: Sequence[np.ndarray], digits: Sequence[int], epochs: int) -> None:
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for before, width in itertools.pairwise((1, 24, 48, 64)):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
        self.network = nn.Sequential(
            *layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(256, 10)
        )
        optimizer = torch.optim.AdamW(self.network.parameters(), 2e-3)
        inputs, labels = torch.from_numpy(np.stack(real))[:, None], torch.tensor(digits)
        for _ in range(epochs):
            for batch in torch.randperm(len(labels)).split(64):
                loss = nn.functional.cross_entropy(self.network(inputs[batch]), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        self.network.eval()

    @torch.inference_mode()
    def accuracy(self, seen: Sequence[np.ndarray], digits: Sequence[int]) -> float:
        told = self.network(torch.from_numpy(np.stack(seen))[:, None]).argmax(1)
        return float((told == torch.tensor(digits)).float().mean())


if __name__ == "__main__":
    main()
