"""A search for settings as the project file asks for it, and what Dagster sees of it; searches that train:
`tests/test_tuning_end_to_end.py`."""

from pathlib import Path

import dagster as dg
import pytest
from click.testing import CliRunner

from orchestration.cli import main
from orchestration.definitions import project_definitions
from orchestration.project import ProjectError, load

SPACE = "training.learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}, model.fusion: [attention, concat]"


def tuning(space: str = SPACE, **more: str) -> str:
    return f"tuning={{space: {{{space}}}{''.join(f', {name}: {value}' for name, value in more.items())}}}"


def test_a_search_is_read_and_goes_by_the_metric_of_the_output(tiny: Path) -> None:
    assert load(tiny).tuning is None
    project = load(tiny, [tuning(trials="3"), "model.output=class"])
    assert project.tuning is not None and project.tuning.trials == 3
    assert project.tuned_metric.name == "accuracy"
    assert load(tiny, [tuning(), "model.output=class", "training.metric=auroc"]).tuned_metric.name == "auroc"
    assert load(tiny, [tuning(metric="ece"), "model.output=class"]).tuned_metric.higher_is_better is False


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ([tuning("model.width: [16, 18]")], r"tuning.space.model.width: 18 cannot be tried: width is 18"),
        ([tuning("model.width: {low: 16, high: 32}")], r"space.model.width: 17 cannot be tried: width is 17"),
        ([tuning("model.width: {low: 16, high: 600}")], r"space.model.width: 17 cannot be tried"),
        ([tuning("model.fusion: [concat, concta]")], r"'concta' cannot be tried: .*did you mean concat"),
        ([tuning("model.encoders.image: [small_cnn, linear]")], "'linear' cannot be tried: .*encoder"),
        ([tuning("model.encoders.video: [a, b]")], "'a' cannot be tried: model.encoders is 'video'"),
        ([tuning("features.image.size: [8, 16]")], "space is 'features.image.size', .*features would be made"),
        ([tuning("model.size: [8, 16]")], r"tuning: space is 'model.size', expected keys of model \(encoders, fusion"),
        ([tuning("training.objectives: [answer, distillation]")], "'distillation' cannot be tried: .*teacher is"),
        ([tuning(metric="auroc")], "tuning.metric is 'auroc', expected a metric of output text"),
        ([tuning(metric="loss")], r"tuning.metric is 'loss', expected a metric of output text \(accuracy"),
        ([tuning(), "training.evaluations=0"], "tuning.pruner is 'median', expected none where"),
        ([tuning(), "launcher={kind: torchrun, processes: 2}"], "launcher is 'torchrun', expected subprocess"),
        ([tuning(sampler="grid")], "tuning.sampler: is 'grid'"),
        ([tuning(budget="3")], "tuning.budget: is not a key that is known here"),
        (["tuning={trials: 3}"], "tuning.space: is missing"),
    ],
)  # fmt: skip
def test_what_cannot_be_tried_is_refused_when_the_file_is_read(tiny: Path, settings: list[str], words: str) -> None:
    with pytest.raises(ProjectError, match=words) as refused:
        load(tiny, settings)
    assert str(refused.value).startswith(str(tiny))


def test_encoders_that_need_other_features_are_no_trial(tiny: Path) -> None:
    other = "model.encoders.image: [small_cnn, {kind: huggingface, model: somewhere}]"
    with pytest.raises(ProjectError, match=r"tuning.space.model.encoders.image.*read the features as they are"):
        load(tiny, [tuning(other), "features.image={}"])


def test_models_beside_the_project_file_are_found(tiny: Path) -> None:
    (tiny.parent / "own_llm").mkdir()
    space = "model.llm: [tiny, own_llm, {model: own_llm, train: lora}]"
    there = str(tiny.parent / "own_llm")
    project = load(tiny, [tuning(space)])
    assert project.tuning is not None
    assert project.tuning.space == {"model.llm": ("tiny", there, {"model": there, "train": "lora"})}


def test_a_search_is_an_asset_with_a_job_of_its_own(tiny: Path) -> None:
    found = project_definitions(load(tiny, [tuning(), "automation={all: eager}"]))
    graph = found.resolve_asset_graph()
    asset = graph.get(dg.AssetKey(["tiny", "tuning"]))
    assert {key.path[-1] for key in asset.parent_keys} == {"dataset"} and asset.kinds == {"torch", "mlflow", "optuna"}
    assert asset.automation_condition is None, "which takes many trainings"
    made = {name: found.resolve_job_def(name).asset_layer for name in ("tiny", "tiny_tuning")}
    names = {job: {key.path[-1] for key in layer.executable_asset_keys} for job, layer in made.items()}
    assert "tuning" not in names["tiny"] and {"model", "champion"} <= names["tiny"]
    assert names["tiny_tuning"] == names["tiny"] - {"baselines", "model", "evaluation", "champion"} | {"tuning"}
    assert "no_leakage" in {key.name for key in made["tiny_tuning"].asset_graph.asset_check_keys}
    sunday = project_definitions(load(tiny, [tuning(), "automation={tuning: '0 3 * * 0'}"])).resolve_asset_graph()
    condition = sunday.get(dg.AssetKey(["tiny", "tuning"])).automation_condition
    assert condition is not None and condition.get_label() == "0 3 * * 0"


def test_a_project_that_asks_for_no_search_is_told_how(tiny: Path) -> None:
    result = CliRunner().invoke(main, ["tune", str(tiny)])
    assert result.exit_code == 1 and "says nothing of what is to be tried: add `tuning: {space:" in result.stderr
