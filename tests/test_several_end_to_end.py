"""Two photos a sample, which only together and in their order tell the answer, from files to a champion and to its
answers over the command line, in Python and in a served model."""

import base64
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image, ImageDraw

import triptych
from orchestration.cli import main

pytestmark = pytest.mark.slow

COUNT = 160
PROJECT = """
name: pairs
sources:
  - {name: photos, modality: image, files: photos, path: "{pair}_*", key: pair}
  - {name: answers, modality: text, table: answers.csv, column: question, key: pair}
align: {label: answer, several: {image: 2}, split: {train: 0.7, validation: 0.1}}
features: {image: {size: 12, color: grey}, text: {kind: tfidf}}
model: {width: 32, heads: 2, layers: 1, tokens: 1, fusion: concat, output: class}
training: {epochs: 12, baseline_epochs: 0.2, batch_size: 16, learning_rate: 3.0e-3, evaluations: 1}
promotion: {must_beat: [champion, majority]}
engine: {workers: 1}
"""


def draw(digit: int, number: int) -> Image.Image:
    """0, 1 or 2 strokes, another picture for each number."""
    picture = Image.fromarray(np.random.default_rng(number).integers(0, 70, (24, 24), np.uint8))
    for stroke in range(digit):
        ImageDraw.Draw(picture).line([(6 + 10 * stroke, 3), (6 + 10 * stroke, 20)], 230, 4)
    return picture


def ask(*arguments: str) -> dict:
    result = CliRunner().invoke(main, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture
def pairs(tmp_path: Path, home: Path) -> Path:
    (tmp_path / "photos").mkdir()
    lines = ["pair,question,answer"]
    for n in range(COUNT):
        first, second = n % 3, n // 3 % 3
        draw(first, 2 * n).save(tmp_path / f"photos/p{n:03d}_a.png")
        draw(second, 2 * n + 1).save(tmp_path / f"photos/p{n:03d}_b.png")
        lines.append(f"p{n:03d},what is it,{first - second}")
    draw(0, 10**6 - 1).save(tmp_path / "photos/p000_c.png")  # one too many
    (tmp_path / "photos/p001_a.png").write_bytes(b"no picture")
    (tmp_path / "answers.csv").write_text("\n".join(lines))
    (tmp_path / "project.yaml").write_text(PROJECT)
    return tmp_path / "project.yaml"


@pytest.mark.soak
def test_two_photos_by_view(pairs: Path) -> None:
    said = PROJECT.replace("{pair}_*", "{pair}_{side}").replace("{image: 2}", "{image: {views: [b, a], by: side}}")
    pairs.write_text(said)
    told = ask("run", str(pairs))
    assert told["metrics"]["test/accuracy"] > 0.85
    lake = "SELECT image_views AS views FROM samples WHERE sample_id < 'p003' ORDER BY sample_id"
    assert [row["views"] for row in ask("sql", str(pairs), lake)["rows"]] == [["b", "a"], ["b"], ["b", "a"]]
    (left,) = ask("sql", str(pairs), "SELECT reason, message FROM quarantine WHERE stage = 'align'")["rows"]
    assert left["reason"] == "no_view" and "p000_c.png" in left["message"]

    one, two = pairs.parent / "one.png", pairs.parent / "two.png"
    draw(2, 10**6).save(one)
    draw(0, 10**6 + 1).save(two)
    turned = ["--image", f"b={two}", "--image", f"a={one}"]
    (there,) = ask("predict", str(pairs), *turned)["predictions"]
    assert there["prediction"] == "2"
    (pairs.parent / "columns.csv").write_text("image.a,image.b\none.png,two.png\none.png,\n")
    (pairs.parent / "cells.csv").write_text('image\na=one.png;b=two.png\n"{""b"": ""one.png"", ""a"": ""two.png""}"\n')
    asked = [ask("predict", str(pairs), "--table", str(pairs.parent / f"{t}.csv")) for t in ("columns", "cells")]
    (columns, cells) = ([row["prediction"] for row in answers["predictions"]] for answers in asked)
    assert columns[0] == "2" and cells == ["2", "-2"]
    model = triptych.open(str(pairs)).model()
    both = model.predict(image={"b": two.read_bytes(), "a": Image.open(one)})
    assert (both["prediction"], both["probability"]) == ("2", pytest.approx(there["probability"], abs=1e-5))
    for wrong, says in (([one, two], r"takes of image each by its view \(b, a\)"), ({"c": one}, "each by its view")):
        with pytest.raises(ValueError, match=says):
            model.predict(image=wrong)
    (pairs.parent / "bad.png").write_bytes(b"bad")
    with pytest.raises(ValueError, match=r"image .*bad.png: "):
        model.predict(image={"b": one, "a": pairs.parent / "bad.png"})

    import mlflow

    mlflow.set_tracking_uri(triptych.open(str(pairs)).settings.mlflow_uri)
    served = mlflow.pyfunc.load_model("models:/pairs@champion")
    served.unwrap_python_model().predict(None, served.input_example)  # as a server does before it answers
    encoded = {view: base64.b64encode(path.read_bytes()).decode() for view, path in (("b", two), ("a", one))}
    answers = served.predict(pd.DataFrame({"image": [json.dumps(encoded)]}))
    assert answers["prediction"].tolist() == ["2"]
    with pytest.raises(Exception, match="does not say of which view each is; there are b, a"):
        served.predict(pd.DataFrame({"image": [encoded["a"]]}))


def test_two_photos_that_only_together_tell_the_answer(pairs: Path) -> None:
    told = ask("run", str(pairs))
    assert told["model"]["aliases"] == ["challenger", "champion"]
    assert told["metrics"]["test/accuracy"] > 0.85, "one photo alone is right about a third of the time"
    lake = "SELECT image_status AS status, len(image_more) AS more FROM samples WHERE sample_id < 'p003'"
    rows = ask("sql", str(pairs), f"{lake} ORDER BY sample_id")["rows"]
    assert rows == [
        {"status": "present", "more": 1},
        {"status": "incomplete", "more": None},
        {"status": "present", "more": 1},
    ]
    (left,) = ask("sql", str(pairs), "SELECT reason, message FROM quarantine WHERE stage = 'align'")["rows"]
    assert left["reason"] == "over_several" and "p000_c.png" in left["message"]

    # As people ask: the same two photos, in either order.
    one, two = pairs.parent / "one.png", pairs.parent / "two.png"
    draw(2, 10**6).save(one)
    draw(0, 10**6 + 1).save(two)
    (there,) = ask("predict", str(pairs), "--image", str(one), "--image", str(two))["predictions"]
    assert there["prediction"] == "2"
    (pairs.parent / "ask.csv").write_text('image\none.png;two.png\n"[""two.png"", ""one.png""]"\none.png\n')
    table = ask("predict", str(pairs), "--table", str(pairs.parent / "ask.csv"))["predictions"]
    assert [row["prediction"] for row in table[:2]] == ["2", "-2"] and table[0]["probability"] == there["probability"]
    model = triptych.open(str(pairs)).model()
    both = model.predict(image=[Image.open(one), two.read_bytes()])
    assert (both["prediction"], both["probability"]) == ("2", pytest.approx(there["probability"], abs=1e-5))
    with pytest.raises(ValueError, match=r"the row has 3 of image, and pairs takes 2 at most \(align.several\)"):
        model.predict(image=[one, two, one])
    (pairs.parent / "bad.png").write_bytes(b"bad")
    with pytest.raises(ValueError, match=r"image .*bad.png: "):
        model.predict(image=[one, pairs.parent / "bad.png"])

    # A served model takes them as a list within the string that its column holds.
    import mlflow

    mlflow.set_tracking_uri(triptych.open(str(pairs)).settings.mlflow_uri)
    served = mlflow.pyfunc.load_model("models:/pairs@champion")
    encoded = [base64.b64encode(path.read_bytes()).decode() for path in (one, two)]
    answers = served.predict(pd.DataFrame({"image": [json.dumps(encoded), json.dumps(encoded[::-1]), encoded[0]]}))
    assert answers["prediction"].tolist()[:2] == ["2", "-2"]
    assert answers["probability"][0] == pytest.approx(there["probability"], abs=1e-5)

    erased = ask("gc", str(pairs), "--erase", str(pairs.parent / "photos/p002_b.png"), "--dry-run")
    assert erased["removed"]["samples"] == erased["removed"]["dataset"] == 1 and erased["models"], "of the second photo"
    assert ask("gc", str(pairs), "--dry-run")["removed"]["image_features"] == 0, "the further ones are needed, too"
