"""gc: what it removes, what it keeps, and that a run afterwards finds all it needs."""

import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assets import featurizing, pipeline
from orchestration.erasure import erase
from orchestration.housekeeping import collect
from orchestration.project import load
from orchestration.report import write_report
from training import model_registry
from training.mlflow_store import client
from training.runs import runs_not_on

REFUSED = {"corrupt": 1, "not_found": 1, "duplicate": 1}  # of the project as it is


def run_data_side(project):
    lake = pipeline.open_lake(project)
    pipeline.write_manifest(lake, project)
    processed = {m: featurizing.process_modality(lake, project, m)["processed"] for m in project.modalities}
    pipeline.write_samples(lake, project)
    pipeline.write_dataset(lake, project)
    return lake, processed


def register_model(project, lake):
    """A version in MLflow and a baseline, as a training of the present dataset leaves them, without the training."""
    store = client(project.mlflow_uri)
    experiment = store.get_experiment_by_name(project.name)
    if experiment is None:
        place = (project.home / "artifacts").as_uri()
        store.create_registered_model(project.name)
        experiment = store.get_experiment(store.create_experiment(project.name, artifact_location=place))
    tags = {
        "triptych.dataset_version": str(lake.version("dataset")),
        "triptych.dataset_fingerprint": lake.note("dataset")["fingerprint"],
    }
    for role in ("image", "model"):
        run = store.create_run(experiment.experiment_id, tags=tags | {"triptych.role": role}).info.run_id
        store.log_text(run, "a picture", "examples.txt")
        if role == "model":
            logged = store.create_logged_model(experiment.experiment_id, "model", source_run_id=run)
            folder = Path(logged.artifact_location.removeprefix("file://"))
            folder.mkdir(parents=True)
            (folder / "model.safetensors").write_bytes(b"weights")
            store.create_model_version(project.name, f"runs:/{run}/model", run, tags=tags)


def take_away(path, key):
    """The files and rows of a key, from the sources."""
    for file in (path.parent / "photos" / f"{key}.png", path.parent / "recordings" / f"{key}.wav"):
        file.unlink(missing_ok=True)
    for table in ("questions.csv", "recordings.csv"):
        lines = (path.parent / table).read_text().splitlines(keepends=True)
        (path.parent / table).write_text("".join(line for line in lines if not line.startswith(f"{key},")))


def lake_files(project):
    """What every file of the lake says, those of older versions and of the logs, too."""
    for path in (project.folder / "lake").rglob("*"):
        if path.suffix == ".parquet":
            yield path, str(pq.read_table(path).to_pylist())
        elif path.is_file():
            yield path, path.read_text()


def rows(lake, name):
    return lake.sql(f"SELECT count(*) AS n FROM {name}")["n"][0].as_py()


def test_rows_of_other_settings_and_removed_files_go_and_the_rest_stays(tiny):
    run_data_side(load(tiny, ["features.image.size=20"]))
    project = load(tiny)
    lake, _ = run_data_side(project)
    (tiny.parent / "photos" / "q00.png").unlink()
    run_data_side(project)
    assert rows(lake, "image_features") == 2 * 47
    dry = collect(project, dry_run=True)
    assert dry.removed["image_features"] == 47 + 1
    assert rows(lake, "image_features") == 2 * 47, "a dry run removes nothing"
    assert collect(project, dry_run=False).removed == dry.removed
    assert rows(lake, "image_features") == 46
    assert rows(lake, "clean_image") == 46
    _, processed = run_data_side(project)
    assert set(processed.values()) == {0}, "what is needed was kept"


@pytest.mark.slow
def test_many_rows_go_at_the_cost_of_about_one_rewrite(tiny):
    project = load(tiny)
    lake, _ = run_data_side(project)
    (present,) = set(lake.sql("SELECT fingerprint FROM clean_image")["fingerprint"].to_pylist())
    for fingerprint in (*[present] * 4, "another"):
        file = len(lake.open("clean_image").file_uris())
        ids = [f"{i:04d} {file}" for i in range(3000)]  # sorted, those of all files are mixed
        lake.append("clean_image", [pa.table({"id": ids, "fingerprint": [fingerprint] * 3000})])
    assert collect(project, dry_run=False).removed["clean_image"] == 15_000
    assert rows(lake, "clean_image") == 47
    commits = [commit["operationParameters"] for commit in lake.open("clean_image").history()]
    assert len([asked for asked in commits if asked.get("predicate", "").startswith("fingerprint = ")]) == 4


@pytest.mark.slow
def test_refusals_of_other_settings_and_of_what_is_gone_are_not_shown_and_go(tiny):
    run_data_side(load(tiny, ["limits.max_pixels=100"]))
    project = load(tiny)
    lake, _ = run_data_side(project)
    assert rows(lake, "quarantine") == 48 + 3
    assert Counter(pipeline.quarantined(lake, project)["reason"].to_pylist()) == REFUSED
    page = write_report(project, project.folder / "report.html").read_text()
    assert all(reason in page for reason in REFUSED) and "too_large" not in page
    assert collect(project, dry_run=True).removed["quarantine"] == 48
    assert rows(lake, "quarantine") == 48 + 3
    assert collect(project, dry_run=False).removed["quarantine"] == 48
    assert Counter(lake.read("quarantine")["reason"].to_pylist()) == REFUSED
    (tiny.parent / "photos" / "q05.png").unlink()
    _, processed = run_data_side(project)
    assert set(processed.values()) == {0}
    assert "corrupt" not in pipeline.quarantined(lake, project)["reason"].to_pylist()
    assert collect(project, dry_run=False).removed["quarantine"] == 1
    assert collect(project, dry_run=False).removed["quarantine"] == 0


def test_nothing_is_removed_while_the_snapshot_of_a_model_is_missing(tiny):
    run_data_side(load(tiny, ["features.image.size=20"]))
    project = load(tiny)
    lake, _ = run_data_side(project)
    register_model(project, lake)
    shutil.rmtree(lake.table_uri("dataset"))
    with pytest.raises(ValueError, match=r"version 1 of the model tiny was trained on version 1 of the table dataset"):
        collect(project, dry_run=False)
    assert rows(lake, "image_features") == 2 * 47


def test_many_small_files_become_few(tiny):
    project = load(tiny)
    lake, _ = run_data_side(project)
    one = lake.sql("SELECT * FROM image_features LIMIT 1")
    for _ in range(10):  # as several writers might: readers take one row of a key
        lake.append("image_features", [one])
    assert "image_features" in collect(project, dry_run=False).compacted
    assert len(lake.open("image_features").file_uris()) < 8
    assert lake.sql("SELECT count(DISTINCT id) AS n FROM image_features")["n"][0].as_py() == 47


def test_an_erased_item_is_in_no_table_nor_file(tiny):
    project = load(tiny)
    lake, _ = run_data_side(project)
    told = lake.sql("SELECT sha256, text FROM manifest WHERE key = 'q01'").to_pylist()
    words = [row["sha256"] for row in told] + [row["text"] for row in told if row["text"]] + ["q01.png", "q01.wav"]
    assert len(words) == 6
    holding = {word: {path.parent.name for path, said in lake_files(project) if word in said} for word in words}
    assert all({"manifest", "samples"} & tables for tables in holding.values())
    contents = [value for row in lake.sql("SELECT sha256, text FROM manifest").to_pylist() for value in row.values()]
    logs = "".join(said for path, said in lake_files(project) if path.suffix == ".json")
    assert not [value for value in contents if value and value in logs], "no log tells of any content at any time"
    dry = erase(project, "q01", dry_run=True, purge=False)
    assert (dry.removed["samples"], dry.removed["image_features"], len(dry.items)) == (1, 1, 3)
    assert rows(lake, "samples") == 60
    assert dry.proof is None
    with pytest.raises(ValueError, match=r"q01.* is still at its source, so a model would be trained on it again"):
        erase(project, "q01", dry_run=True, purge=False, retrain=True)
    (project.home / "kept.txt").write_text(f"somebody noted {told[0]['sha256']}")
    erased = erase(project, "q01", dry_run=False, purge=False)
    assert erased.removed == dry.removed
    assert [(Path(one.file).name, one.what) for one in erased.proof.found] == [
        ("kept.txt", f"the hash {told[0]['sha256']}")
    ]
    assert not erased.proof.not_searched and erased.proof.files > 10
    assert (rows(lake, "samples"), rows(lake, "image_features")) == (59, 46)
    left = [(path, word) for path, said in lake_files(project) for word in words if word in said]
    assert not left, "older versions of the tables and their logs hold it no more"
    take_away(tiny, "q01")
    _, processed = run_data_side(project)
    assert set(processed.values()) == {0}


@pytest.mark.slow
def test_after_an_erasure_every_model_knows_its_rows_and_the_next_finds_its_models(tiny):
    project = load(tiny)
    lake, _ = run_data_side(project)
    register_model(project, lake)
    take_away(tiny, "q00")
    run_data_side(project)
    register_model(project, lake)
    told = erase(project, "q01", dry_run=False, purge=False)
    assert [made.version for made in told.models] == [2, 1]
    assert [run.role for run in told.runs] == ["image", "image"]
    collect(project, dry_run=False)
    for version, left in ((1, 59), (2, 58)):
        number = int(model_registry.version_tags(project.mlflow_uri, project.name, str(version))["dataset_version"])
        assert lake.open_version("dataset", number).to_pyarrow_dataset().count_rows() == left
    assert len([file for file in (project.home / "artifacts").rglob("*") if file.is_file()]) == 6
    told = erase(project, "q02", dry_run=False, purge=True)
    assert told.purged == [2, 1]
    assert not model_registry.versions(project.mlflow_uri, project.name)
    assert not [file for file in (project.home / "artifacts").rglob("*") if file.is_file()]
    assert not runs_not_on(project.mlflow_uri, project.name, [])
    collect(project, dry_run=False)


@pytest.mark.slow
def test_what_is_left_after_an_erasure_has_a_name_of_its_own(tiny):
    project = load(tiny)
    lake, _ = run_data_side(project)
    before = {name: lake.note(name)["fingerprint"] for name in ("samples", "dataset")}
    trained = pipeline.plan(project)[0].fingerprint
    assert len(erase(project, "q01", dry_run=False, purge=False).items) == 3
    take_away(tiny, "q01")
    run_data_side(project)
    assert all(lake.note(name)["fingerprint"] != before[name] for name in before)
    assert pipeline.plan(project)[0].fingerprint != trained, "the model that has seen it is not used again"
    written = lake.version("samples"), lake.version("dataset")
    run_data_side(project)
    assert (lake.version("samples"), lake.version("dataset")) == written


def test_an_unknown_item_is_named(tiny):
    project = load(tiny)
    run_data_side(project)
    with pytest.raises(ValueError, match=r"no item 'nobody\.png'"):
        erase(project, "nobody.png", dry_run=True, purge=False)
