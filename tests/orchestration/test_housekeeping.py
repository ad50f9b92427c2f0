"""gc: what it removes, what it keeps, and that a run afterwards finds all it needs."""

import shutil

import pytest

from assets import pipeline
from orchestration.housekeeping import collect, erase
from orchestration.project import load
from training.tracking import client


def run_data_side(project):
    lake = pipeline.open_lake(project)
    pipeline.write_manifest(lake, project)
    processed = {m: pipeline.process_modality(lake, project, m)["processed"] for m in project.modalities}
    pipeline.write_samples(lake, project)
    pipeline.write_dataset(lake, project)
    return lake, processed


def register_model(project, lake):
    """A version in MLflow as a training of the present dataset leaves it, without the training; returns its run."""
    store = client(project.mlflow_uri)
    experiment = store.get_experiment_by_name(project.name)
    if experiment is None:
        place = (project.home / "artifacts").as_uri()
        store.create_registered_model(project.name)
        experiment = store.get_experiment(store.create_experiment(project.name, artifact_location=place))
    tags = {"triptych.dataset_version": str(lake.version("dataset"))}
    run = store.create_run(experiment.experiment_id, tags=tags).info.run_id
    store.create_model_version(project.name, f"runs:/{run}/model", run, tags=tags)
    return run


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
    assert dry["removed"]["image_features"] == 47 + 1
    assert rows(lake, "image_features") == 2 * 47, "a dry run removes nothing"
    assert collect(project, dry_run=False)["removed"] == dry["removed"]
    assert rows(lake, "image_features") == 46
    assert rows(lake, "clean_image") == 46
    _, processed = run_data_side(project)
    assert set(processed.values()) == {0}, "what is needed was kept"


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
    assert "image_features" in collect(project, dry_run=False)["compacted"]
    assert len(lake.open("image_features").file_uris()) < 8
    assert lake.sql("SELECT count(DISTINCT id) AS n FROM image_features")["n"][0].as_py() == 47


def test_an_erased_item_is_in_no_table_nor_file(tiny):
    project = load(tiny)
    lake, _ = run_data_side(project)
    picture = tiny.parent / "photos" / "q00.png"
    (sha256,) = lake.sql("SELECT sha256 FROM manifest WHERE uri LIKE '%q00.png'")["sha256"].to_pylist()
    told = erase(project, str(picture), dry_run=True, purge=False)
    assert told["removed"]["samples"] == 1
    assert rows(lake, "samples") == 60
    erase(project, str(picture), dry_run=False, purge=False)
    for name, column in (("manifest", "sha256"), ("image_features", "id"), ("samples", "image_id")):
        assert sha256 not in lake.sql(f"SELECT {column} AS c FROM {name}")["c"].to_pylist()
    files = [path for path in (project.folder / "lake").rglob("*.parquet") if sha256.encode() in path.read_bytes()]
    assert not files, "older versions of the tables hold it no more"
    picture.unlink()
    _, processed = run_data_side(project)
    assert processed["image"] == 0


def test_what_is_left_after_an_erasure_has_a_name_of_its_own(tiny):
    project = load(tiny)
    lake, _ = run_data_side(project)
    before = {name: lake.note(name)["fingerprint"] for name in ("samples", "dataset")}
    trained = pipeline.plan(project)[0].fingerprint
    photos, recordings = tiny.parent / "photos", tiny.parent / "recordings"
    assert len(erase(project, "q01", dry_run=False, purge=False)["items"]) == 3
    for path in (photos / "q01.png", recordings / "q01.wav"):
        path.unlink()
    for table in ("questions.csv", "recordings.csv"):
        lines = (tiny.parent / table).read_text().splitlines(keepends=True)
        (tiny.parent / table).write_text("".join(line for line in lines if not line.startswith("q01,")))
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
