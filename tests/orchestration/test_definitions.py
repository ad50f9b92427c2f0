"""The code location: what Dagster sees of a project, several projects side by side, and what starts a run."""

import json
import logging
import os
from pathlib import Path

import dagster as dg
import pytest

from assets.settings import Project
from orchestration.automation import signature
from orchestration.definitions import definitions, load_definitions, project_definitions
from orchestration.project import ProjectError, load
from orchestration.registration import register
from orchestration.run import open_instance

DIGITS = Path(__file__).parents[2] / "orchestration" / "examples" / "digits.yaml"

# asset: (group, kinds, what it is made from)
GRAPH = {
    "manifest": ("sources", {"deltalake", "parquet"}, {"image", "questions", "speech"}),  # its sources
    "clean_text": ("clean", {"deltalake", "text"}, {"manifest"}),
    "clean_image": ("clean", {"deltalake", "image"}, {"manifest"}),
    "clean_speech": ("clean", {"deltalake", "speech"}, {"manifest"}),
    "text_features": ("features", {"deltalake", "text"}, {"manifest"}),
    "image_features": ("features", {"deltalake", "image"}, {"manifest"}),
    "speech_features": ("features", {"deltalake", "speech"}, {"manifest"}),
    "samples": ("samples", {"deltalake", "duckdb"}, {"manifest", "clean_text", "clean_image", "clean_speech"}),
    "dataset": ("samples", {"deltalake"}, {"samples", "text_features", "image_features", "speech_features"}),
    "baselines": ("models", {"torch", "mlflow"}, {"dataset"}),
    "model": ("models", {"torch", "mlflow", "huggingface"}, {"dataset"}),
    "evaluation": ("models", {"mlflow"}, {"model", "baselines"}),
    "champion": ("models", {"mlflow"}, {"evaluation"}),
}
CHECKS = {
    *(("manifest", name) for name in ("every_item_listed", "manifest_schema")),
    *((f"clean_{m}", f"clean_{m}_schema") for m in ("text", "image", "speech")),
    *((f"{m}_features", f"{m}_features_schema") for m in ("text", "image", "speech")),
    *(("samples", name) for name in ("samples_schema", "no_item_lost", "no_leakage", "one_label_each")),
    *(("dataset", name) for name in ("dataset_schema", "null_rates")),
    ("evaluation", "fusion_is_used"),  # which warns unless it is told to block
}


@pytest.fixture
def digits(home: Path) -> Project:
    return load(DIGITS)


def specs(found: dg.Definitions) -> dict[dg.AssetKey, dg.AssetSpec]:
    """What a run makes."""
    return {spec.key: spec for spec in found.resolve_all_asset_specs() if "sources" not in spec.key.path}


def test_the_graph_of_the_built_in_example(digits):
    found = specs(project_definitions(digits))
    assert {key.path[0] for key in found} == {"digits"}
    graph = {
        key.path[-1]: (
            spec.group_name.removeprefix("digits_"),
            set(spec.kinds),
            {dep.asset_key.path[-1] for dep in spec.deps},
        )
        for key, spec in found.items()
    }
    assert graph == GRAPH
    for key, spec in found.items():
        assert list(spec.owners) == ["team:triptych"], key
        assert spec.description and len(spec.description) > 30, key


def test_what_runs_a_network_takes_its_turn_at_the_card(digits, home):
    """A featurizer that runs an encoder as a training does: two runs would share the card's memory."""

    def in_pool(project: Project) -> set[str]:
        made = [a for a in project_definitions(project).assets or () if isinstance(a, dg.AssetsDefinition)]
        pools = {key.path[-1]: assets.op.pool for assets in made for key in assets.keys}
        assert set(pools.values()) <= {None, "gpu"}
        return {name for name, pool in pools.items() if pool}

    assert in_pool(digits) == {"baselines", "model"}
    encoded = load(DIGITS, ["features.image={kind: embedding, model: somewhere}", "model.encoders.image=linear"])
    assert in_pool(encoded) == {"baselines", "model", "clean_image", "image_features"}


def test_sources_stand_upstream_of_the_manifest(tmp_path, home):
    path = tmp_path / "project.yaml"
    path.write_text(
        "name: shop\n"
        "owners: [team:vision, someone@example.org]\n"
        "sources:\n"
        "  - {name: photos, modality: image, files: 's3://me@bucket/photos.tar'}\n"
        "  - {name: notes, modality: text, table: notes.csv, column: note, key: id}\n"
        "align: {label: kind}\n"
    )
    found = project_definitions(load(path))
    outside = {spec.key.path[-1]: spec for spec in found.resolve_all_asset_specs() if "sources" in spec.key.path}
    assert {name: set(spec.kinds) for name, spec in outside.items()} == {
        "photos": {"image", "s3", "tar"},
        "notes": {"text", "csv"},
    }
    assert outside["photos"].metadata["files"] == "s3://***@bucket/photos.tar"
    assert outside["notes"].metadata["table"] == "notes.csv"
    graph = found.resolve_asset_graph()
    assert graph.get(dg.AssetKey(["shop", "manifest"])).parent_keys == {spec.key for spec in outside.values()}
    assert all(graph.get(spec.key).is_external for spec in outside.values())
    owners = {owner for spec in found.resolve_all_asset_specs() for owner in spec.owners}
    assert owners == {"team:vision", "someone@example.org"}
    path.write_text(path.read_text().replace("team:vision", "vision"))
    with pytest.raises(ProjectError, match=r"owners is 'vision', expected an address, or team:NAME"):
        load(path)


def test_assets_say_the_version_of_their_code(digits):
    versions = {key.path[-1]: spec.code_version for key, spec in specs(project_definitions(digits)).items()}
    assert set(versions) == set(GRAPH) and all(versions.values())
    assert versions["clean_text"] == str(digits.features.modality("text").version)
    assert versions["speech_features"] == str(digits.features.featurizer("speech").version)


def test_a_project_in_a_code_location_of_ones_own(tiny, home):
    @dg.asset(deps=[["tiny", "manifest"]])
    def own() -> int:
        return 7

    own_job = dg.define_asset_job("own_job", selection=[own])
    mine = dg.Definitions(assets=[own], jobs=[own_job], executor=dg.multiprocess_executor)
    merged = dg.Definitions.merge(load_definitions(tiny), mine)
    assert merged.resolve_job_def("own_job").executor_def.name == "multiprocess"
    assert merged.resolve_job_def("tiny").executor_def.name == "in_process"
    assert {key.path[-1] for key in specs(merged)} == {*GRAPH, "own"}
    with open_instance(home) as instance:
        everything = merged.resolve_implicit_global_asset_job_def()
        keys = [dg.AssetKey(["tiny", "manifest"]), own.key]
        result = everything.execute_in_process(instance=instance, asset_selection=keys)
        assert result.success and result.asset_value(own.key) == 7
        (manifest,) = result.asset_materializations_for_node("tiny__manifest")
    columns = {column.name: column.description for column in manifest.metadata["dagster/column_schema"].value.columns}
    assert all(columns.values()) and "archive" in columns["member"]


def test_every_check_of_the_data_side_blocks(digits):
    graph = project_definitions(digits).resolve_asset_graph()
    checks = {(key.asset_key.path[-1], key.name): graph.get_check_spec(key) for key in graph.asset_check_keys}
    assert set(checks) == CHECKS
    for name, spec in checks.items():
        assert spec.blocking == (name != ("samples", "one_label_each")), name
        assert spec.description, name


def test_trainings_share_the_pool_of_the_gpu(digits):
    made = [d for d in project_definitions(digits).assets if isinstance(d, dg.AssetsDefinition)]
    pools = {key.path[-1]: d.op.pool for d in made for key in d.keys}
    assert {name for name, pool in pools.items() if pool == "gpu"} == {"baselines", "model"}


def test_job_and_schedule(digits):
    found = project_definitions(digits)
    job = found.resolve_job_def("digits")
    assert {key.path[-1] for key in job.asset_layer.executable_asset_keys} == set(GRAPH)
    assert {key.name for key in job.asset_layer.asset_graph.asset_check_keys} == {name for _, name in CHECKS}
    schedule = found.resolve_schedule_def("digits_schedule")
    assert schedule.cron_schedule == "0 3 * * *"
    assert schedule.job_name == "digits"
    assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING
    sensor = found.resolve_sensor_def("digits_files")
    assert sensor.job_name == "digits"
    assert sensor.default_status == dg.DefaultSensorStatus.STOPPED, "unless the project says watch: true"
    watching = project_definitions(load(DIGITS, ["watch=true", "schedule=null"]))
    assert watching.resolve_sensor_def("digits_files").default_status == dg.DefaultSensorStatus.RUNNING
    assert not list(watching.schedules or [])


def test_a_schedule_that_is_no_cron_names_file_and_value(tiny):
    with pytest.raises(ProjectError, match=r"project.yaml: schedule is 'at three', expected cron"):
        project_definitions(load(tiny, ["schedule=at three"]))


def test_a_project_without_a_modality_lacks_its_assets(tiny):
    silent = load(
        tiny, ["sources=[{name: questions, modality: text, table: questions.csv, column: question, key: id}]"]
    )
    found = {key.path[-1] for key in specs(project_definitions(silent))}
    assert found == {name for name in GRAPH if "image" not in name and "speech" not in name}


@pytest.mark.parametrize(
    ("broken", "words"), [("name: [", "YAML"), (None, "no such project file"), ("at three", "expected cron")]
)
def test_projects_stand_side_by_side_and_a_broken_one_is_left_out(tmp_path, home, make_project, caplog, broken, words):
    assert not specs(definitions())
    paths = {name: make_project(tmp_path / name, name=name) for name in ("one", "two", "broken")}
    for path in paths.values():
        register(load(path))
    assert {key.path[0] for key in specs(definitions())} == set(paths)
    if broken is None:
        paths["broken"].unlink()
    else:
        at_three = paths["broken"].read_text().replace("0 3 * * *", broken)
        paths["broken"].write_text(at_three if broken == "at three" else broken)
    with caplog.at_level(logging.WARNING):
        found = definitions()
    assert {key.path[0] for key in specs(found)} == {"one", "two"}
    assert len(specs(found)) == 2 * len(GRAPH)
    found.resolve_job_def("one")
    found.resolve_job_def("two")
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "triptych"]
    assert str(paths["broken"]) in warning and words in warning


@pytest.mark.parametrize("entry", ["{", "[]", '{"path": "x"}'])
def test_a_damaged_entry_of_the_registry_does_not_take_the_others_down(tmp_path, home, make_project, caplog, entry):
    register(load(make_project(tmp_path / "one", name="one")))
    damaged = home / "projects" / "two" / "registered.json"
    damaged.parent.mkdir()
    damaged.write_text(entry)
    assert {key.path[0] for key in specs(definitions())} == {"one"}
    assert str(damaged) in caplog.text


def test_a_registered_name_moves_with_its_file_and_is_nobody_elses(tmp_path, home, make_project):
    here, there = (make_project(tmp_path / folder) for folder in ("here", "there"))
    entry = home / "projects" / "tiny" / "registered.json"
    register(load(here))
    register(load(here))
    for content in (there.read_text(), "name: ["):  # one of that name, and one that cannot say
        here.write_text(content)
        with pytest.raises(ValueError, match=rf"'tiny' belongs to {here}, .*: change `name` in one of .*, or remove"):
            register(load(there))
        assert json.loads(entry.read_text())["file"] == str(here)
    here.write_text("name: other")
    register(load(there))
    moved = there.rename(there.with_name("moved.yaml"))
    register(load(moved))
    assert json.loads(entry.read_text())["file"] == str(moved)


class Looks:
    """The sensor of a project, asked again and again as the daemon does."""

    def __init__(self, path: Path, instance: dg.DagsterInstance) -> None:
        self.found, self.instance, self.cursor = project_definitions(load(path)), instance, None

    def __call__(self) -> str:
        """`run`, or why there is none."""
        sensor = self.found.resolve_sensor_def("tiny_files")
        context = dg.build_sensor_context(self.instance, cursor=self.cursor, definitions=self.found)
        data = sensor.evaluate_tick(context)
        self.cursor = data.cursor
        if data.skip_message:
            return data.skip_message
        (request,) = data.run_requests
        return "run" if request.run_key is None else f"run {request.run_key}"


def test_the_sensor_waits_until_files_stand_still(tiny, home, make_png):
    photos = tiny.parent / "photos"
    with open_instance(home) as instance:
        look = Looks(tiny, instance)
        assert look().startswith("first look")
        assert look() == "nothing has changed"
        make_png(photos / "q03.png", 3)
        assert "still" in look()
        make_png(photos / "q13.png", 13)
        assert "still" in look(), "a copy is under way"
        assert look() == "run"
        assert look() == "nothing has changed"

        content, then = (photos / "q13.png").read_bytes(), (photos / "q13.png").stat().st_mtime_ns
        (photos / "q13.png").unlink()
        assert "still" in look()
        assert look() == "run"
        (photos / "q13.png").write_bytes(content)
        os.utime(photos / "q13.png", ns=(then, then))
        assert "still" in look()
        assert look() == "run", "without a key: Dagster ignores a request whose key it has seen"


def test_the_sensor_takes_back_a_change_that_was_undone(tiny, home, make_png):
    with open_instance(home) as instance:
        look = Looks(tiny, instance)
        look()
        make_png(tiny.parent / "photos" / "q03.png", 3)
        look()
        (tiny.parent / "photos" / "q03.png").unlink()
        assert look() == "nothing has changed"


@pytest.mark.parametrize("change", ["photo", "table", "recording"])
def test_the_signature_follows_every_source(tiny, change):
    project = load(tiny)
    before = signature(project)
    assert signature(project) == before
    path = (
        tiny.parent / {"photo": "photos/q00.png", "table": "questions.csv", "recording": "recordings/q00.wav"}[change]
    )
    path.write_bytes(path.read_bytes() + b" ")
    assert signature(project) != before


def test_a_fresh_file_that_grows_old_is_no_change(tiny, make_png, monkeypatch):
    photo = tiny.parent / "photos" / "q00.png"
    os.utime(photo)
    before = signature(load(tiny))
    real = os.stat(photo).st_mtime
    monkeypatch.setattr("time.time", lambda: real + 60)
    assert signature(load(tiny)) == before
