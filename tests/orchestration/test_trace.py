"""`trace`: from answers and test rows to what made them, and back, as it was, whatever came later."""

import dataclasses
import time
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assets.snapshots import as_of
from orchestration.erasure import erase
from orchestration.housekeeping import collect
from orchestration.nearest import by_features
from orchestration.project import load
from orchestration.serving.answer_log import answer_row
from orchestration.trace import trace
from tests.orchestration.test_housekeeping import register_model, run_data_side, take_away
from training.job import _teacher
from training.mlflow_store import client
from training.representations import FILE, SCHEMA
from training.schema import ANSWERS, MODALITIES, predictions_schema
from training.settings import TrainingSettings

WIDTH = 8
SECONDS = 2.0


def train(project, lake):
    """A version, as a training of the present dataset leaves it: what it answered, and where it places the rows."""
    register_model(project, lake)
    store = client(project.mlflow_uri)
    version = max(store.search_model_versions(f"name = '{project.name}'"), key=lambda found: int(found.version))
    folder = project.home / "artifacts" / "made"
    folder.mkdir(exist_ok=True)
    rows = lake.sql("SELECT * FROM dataset WHERE split IN ('train', 'test') ORDER BY sample_id").to_pylist()
    random = np.random.default_rng(0)
    placed = {row["sample_id"]: random.normal(size=WIDTH).astype(np.float32) for row in rows}
    listed = [{"sample_id": row["sample_id"], "split": row["split"], "x_m": placed[row["sample_id"]]} for row in rows]
    pq.write_table(pa.Table.from_pylist(listed, SCHEMA), folder / FILE)
    subset = "+".join(MODALITIES)
    told = [
        {"sample_id": row["sample_id"], "subset": subset, "label": row["label"], "prediction": "yes"}
        for row in rows
        if row["split"] == "test"
    ]
    pq.write_table(pa.Table.from_pylist(told, predictions_schema(pa.string())), folder / "predictions.parquet")
    store.log_artifacts(version.run_id, str(folder))
    return version, placed


def log_answers(lake, version, placed, count):
    """Answers to what training and test rows hold, as predict and serve log them."""
    fingerprint = version.tags["triptych.dataset_fingerprint"]
    origin = {"model_version": str(version.version), "dataset_fingerprint": fingerprint}
    names, rows = sorted(placed), []
    for n in range(count):
        given = [("text", f"Is it bright? ({n % 60})".encode())]
        told = origin | {"prediction": "yes", "probability": 0.5, "x_m": placed[names[n % len(names)]].tolist()}
        rows.append(answer_row(given, told, MODALITIES, ()))
    lake.append("answers", [pa.Table.from_pylist(rows, ANSWERS)])
    return [row["answer_id"] for row in rows]


def later(tiny, number):
    """Another snapshot: the first label of the table is another one."""
    table = tiny.parent / "questions.csv"
    head, row, rest = table.read_text().split("\n", 2)
    table.write_text("\n".join([head, f"{row.rpartition(',')[0]},{'yes' if number % 2 else 'no'}{number}", rest]))
    return run_data_side(load(tiny))[0]


def lose_sources(tiny):
    """The recordings are no source any more, and the pictures are gone."""
    lines = tiny.read_text().splitlines(keepends=True)
    tiny.write_text("".join(line for line in lines if "name: recordings" not in line).replace("group: [speaker], ", ""))
    for photo in (tiny.parent / "photos").iterdir():
        if photo.name != "q00.png":
            photo.unlink()


def timeless(traced):
    """What must never change: all but what is at the places now."""
    return dataclasses.replace(traced, items=[dataclasses.replace(item, now="") for item in traced.items])


@pytest.mark.slow
def test_all_that_made_an_answer_is_told_whatever_came_later(tiny):
    project = load(tiny)
    lake, _ = run_data_side(project)
    version, placed = train(project, lake)
    row = lake.sql("SELECT * FROM samples WHERE split = 'test' AND image_id IS NOT NULL AND speech_id IS NOT NULL")
    row = row.to_pylist()[0]
    (answer,) = log_answers(lake, version, placed, 1)
    of_sample, of_answer = trace(project, row["sample_id"]), trace(project, answer)
    for told in (of_sample, of_answer):
        assert (told.model.version, told.model.run_id) == ("1", version.run_id)
        assert told.snapshot.fingerprint == lake.note("dataset")["fingerprint"]
        assert told.snapshot.tables["dataset"] == lake.version("dataset")
        assert told.nearest_by == "the model's own x_m" and not told.remarks
    asked = TrainingSettings(objectives=("answer", {"kind": "distillation", "teacher": "1"}))
    spec, run = SimpleNamespace(tracking_uri=project.mlflow_uri, project=project.name), SimpleNamespace(training=asked)
    learned = _teacher(spec, run)  # what a student learns is what is kept of the training rows
    assert learned.keys() == set(
        lake.sql("SELECT sample_id FROM dataset WHERE split = 'train'")["sample_id"].to_pylist()
    )
    assert all(np.array_equal(place, placed[name]) for name, place in learned.items())
    assert of_sample.answer == {"subset": "text+image+speech", "prediction": "yes", "probability": None}
    assert of_sample.sample["label"] == row["label"] and of_sample.kind == "sample"
    assert [(item.modality, item.id) for item in of_sample.items] == [(m, row[f"{m}_id"]) for m in MODALITIES]
    for item in of_sample.items:
        assert (tiny.parent / item.uri).exists()
        assert item.now == ("listed by the newest manifest, the same" if item.text else "there, with the same bytes")
        key = {"id": item.id, "fingerprint": item.features["fingerprint"]}
        query = f"SELECT 1 FROM {item.features['table']} WHERE id = $id AND fingerprint = $fingerprint"
        assert lake.sql(query, key).num_rows == 1
    cosines = {
        name: placed[name]
        @ placed[row["sample_id"]]
        / np.linalg.norm(placed[name])
        / np.linalg.norm(placed[row["sample_id"]])
        for name in lake.sql("SELECT sample_id FROM dataset WHERE split = 'train'")["sample_id"].to_pylist()
    }
    nearest = sorted(cosines, key=lambda name: -cosines[name])[:5]
    assert [near.sample_id for near in of_sample.nearest] == nearest
    assert of_sample.nearest[0].similarity == pytest.approx(cosines[nearest[0]], abs=1e-4)
    assert of_answer.answer["prediction"] == "yes" and of_answer.nearest[0].similarity > 0
    (item,) = of_answer.items
    assert item.text == "Is it bright? (0)", "the same was asked as a row of the dataset asks"
    origin = {"model_version": "1", "dataset_fingerprint": of_sample.snapshot.fingerprint}
    several = [("text", f"Is it bright? ({n})".encode()) for n in (0, 1)]
    several = [answer_row(several, origin | {"prediction": "yes", "probability": 0.5, "x_m": None}, MODALITIES, ())]
    lake.append("answers", [pa.Table.from_pylist(several, ANSWERS)])
    traced = trace(project, several[0]["answer_id"]).items
    assert sorted(item.text for item in traced) == ["Is it bright? (0)", "Is it bright? (1)"]
    with pytest.raises(ValueError, match=r"no answer, sample or item 'q0_\.png'"):  # no wildcard
        trace(project, "q0_.png")
    then = as_of(lake, of_sample.snapshot.fingerprint)  # of a version that does not tell where it places rows
    by, near = by_features(then, project, {"image": row["image_id"]}, 5, row["sample_id"])
    assert by == "image features" and len(near) == 5 and {name for name, _ in near} <= set(cosines)
    alike = [similarity for _, similarity in near]
    assert 0.9 < alike[0] <= 1 and alike == sorted(alike, reverse=True)

    first = later(tiny, 0).note("dataset")["fingerprint"]
    picture = trace(project, "photos/q00.png")
    assert [(seen.snapshot, seen.models, sorted(seen.runs.values())) for seen in picture.seen] == [
        (first, [], []),
        (of_sample.snapshot.fingerprint, ["1"], ["image"]),
    ]
    assert all(seen.samples for seen in picture.seen) and picture.items[0].id == picture.items[0].sha256

    later(tiny, 1)
    lose_sources(tiny)
    project = load(tiny)
    run_data_side(project)
    collect(project, dry_run=False)
    assert timeless(trace(project, row["sample_id"], "1")) == timeless(of_sample)
    assert timeless(trace(project, answer)) == timeless(of_answer)
    now = {item.modality: item.now for item in trace(project, row["sample_id"], "1").items}
    assert now["speech"] == "its source recordings is no longer in the project file"
    assert now["image"].startswith("not as it was: cannot be read") and now["text"].endswith("the same")

    with pytest.raises(ValueError, match=r"no answer, sample or item 'nobody'.*answers\.log"):
        trace(project, "nobody")
    assert "is a row of train" in trace(project, of_sample.nearest[0].sample_id).remarks[0]
    client(project.mlflow_uri).delete_model_version(project.name, "1")
    assert trace(project, answer).remarks[0] == "version 1 of tiny is no longer registered"


def holds(tiny, snapshots, answers):
    """Traces all that is logged after later snapshots; returns the slowest's seconds."""
    project = load(tiny)
    lake, _ = run_data_side(project)
    version, placed = train(project, lake)
    logged = log_answers(lake, version, placed, answers)
    before = {name: timeless(trace(project, name)) for name in logged[:: max(1, answers // 20)]}
    for number in range(snapshots):
        later(tiny, number)
    lose_sources(tiny)
    project = load(tiny)
    run_data_side(project)
    collect(project, dry_run=False)
    slowest = 0.0
    for name in logged:
        start = time.perf_counter()
        told = trace(project, name)
        slowest = max(slowest, time.perf_counter() - start)
        assert told.model.run_id == version.run_id and told.snapshot.time and len(told.nearest) == 5
        assert name not in before or timeless(told) == before[name]
    start = time.perf_counter()
    assert trace(project, "photos/q00.png").seen
    return max(slowest, time.perf_counter() - start)


@pytest.mark.slow
def test_answers_are_traced_after_later_snapshots(tiny):
    assert holds(tiny, snapshots=5, answers=20) < SECONDS


@pytest.mark.soak
def test_a_thousand_of_a_thousand_answers_are_traced_after_fifty_snapshots(tiny):
    assert holds(tiny, snapshots=50, answers=1000) < SECONDS


@pytest.mark.slow
def test_what_was_erased_is_no_longer_told(tiny):
    project = load(tiny)
    lake, _ = run_data_side(project)
    version, placed = train(project, lake)
    logged = log_answers(lake, version, placed, 3)
    take_away(tiny, "q01")
    assert erase(project, "q01", dry_run=False, purge=False).removed["answers"] == 1
    with pytest.raises(ValueError, match="no answer, sample or item"):
        trace(project, logged[1])
    assert trace(project, logged[0]).nearest
