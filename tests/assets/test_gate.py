"""The gate at work on a real MLflow store: trainings that were only written down, on a dataset that was really made."""

from types import SimpleNamespace
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assets import featurizing, pipeline
from assets import gate as gate_module
from assets.evaluation import check_fusion
from orchestration.project import load
from training import model_registry
from training.mlflow_store import client
from training.records import TrainingReport, Verdict
from training.runs import TAG
from training.schema import predictions_schema, subset_name

LOG = SimpleNamespace(log=SimpleNamespace(info=print))
ROWS = 40


def predictions(right: int, subset: str) -> pa.Table:
    """The first `right` of ROWS rows answered right."""
    answers = ["yes" if n < right else "no" for n in range(ROWS)]
    rows = [{"sample_id": f"s{n}", "subset": subset, "label": "yes", "prediction": a} for n, a in enumerate(answers)]
    return pa.Table.from_pylist(rows, predictions_schema(pa.string()))


class Gate:
    """A project with its data made; trainings are added by what they answered."""

    def __init__(self, path: Any) -> None:
        self.path, self.majority = path, "no"  # which is wrong in every row
        project = self.settings()
        lake = pipeline.open_lake(project)
        pipeline.write_manifest(lake, project)
        for modality in project.modalities:
            featurizing.process_modality(lake, project, modality)
        pipeline.write_samples(lake, project)
        self.dataset = pipeline.write_dataset(lake, project).fingerprint
        self.uri, self.folder = project.mlflow_uri, path.parent
        self.store = client(self.uri)
        self.experiment = self.store.create_experiment("tiny", artifact_location=str(project.home / "artifacts"))
        self.store.create_registered_model("tiny")

    def settings(self, *overrides: str) -> Any:
        return load(self.path, ["promotion.must_beat=[champion, best_single_modality, majority]", *overrides])

    def add(self, right: int, *overrides: str, single: int = 5, dataset: str | None = None, **metrics: float) -> str:
        """The model and baselines that these settings ask for; returns the model's version."""
        project = self.settings(*overrides)
        version = ""
        for run in pipeline.plan(project):
            subset = subset_name(project.modalities) if run.name in ("model", "concat") else run.name
            answered = predictions(single if run.is_baseline else right, subset)
            made = self.log(run.fingerprint, answered, None if run.is_baseline else dataset or self.dataset, metrics)
            version = made or version
        return version

    def log(
        self, fingerprint: str, answered: pa.Table, dataset: str | None = None, metrics: dict[str, float] | None = None
    ) -> str | None:
        """A finished training; with `dataset` also a version, which is returned."""
        made = self.store.create_run(self.experiment, tags={f"{TAG}training_fingerprint": fingerprint}).info.run_id
        pq.write_table(answered, self.folder / "predictions.parquet")
        self.store.log_artifact(made, str(self.folder / "predictions.parquet"))
        usual = [{"subset": "majority", "prediction": self.majority}]
        pq.write_table(pa.Table.from_pylist(usual, answered.schema), self.folder / "majority.parquet")
        self.store.log_artifact(made, str(self.folder / "majority.parquet"))
        version = None
        if dataset is not None:
            tags = {f"{TAG}dataset_fingerprint": dataset}
            version = str(self.store.create_model_version("tiny", "here", made, tags=tags).version)
        report = TrainingReport(
            name="model" if version else "baseline",
            mlflow_run_id=made,
            version=version,
            dataset_fingerprint=self.dataset,
            training_fingerprint=fingerprint,
            metrics=metrics or {},
            subsets={},
            rows={},
            filled={},
            test_rows=40,
            seconds={},
        )
        self.store.log_dict(made, report.to_json(), "report.json")
        self.store.set_terminated(made)
        return version

    def __call__(self, *overrides: str) -> Verdict:
        return gate_module.gate(LOG, self.settings(*overrides))  # type: ignore[arg-type]

    @property
    def champion(self) -> str | None:
        return model_registry.alias(self.uri, "tiny", "champion")


@pytest.fixture
def gate(tiny: Any) -> Gate:
    return Gate(tiny)


def test_a_champion_that_changed_meanwhile_is_not_overwritten(gate, monkeypatch):
    first, second = gate.add(20, dataset="another"), gate.add(30, "training.seed=1")
    third = gate.add(40, "training.seed=2")
    model_registry.set_alias(gate.uri, "tiny", "champion", first)

    def score(project: Any, version: str) -> pa.Table:
        model_registry.set_alias(gate.uri, "tiny", "champion", second)  # another process, while this one scores
        return predictions({first: 20, third: 40}[version], subset_name(project.modalities))

    monkeypatch.setattr(gate_module, "score", score)
    with pytest.raises(RuntimeError, match=f"became version {second} while version {third} was judged against {first}"):
        gate("training.seed=2")
    assert gate.champion == second
    assert gate("training.seed=2").champion == third, "asked again, it judges against the new one"


def test_the_same_question_has_the_same_answer_and_another_is_judged_anew(gate):
    gate.add(38)
    assert gate().champion == "1"
    seed = "training.seed=1"
    assert gate.add(37, seed) == "2"  # a row worse
    refused = gate(seed)
    assert refused.champion == "1" and refused.test_looks == 2
    assert gate(seed) == refused
    assert gate(seed, "promotion.confidence=0.9").reasons != refused.reasons
    assert [(s.name, s.all.differ) for s in refused.standings] == [("champion", 1), ("text", 32), ("majority", 37)]
    allowed = gate(seed, "promotion.margin=0.2")
    assert allowed.champion == "2" and allowed.reasons[0].startswith("not worse than the champion")
    assert allowed.test_looks == 2, "the same candidate on the same rows"


def test_retrained_baselines_are_another_question(gate):
    gate.add(20, single=20)
    assert gate().aliases == ["challenger"], "no better than a single modality"
    longer = "training.baseline_epochs=3"  # neutral to the model, which is not trained again
    project = gate.settings(longer)
    for run in pipeline.plan(project)[1:]:
        gate.log(run.fingerprint, predictions(5, run.name))
    assert gate(longer).aliases == ["challenger", "champion"]


def test_a_kill_before_the_alias_moves_is_made_good(gate, monkeypatch):
    gate.add(38)
    moved = model_registry.set_alias

    def die(uri: str, name: str, alias: str, version: str) -> None:
        if alias == "champion":
            raise KeyboardInterrupt
        moved(uri, name, alias, version)

    monkeypatch.setattr(model_registry, "set_alias", die)
    with pytest.raises(KeyboardInterrupt):
        gate()
    assert gate.champion is None
    monkeypatch.setattr(model_registry, "set_alias", moved)
    verdict = gate()
    assert verdict.champion == "1" and verdict.test_looks == 1 and "best single modality" in verdict.reasons[0]


def test_a_person_who_takes_the_alias_back_is_not_overruled(gate):
    gate.add(20)
    gate()
    seed = "training.seed=1"
    gate.add(40, seed)
    assert gate(seed).champion == "2"
    model_registry.set_alias(gate.uri, "tiny", "champion", "1")
    assert gate(seed).champion == "1"


def test_an_alias_given_by_hand_is_told(gate):
    gate.majority = "yes"
    gate.add(20)
    assert gate().aliases == ["challenger"]
    model_registry.set_alias(gate.uri, "tiny", "champion", "1")
    told = gate()
    assert told.champion == "1" and told.reasons[-1] == "it was refused, and given the alias champion by hand"


def test_another_champion_is_another_question(gate):
    weak, strong = gate.add(10), gate.add(38, "training.seed=1")
    model_registry.set_alias(gate.uri, "tiny", "champion", strong)
    seed = "training.seed=2"
    gate.add(30, seed)
    refused = gate(seed)
    assert refused.champion == strong and refused.reasons[0].startswith("worse than the champion")
    model_registry.set_alias(gate.uri, "tiny", "champion", weak)  # a person takes it back
    promoted = gate(seed)
    assert promoted.champion == "3" and promoted.champion_before == weak
    assert promoted.reasons[0].startswith("better than the champion")


def test_no_first_model_is_champion_that_is_no_better_than_one_answer_for_all(gate):
    gate.majority = "yes"  # right in every row
    gate.add(38)
    refused = gate()
    assert refused.aliases == ["challenger"]
    assert "worse than the majority answer (yes): accuracy 0.9500 against 1.0000 on the same 40 test rows" in "".join(
        refused.reasons
    )
    easier = gate("promotion.must_beat=[champion, best_single_modality]")
    assert easier.aliases == ["challenger", "champion"], "a rule that changed is judged anew"
    assert gate().aliases == ["challenger", "champion"], "a champion stays until another is better"


def test_a_model_that_does_not_listen_is_warned_of_or_stopped(gate):
    deaf = {"n": 40, "accuracy": 0.95, "shuffled_accuracy": 0.95, "shuffled_p": 1.0, "shuffled_same": 40}
    gate.add(38, **deaf)
    lake = pipeline.open_lake(gate.settings())
    block = "promotion.unused_fusion=block"
    warned, stopped = (check_fusion(lake, gate.settings(*changes)) for changes in ((), (block,)))
    assert not warned.passed and warned.severity == dg.AssetCheckSeverity.WARN and "40 test rows" in warned.description
    assert not stopped.passed and stopped.severity == dg.AssetCheckSeverity.ERROR
    refused = gate(block)  # also where the gate is asked without the check
    assert refused.aliases == ["challenger"] and "promotion.unused_fusion is block" in refused.reasons[-1]
    assert gate().aliases == ["challenger", "champion"]
    seed = "training.seed=1"
    gate.add(38, seed, **deaf | {"shuffled_accuracy": 0.5, "shuffled_p": 0.001})
    assert check_fusion(lake, gate.settings(seed)).passed
    other = "training.seed=2"
    gate.add(38, other)  # of one modality that is the prompt, nothing is measured
    assert check_fusion(lake, gate.settings(other, block)).passed


def test_a_champion_whose_answers_are_gone_is_asked_again(gate, monkeypatch):
    gate.add(38)
    assert gate().champion == "1"
    run_id = model_registry.version_run(gate.uri, "tiny", "1")
    (gate.folder.parent / "home" / "artifacts" / run_id / "artifacts" / "predictions.parquet").unlink()
    seed = "training.seed=1"
    gate.add(20, seed)
    asked = []

    def score(project: Any, version: str) -> pa.Table:
        asked.append(version)
        return predictions({"1": 38, "2": 20}[version], subset_name(project.modalities))

    monkeypatch.setattr(gate_module, "score", score)
    refused = gate(seed)
    assert refused.champion == "1" and asked == ["1", "2"] and refused.reasons[0].startswith("worse than the champion")


@pytest.mark.slow
def test_a_champion_that_cannot_be_asked_stays_and_it_is_said_what_to_do(gate):
    gate.add(10, dataset="another")
    model_registry.set_alias(gate.uri, "tiny", "champion", "1")
    seed = "training.seed=1"
    gate.add(40, seed)
    with pytest.raises(
        RuntimeError, match="the champion cannot be asked, so nothing can be shown to be better"
    ) as told:
        gate(seed)
    assert "\n" not in str(told.value) and "Give the alias `champion` of tiny to a version that answers" in str(
        told.value
    )
    assert gate.champion == "1"
    gate.store.delete_registered_model_alias("tiny", "champion")
    assert gate(seed).champion == "2"


NUMBERS = """
import pyarrow as pa
from training.outputs.base import Output

class NumberOutput(Output):
    arrow_type = pa.float64()

    def read(self, label):
        return float(label)
"""


def test_what_another_output_answered_is_read_as_the_present_one_reads(gate, tmp_path, monkeypatch):
    (tmp_path / "numbers_of_ours.py").write_text(NUMBERS)
    monkeypatch.syspath_prepend(tmp_path)
    gate.add(20)
    run_id = gate.store.search_runs([gate.experiment])[0].info.run_id
    answers = {"sample_id": ["a", "b"], "subset": ["text"] * 2, "label": ["7", "9"], "prediction": ["7.0", "no"]}
    pq.write_table(pa.table(answers), gate.folder / "predictions.parquet")
    gate.store.log_artifact(run_id, str(gate.folder / "predictions.parquet"))
    texts = gate_module.recorded_predictions(gate.settings(), run_id, "text")
    assert texts.schema == predictions_schema(pa.string()) and texts["prediction"].to_pylist() == ["7.0", "no"]
    numbers = gate_module.recorded_predictions(
        gate.settings("model.output=numbers_of_ours:NumberOutput"), run_id, "text"
    )
    assert numbers["label"].to_pylist() == [7.0, 9.0] and numbers["prediction"].to_pylist() == [7.0, None]
