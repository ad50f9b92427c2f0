"""Pictures and recordings that belong together, from files to a champion and to `triptych search`."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from orchestration.cli import main
from triptych import open as open_project

pytestmark = pytest.mark.slow

# Which picture belongs to which recording of its kind cannot be learned; the kind can.
KINDS, COUNT = 9, 150
PROJECT = """
name: pairs
sources:
  - {name: photos, modality: image, files: photos}
  - {name: recordings, modality: speech, files: recordings}
align: {split: {train: 0.6, validation: 0.1}}
features: {image: {size: 12, color: grey}, speech: {sample_rate: 4000, mels: 24}}
model: {width: 32, heads: 2, layers: 1, tokens: 1, fusion: concat, output: {kind: embedding, width: 16}}
training: {epochs: 8, batch_size: 32, learning_rate: 3.0e-3, evaluations: 1}
promotion: {must_beat: [champion, majority]}
engine: {workers: 1}
"""


def triptych(*arguments: str) -> dict:
    result = CliRunner().invoke(main, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


def kind_of(key: str) -> int:
    return int(key.removeprefix("k")) % KINDS


@pytest.fixture
def pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRIPTYCH_HOME", str(tmp_path / "home"))
    random = np.random.default_rng(0)
    for folder in ("photos", "recordings"):
        (tmp_path / folder).mkdir()
    for n in range(COUNT):
        pixels, kind = random.integers(0, 60, (12, 12), np.uint8), n % KINDS
        pixels[kind // 3 * 4 : kind // 3 * 4 + 4, kind % 3 * 4 : kind % 3 * 4 + 4] += 180
        Image.fromarray(pixels).save(tmp_path / f"photos/k{n:03d}.png")
        write_tone(tmp_path / f"recordings/k{n:03d}.wav", 250 + 180 * kind + random.uniform(-20, 20))
    (tmp_path / "project.yaml").write_text(PROJECT)
    return tmp_path / "project.yaml"


def write_tone(path: Path, pitch: float) -> None:
    import soundfile

    soundfile.write(path, 0.4 * np.sin(2 * np.pi * pitch * np.arange(1200) / 4000), 4000)


def test_what_belongs_together_is_found_over_the_lake(pairs: Path) -> None:
    told = triptych("run", str(pairs))
    metrics, rows = told["metrics"], told["dataset"]["rows"]["test"]
    assert told["model"]["aliases"] == ["challenger", "champion"] and told["metric"] == "recall_at_10"
    assert metrics["test/majority_recall_at_10"] == pytest.approx(10 / rows)
    assert metrics["test/recall_at_10"] > 3 * 10 / rows
    assert metrics["test/shuffled_recall_at_10"] < metrics["test/recall_at_10"] / 2
    directions = {output["output"]: output for output in told["outputs"]}
    assert directions.keys() == {"image_to_speech", "speech_to_image"}
    assert all(output["n"] == rows and output["majority"] == pytest.approx(10 / rows) for output in directions.values())
    assert told["subsets"]["image"] == pytest.approx(directions["image_to_speech"]["value"])

    recording, photo = pairs.parent / "recordings/k004.wav", pairs.parent / "photos/k004.png"
    found = triptych("search", str(pairs), "--image", str(photo), "--k", "8")
    assert found["found"] == ["speech"] and (found["placed"], found["reused"]) == (COUNT, 0)
    assert sum(kind_of(hit["sample_id"]) == 4 for hit in found["hits"]) >= 6, "by chance it is one"
    near = [hit["similarity"] for hit in found["hits"]]
    assert near == sorted(near, reverse=True) and len(near) == 8
    item = next(i for i in found["hits"][0]["items"] if i["modality"] == "speech")
    assert item["source"] == "recordings" and Path(item["uri"]).name.startswith(found["hits"][0]["sample_id"])
    again = open_project(pairs).search(speech=recording, find=["speech"], k=1)
    assert (again.placed, again.reused) == (0, COUNT), "nothing twice"
    assert again.hits[0].sample_id == "k004" and again.hits[0].similarity == pytest.approx(1, abs=1e-3)
    assert triptych("gc", str(pairs), "--erase", str(recording), "--dry-run")["removed"]["embeddings"] == 1
    assert triptych("gc", str(pairs), "--dry-run")["removed"]["embeddings"] == 0, "the champion needs them"
