"""The gate at work on a real MLflow store: trainings that were only written down, on a dataset that was really made."""

from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assets import pipeline, promotion
from orchestration.project import load
from training import registry
from training.schema import PREDICTIONS, subset_name
from training.tracking import TAG, client

LOG = SimpleNamespace(log=SimpleNamespace(info=print))
ROWS = 40


def predictions(right: int, subset: str) -> pa.Table:
    """The first `right` of ROWS rows answered right."""
    answers = ["yes" if n < right else "no" for n in range(ROWS)]
    rows = [{"sample_id": f"s{n}", "subset": subset, "label": "yes", "prediction": a} for n, a in enumerate(answers)]
    return pa.Table.from_pylist(rows, PREDICTIONS)


class Gate:
    """A project with its data made; trainings are added by what they answered."""

    def __init__(self, path: Any) -> None:
        self.path = path
        project = self.settings()
        lake = pipeline.open_lake(project)
        pipeline.write_manifest(lake, project)
        for modality in project.modalities:
            pipeline.process_modality(lake, project, modality)
        pipeline.write_samples(lake, project)
        self.dataset = pipeline.write_dataset(lake, project).fingerprint
        self.uri, self.folder = project.mlflow_uri, path.parent
        self.store = client(self.uri)
        self.experiment = self.store.create_experiment("tiny", artifact_location=str(project.home / "artifacts"))
        self.store.create_registered_model("tiny")

    def settings(self, *overrides: str) -> Any:
        return load(self.path, ["promotion.must_beat=[champion, best_single_modality]", *overrides])

    def add(self, right: int, *overrides: str, single: int = 5, dataset: str | None = None) -> str:
        """The model and baselines that these settings ask for; returns the model's version."""
        project = self.settings(*overrides)
        version = ""
        for run in pipeline.plan(project):
            subset = subset_name(project.modalities) if run.name in ("model", "concat") else run.name
            tags = {f"{TAG}training_fingerprint": run.fingerprint}
            run_id = self.store.create_run(self.experiment, tags=tags).info.run_id
            pq.write_table(
                predictions(single if run.is_baseline else right, subset), self.folder / "predictions.parquet"
            )
            self.store.log_artifact(run_id, str(self.folder / "predictions.parquet"))
            if not run.is_baseline:
                tags = {f"{TAG}dataset_fingerprint": dataset or self.dataset}
                version = self.store.create_model_version("tiny", "here", run_id, tags=tags).version
            self.store.log_dict(run_id, {"version": version}, "report.json")
            self.store.set_terminated(run_id)
        return str(version)

    def __call__(self, *overrides: str) -> dict[str, Any]:
        return promotion.gate(LOG, self.settings(*overrides))  # type: ignore[arg-type]

    @property
    def champion(self) -> str | None:
        return registry.alias(self.uri, "tiny", "champion")


@pytest.fixture
def gate(tiny: Any) -> Gate:
    return Gate(tiny)


def test_a_champion_that_changed_meanwhile_is_not_overwritten(gate, monkeypatch):
    first, second = gate.add(20, dataset="another"), gate.add(30, "training.seed=1")
    third = gate.add(40, "training.seed=2")
    registry.set_alias(gate.uri, "tiny", "champion", first)

    def score(project: Any, version: str) -> pa.Table:
        registry.set_alias(gate.uri, "tiny", "champion", second)  # another process, while this one scores
        return predictions({first: 20, third: 40}[version], subset_name(project.modalities))

    monkeypatch.setattr(promotion, "score", score)
    with pytest.raises(RuntimeError, match=f"became version {second} while version {third} was judged against {first}"):
        gate("training.seed=2")
    assert gate.champion == second
    assert gate("training.seed=2")["champion"] == third, "asked again, it judges against the new one"
