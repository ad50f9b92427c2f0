"""Text, image and speech as vectors that another program made: from tables to an answer, with what is wrong in them."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from assets import featurizing, pipeline
from assets.gate import write_raw
from orchestration.cli import main
from orchestration.inspection import check
from orchestration.project import load

PROJECT = """
name: clips
sources:
  - {name: words, modality: text, table: words.parquet, column: words, key: id}
  - {name: faces, modality: image, table: faces.jsonl, column: face, key: id}
  - {name: voices, modality: speech, table: voices.csv, column: voice, key: id}
align: {label: mood}
features:
  text: {kind: vector, width: 6}
  image: {kind: vector, width: 5}
  speech: {kind: vector, width: 7}
model: {width: 16, heads: 2, layers: 1, tokens: 2, output: class, encoders: {text: small_transformer}}
training: {epochs: 12, batch_size: 16, evaluations: 1, learning_rate: 3.0e-3, baseline_epochs: 1}
promotion: {must_beat: [majority]}
"""
ROWS = 160


def write_clips(folder: Path) -> Path:
    """Three tables of ROWS rows; the mood shows in every vector of a clip. Rows 3 to 5 lack something, 6 to 10 hold
    what is no vector."""
    random = np.random.default_rng(0)
    signs = random.choice([-1.0, 1.0], ROWS)
    words = [(random.normal(size=(random.integers(1, 30), 6)) + sign).tolist() for sign in signs]
    faces = [(random.normal(size=(random.integers(1, 9), 5)) + sign).tolist() for sign in signs]
    voices = [(random.normal(size=7) + sign).tolist() for sign in signs]
    words[3], faces[4], voices[5] = None, None, None
    words[6], words[7], words[8] = [[1, 2]], [[0.0] * 6, [0.0] * 5], [[0, 0, float("inf"), 0, 0, 0]]
    faces[9], voices[9], voices[10] = [[0, None, 0, 0, 0]], [float("nan")] * 7, "far away"
    folder.mkdir()
    keys = [f"clip{n}" for n in range(ROWS)]
    moods = ["glad" if sign > 0 else "sad" for sign in signs]
    pq.write_table(pa.table({"id": keys, "words": words}), folder / "words.parquet", row_group_size=64)
    rows = [{"id": k, "face": f, "mood": m} for k, f, m in zip(keys, faces, moods, strict=True)]
    (folder / "faces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (folder / "voices.csv").open("w", newline="") as file:
        cells = ["" if v is None else v if isinstance(v, str) else json.dumps(v) for v in voices]
        csv.writer(file).writerows([("id", "voice"), *zip(keys, cells, strict=True)])
    (folder / "project.yaml").write_text(PROJECT)
    return folder / "project.yaml"


@pytest.fixture
def clips(tmp_path: Path, home: Path) -> Path:
    return write_clips(tmp_path / "clips")


REFUSED = {
    "words.parquet line 4": "column 'words' holds nothing",
    "faces.jsonl line 5": "column 'face' holds no vector",
    "voices.csv line 7": "column 'voice' holds no vector",
    "words.parquet/words, row 7": "vectors of 2 numbers, expected 6 (features.text.width)",
    "words.parquet/words, row 8": "vector 2 has 5 numbers, vector 1 has 6",
    "words.parquet/words, row 9": "number 3 of vector 1 is inf",
    "faces.jsonl, row 10": "number 2 of vector 1 is null",
    "voices.csv, row 11": "number 1 of vector 1 is nan",
    "voices.csv, row 12": "starts with b'far away', which is neither",
}


def process(path: Path) -> tuple[list[int], list[str]]:
    """Contents processed of each modality, and what is said of what is refused."""
    project = load(path)
    lake = pipeline.open_lake(project)
    pipeline.write_manifest(lake, project)
    counts = [featurizing.process_modality(lake, project, m)["processed"] for m in project.modalities]
    pipeline.write_samples(lake, project)
    return counts, pipeline.quarantined(lake, project)["message"].to_pylist()


@pytest.mark.slow
def test_a_row_that_is_no_vector_is_named_and_nothing_is_computed_twice(clips: Path) -> None:
    checked = check(load(clips))
    assert checked.problem is None and checked.refused == {"absent": 3}
    counts, messages = process(clips)
    assert counts == [159, 159, 159] and len(messages) == len(REFUSED)
    for where, why in REFUSED.items():
        assert [m for m in messages if f"{where}: " in m and why in m], (where, messages)
    project = load(clips)
    lake = pipeline.open_lake(project)
    present = "SELECT count(text_id) AS t, count(image_id) AS i, count(speech_id) AS s, count(*) AS n FROM samples"
    assert lake.sql(present).to_pylist() == [{"t": 156, "i": 158, "s": 157, "n": ROWS}]
    texts = lake.sql("SELECT count(text) AS n FROM manifest WHERE modality = 'text'")
    assert texts["n"].to_pylist() == [0], "of Parquet the numbers stay where they lie"
    write_raw(lake, clips.parent / "raw.parquet", "test", project.make_sources())
    raw, processor = pq.read_table(clips.parent / "raw.parquet").to_pylist(), featurizing.make_processor(project)
    rows = [processor.row(**{m: row[m] for m in project.modalities}) for row in raw]
    assert len(rows) > 5 and {row["text"]["vector"].shape[1] for row in rows if row["text"]} == {6}
    assert process(clips)[0] == [0, 0, 0]
    # Another form of the same numbers is the same content.
    table = pq.read_table(clips.parent / "words.parquet").to_pylist()
    table[20]["words"][0][0] += 1
    (clips.parent / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    clips.write_text(clips.read_text().replace("words.parquet", "words.jsonl"))
    counts, messages = process(clips)
    assert counts[0] == 2 and len(messages) == len(REFUSED), "the row that changed; JSON has no word for infinity"


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("text: {kind: vector, width: 6}", "text: vector", "width is 0, expected how many numbers"),
        ("align:", "filters: {image: {kind: size, least: 3}}\nalign:", "filters judge media"),
        ("align:", "  - {name: hum, modality: speech, files: hum, use: noise}\nalign:", "no recordings"),
        ("speech: {kind: vector, width: 7}", "speech: {}", "column 'voice' is to hold media"),
    ],
)
def test_what_does_not_fit_vectors_is_refused_by_check(clips: Path, before: str, after: str, words: str) -> None:
    assert before in clips.read_text()
    clips.write_text(clips.read_text().replace(before, after))
    with pytest.raises(ValueError, match=words):
        check(load(clips))


def test_lists_are_no_texts_where_the_features_do_not_read_vectors(clips: Path) -> None:
    project = clips.read_text().replace("text: {kind: vector, width: 6}", "text: {}")
    clips.write_text(project.replace(", encoders: {text: small_transformer}", ""))
    (example, *_) = [m for m in check(load(clips)).refused_examples if "words.parquet" in m]
    assert "which is no text" in example and "lists of numbers are read with features of kind vector" in example


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_model_of_vectors_is_trained_asked_and_served(clips: Path) -> None:
    def triptych(*arguments: str) -> dict:
        done = CliRunner().invoke(main, [*arguments, "--json"], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout.splitlines()[-1])

    packed = {"6": "int8", "5": "{kind: pca, components: 3}", "7": "{kind: pq, subspaces: 3, centroids: 32}"}
    for width, compression in packed.items():  # the fits travel with the model
        clips.write_text(
            clips.read_text().replace(f"width: {width}}}", f"width: {width}, compression: {compression}}}")
        )
    run = triptych("run", str(clips))
    assert run["model"]["aliases"] == ["challenger", "champion"] and run["metrics"]["test/accuracy"] > 0.8
    glad = json.dumps([[2.0] * 6] * 40)  # longer than any that it was trained on
    (answer,) = triptych("predict", str(clips), "--text", glad, "--image", json.dumps([2.0] * 5))["predictions"]
    assert answer["prediction"] == "glad"
    np.save(clips.parent / "sad.npy", np.full((3, 7), -2.0))
    table = clips.parent / "asked.parquet"
    pq.write_table(pa.table({"text": [None, [[-2.0] * 6]], "speech": ["sad.npy", None]}), table)
    answers = triptych("predict", str(clips), "--table", str(table))["predictions"]
    assert [row["prediction"] for row in answers] == ["sad", "sad"]
    failed = CliRunner().invoke(main, ["predict", str(clips), "--text", "[1, 2]"])
    assert failed.exit_code == 1 and "vectors of 2 numbers, expected 6" in failed.output
