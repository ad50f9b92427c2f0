"""The launcher that the project file names starts the trainer; the trainer itself: `tests/test_end_to_end.py`."""

import json
import textwrap

import dagster as dg
import pytest

from assets import featurizing, pipeline
from assets.catalog import LAUNCHERS
from assets.launchers.base import Launcher
from assets.model_assets import train
from orchestration.project import ProjectError, load

OWN = textwrap.dedent(
    '''
    """A launcher that a user brings: writes down what it was to start, and reports that it is done."""

    import json
    from dataclasses import dataclass

    from assets.launchers.base import Launcher


    class NotingLauncher(Launcher):
        @dataclass(frozen=True)
        class Options:
            file: str = "spec.json"

        def __init__(self, options):
            self.options = options

        def launch(self, context, spec):
            with open(self.options.file, "w") as file:
                json.dump(spec, file)
            empty = dict.fromkeys(("metrics", "subsets", "rows", "filled", "seconds"), {})
            report = {"version": None, "test_rows": 0, **empty}
            names = ("mlflow_run_id", "dataset_fingerprint", "training_fingerprint")
            return [{"name": run["name"], **report, **dict.fromkeys(names, "noted")} for run in spec["runs"]]
    '''
)


def test_every_kind_of_the_catalogue_is_a_launcher():
    for kind in LAUNCHERS.names():
        assert isinstance(LAUNCHERS.make(LAUNCHERS.choose(kind)), Launcher)


def test_the_trainer_is_started_by_the_project_s_launcher(tiny, tmp_path, monkeypatch):
    (tmp_path / "family_test_launcher.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    noted = tmp_path / "noted.json"
    project = load(tiny, [f"launcher={{kind: 'family_test_launcher:NotingLauncher', file: {noted}}}"])
    lake = pipeline.open_lake(project)
    pipeline.write_manifest(lake, project)
    for modality in project.modalities:
        featurizing.process_modality(lake, project, modality)
    pipeline.write_samples(lake, project)
    pipeline.write_dataset(lake, project)
    runs = pipeline.plan(project)

    @dg.asset
    def trained(context: dg.AssetExecutionContext) -> list[str]:
        return [report.name for report, _ in train(context, project, runs)]

    result = dg.materialize([trained])
    assert result.output_for_node("trained") == [run.name for run in runs]
    assert [run["name"] for run in json.loads(noted.read_text())["runs"]] == [run.name for run in runs]


def test_a_wrong_launcher_is_named(tiny):
    assert load(tiny).launcher.kind == "subprocess"
    with pytest.raises(ProjectError, match=r"launcher is 'subproces', expected one of subprocess.*did you mean"):
        load(tiny, ["launcher=subproces"])
    parted = "launcher={kind: torchrun, processes: 2, shard: true}"
    assert LAUNCHERS.make(load(tiny, [parted]).launcher).program == ("training.distributed", "2", "shard")
    with pytest.raises(ProjectError, match=r"training.compile is True, expected false where launcher.shard parts"):
        load(tiny, [parted, "training.compile=true"])
