"""A model that draws and says, from files to the gate, to files again, and as it is served."""

import io
import json
import re
from pathlib import Path

import pandas as pd
import pytest
import soundfile
from click.testing import CliRunner
from PIL import Image

from orchestration.cli import main
from training.media_files import file_of_url

pytestmark = pytest.mark.slow

MODEL = """model:
  width: 16
  heads: 2
  layers: 1
  tokens: 1
  fusion: concat
  outputs:
    drawn: {kind: image, format: webp, codec: {kind: autoencoder, width: 8, steps: 10}}
    said: {kind: speech, format: flac, codec: {kind: mel, width: 16, steps: 10, mels: 16, seconds: 0.3}}
training"""


def ask(*arguments: str) -> dict:
    result = CliRunner().invoke(main, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture
def mirror(tiny: Path) -> Path:
    text = re.sub("  - {name: questions.*\n|label: answer, ", "", tiny.read_text())
    text = text.replace("coefficients: 8}", "coefficients: 8, keep_waveform: true}")
    tiny.write_text(re.sub(r"model:.*\ntraining", MODEL, text).replace("engine", "engine", 1))
    return tiny


def test_what_is_heard_is_drawn_and_what_is_seen_is_said(mirror: Path, tmp_path: Path) -> None:
    told = ask("run", str(mirror))
    assert told["metric"] == "nearness" and 0 <= told["metrics"]["test/drawn.nearness"] <= 1
    assert told["metrics"]["test/majority_nearness"] == 0.5
    runs = roles(mirror)
    assert runs == ["image_codec", "model", "speech_codec"], "plain concatenation is the model itself"
    assert ask("run", str(mirror))["model"] == told["model"] and roles(mirror) == runs, "nothing is trained twice"
    picture, recording = (mirror.parent / name for name in ("photos/q02.png", "recordings/q02.wav"))
    to, which = tmp_path / "made", ["--version", str(told["model"]["version"])]

    (seen,) = ask("predict", str(mirror), "--image", str(picture), "--to", str(to), *which)["predictions"]
    assert seen["prediction"] == {"drawn": None, "said": str(to / "1.said.flac")} and seen["model_version"]
    assert soundfile.info(to / "1.said.flac").samplerate == 4000
    (heard,) = ask("predict", str(mirror), "--speech", str(recording), "--to", str(to), *which)["predictions"]
    assert heard["outputs"]["drawn"]["prediction"] == str(to / "1.drawn.webp")
    assert Image.open(to / "1.drawn.webp").size == (16, 16)

    import triptych

    made = triptych.open(mirror).model(which[1]).predict(speech=recording)["prediction"]["drawn"]
    assert made.size == (16, 16)
    assert file_size(mirror, told["model"]["version"], recording) == (16, 16)


def roles(project: Path) -> list[str]:
    """Of what was trained."""
    from orchestration.project import load
    from training.runs import TAG, search

    settings = load(project)
    return sorted(run.data.tags[f"{TAG}role"] for run in search(settings.mlflow_uri, settings.name))


def file_size(project: Path, version: int, recording: Path) -> tuple[int, int]:
    """Of what the version draws, as MLflow loads it."""
    import base64

    import mlflow

    from orchestration.project import load

    mlflow.set_tracking_uri(load(project).mlflow_uri)
    model = mlflow.pyfunc.load_model(f"models:/tiny/{version}")
    asked = pd.DataFrame({"speech": [base64.b64encode(recording.read_bytes()).decode()]})
    url = model.predict(asked)["prediction"][0]["drawn"]
    assert url.startswith("data:image/webp;base64,")
    size: tuple[int, int] = Image.open(io.BytesIO(file_of_url(url)[0])).size
    return size
