"""Runs and versions in a real MLflow store (SQLite): how runs end, and that nothing is logged or registered twice."""

import json
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from transformers import TrainerControl, TrainerState

from training import descriptions, model_registry, runs, tracking
from training.evaluate import measure
from training.mlflow_store import client
from training.outputs.text import TextOutput
from training.records import EvaluationRow, Figure, TrainingReport
from training.results import headline
from training.schema import predictions_schema
from training.spec import JobSpec, RunSpec

MakeSpec = Callable[..., tuple[JobSpec, RunSpec]]


def run_of(spec: JobSpec, run: RunSpec) -> Any:
    (stored,) = runs.search(spec.tracking_uri, spec.project, run.fingerprint)
    return stored


def report_of(run: RunSpec, run_id: str, version: str | None) -> TrainingReport:
    return TrainingReport(
        name=run.name,
        mlflow_run_id=run_id,
        version=version,
        dataset_fingerprint="d",
        training_fingerprint=run.fingerprint,
        metrics={"n": 4, "accuracy": 0.5, "f1": None},
        subsets={"text": None, "text+image": 0.5},
        rows={"text": 0, "text+image": 4},
        filled={"text": 0.25, "text+image": 0.5},
        test_rows=4,
        seconds={"train": 1.5},
    )


def measured(subset: str, value: float, n: int) -> EvaluationRow:
    figures = {"accuracy": Figure(value)}
    return EvaluationRow(inputs="text+image", subset=subset, slice=None, n=n, metrics=figures, filled=Figure(0.4))


def test_a_finished_run_is_found_with_its_report(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec, run = make_spec("finished")
    assert runs.find_report(spec.tracking_uri, spec.project, run.fingerprint) is None
    (tmp_path / "confusion.png").write_bytes(b"picture")
    with tracking.open_run(spec, run) as active:
        tracking.log_parameters(run, {"model": {"width": 16, "encoders": {"text": "llm"}}, "epochs": 3})
        tracking.log_results(tmp_path, {"accuracy": 0.5}, [measured("text", 0.25, 2), measured("text+image", 0.5, 4)])
        report = report_of(run, active.info.run_id, version="1")
        tracking.log_report(report)
        assert runs.find_run(spec.tracking_uri, spec.project, run.fingerprint) is None, "it is not finished yet"
    stored = run_of(spec, run)
    assert stored.info.status == "FINISHED"
    assert stored.data.params == {
        "keep": "text+image+speech",
        "model.width": "16",
        "model.encoders.text": "llm",
        "epochs": "3",
    }
    assert stored.data.metrics == {
        "test_accuracy": 0.5,
        "test_accuracy/text": 0.25,
        "test_n/text": 2,
        "test_filled_accuracy/text": 0.4,
        "test_accuracy/text-image": 0.5,
        "test_n/text-image": 4,
        "test_filled_accuracy/text-image": 0.4,
    }
    assert runs.find_run(spec.tracking_uri, spec.project, run.fingerprint) == active.info.run_id
    assert runs.find_report(spec.tracking_uri, spec.project, run.fingerprint) == report
    assert runs.read_artifact(spec.tracking_uri, active.info.run_id, "confusion.png") == b"picture"
    assert runs.find_run(spec.tracking_uri, spec.project, "another") is None


@pytest.mark.parametrize("version", [0, 7])
def test_the_dataset_of_a_run_is_a_version_of_a_table(make_spec: MakeSpec, version: int) -> None:
    spec, run = make_spec("input", seed=version)
    with tracking.open_run(replace(spec, version=version, dataset=f"fingerprint of {version}"), run):
        pass
    (used,) = run_of(spec, run).inputs.dataset_inputs
    assert json.loads(used.dataset.source)["delta_table_version"] == version


def test_predictions_are_a_table_that_is_logged_once(make_spec: MakeSpec) -> None:
    spec, run = make_spec("table")
    with pytest.raises(RuntimeError), tracking.open_run(spec, run) as active:
        tracking.log_predictions({"text": ["what?", None], "prediction": ["7", "9"]})
        fail()
    with tracking.open_run(spec, run) as again:
        tracking.log_predictions({"text": ["what?", None], "prediction": ["7", "9"]})
    assert again.info.run_id == active.info.run_id
    table = runs.read_json(spec.tracking_uri, active.info.run_id, tracking.TABLE)
    assert table == {"columns": ["text", "prediction"], "data": [["what?", "7"], [None, "9"]]}


def test_a_verdict_takes_the_place_of_the_last_one_in_the_description(make_spec: MakeSpec, bundle: Path) -> None:
    spec, run = make_spec("described")
    uri = spec.tracking_uri
    with tracking.open_run(spec, run):
        version = model_registry.log_model(spec, run, bundle)
    about = descriptions.registered_model(spec, run), descriptions.version(spec, run, 30, {"n": 4, "accuracy": 0.5})
    model_registry.describe(uri, "described", version, *about)
    model_registry.describe_verdict(uri, "described", version, ["worse than the champion"], False)
    model_registry.describe_verdict(uri, "described", version, ["better than the champion", "so it is"], True)
    store = client(uri)
    assert store.get_registered_model("described").description.startswith("Answers `label` (output text) from text, ")
    said = store.get_model_version("described", version).description
    assert "Trained on 30 samples of dataset `0123456789abcdef` (version 7 of the table)" in said
    assert "On 4 test samples, all inputs given: accuracy 0.5000." in said
    assert said.endswith("**The gate** (champion):\n\n- better than the champion\n- so it is")


def test_figures_are_told_with_their_intervals_and_what_they_stand_beside(make_spec: MakeSpec) -> None:
    metrics = {"n": 1800, "accuracy": 0.5794, "low": 0.5565, "high": 0.6021, "f1_flow": None, "f1_flow_low": None}
    metrics |= {"balanced_accuracy": 0.41, "balanced_accuracy_low": 0.3775, "balanced_accuracy_high": 0.4549}
    metrics |= {"majority_accuracy": 0.1189, "shuffled_accuracy": 0.1511, "shuffled_p": 1e-5, "shuffled_same": 313}
    said = descriptions.version(*make_spec("figures"), 30, metrics)
    assert (
        "On 1,800 test samples, all inputs given: accuracy 0.5794 [0.5565, 0.6021], balanced accuracy 0.4100 [0.3775, "
        "0.4549] (95 % intervals); the majority answer's 0.1189; with the soft tokens of another row 0.1511." in said
    )
    assert "p 0" not in said and "313" not in said


def test_what_could_not_be_measured_is_left_out(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec, run = make_spec("unmeasured")
    nothing = measure(predictions_schema(pa.string()).empty_table(), ["text", "image"], TextOutput({}))
    with tracking.open_run(spec, run):
        tracking.log_results(tmp_path, headline(nothing), nothing)
    assert run_of(spec, run).data.metrics == {"test_n": 0, "test_n/text": 0, "test_n/image": 0, "test_n/text-image": 0}


def test_a_run_names_its_dataset_and_origin(make_spec: MakeSpec) -> None:
    spec, run = make_spec("origin")
    with tracking.open_run(spec, run):
        pass
    stored = run_of(spec, run)
    dataset = stored.inputs.dataset_inputs[0].dataset
    assert dataset.digest == spec.dataset and dataset.source_type == "delta_table"
    assert json.loads(dataset.source) == {"path": f"{spec.lake}/dataset", "delta_table_version": 7}
    tags = {k.removeprefix("triptych."): v for k, v in stored.data.tags.items() if k.startswith("triptych.")}
    assert tags.pop("process").startswith(socket.gethostname())
    assert tags == {
        "dagster_run_id": "run-of-dagster",
        "training_fingerprint": run.fingerprint,
        "dataset_fingerprint": spec.dataset,
        "dataset_version": "7",
        "role": "model",
        "metric": "accuracy",
    }


def sigterm() -> None:
    signal.raise_signal(signal.SIGTERM)  # which handles it before it returns, whatever threads there are


def ctrl_c() -> None:
    raise KeyboardInterrupt


def fail() -> None:
    raise RuntimeError("out of memory")


@pytest.mark.parametrize(
    ("end", "error", "status"),
    [(sigterm, SystemExit, "KILLED"), (ctrl_c, KeyboardInterrupt, "KILLED"), (fail, RuntimeError, "FAILED")],
)
def test_a_run_that_did_not_end_well_says_so_and_goes_on_later(
    make_spec: MakeSpec, end: Callable[[], None], error: type[BaseException], status: str
) -> None:
    spec, run = make_spec(f"ended_by_{end.__name__}")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(error), tracking.open_run(spec, run) as first:
        tracking.log_parameters(run, {"workers": 1})
        end()
    assert signal.getsignal(signal.SIGTERM) is before
    assert run_of(spec, run).info.status == status
    with tracking.open_run(spec, run) as second:
        tracking.log_parameters(run, {"workers": 2, "epochs": 1})  # MLflow refuses to change a parameter
    assert second.info.run_id == first.info.run_id
    assert run_of(spec, run).info.status == "FINISHED"
    assert run_of(spec, run).data.params["workers"] == "1"
    assert len(run_of(spec, run).inputs.dataset_inputs) == 1


def test_a_short_run_has_system_metrics(make_spec: MakeSpec) -> None:
    spec, run = make_spec("system")
    with tracking.open_run(spec, run):
        time.sleep(1.5 * tracking._SAMPLING_SECONDS)
    metrics = run_of(spec, run).data.metrics
    assert metrics["system/system_memory_usage_megabytes"] > 0 and "system/cpu_utilization_percentage" in metrics


def test_progress_goes_to_metrics_and_to_the_log(make_spec: MakeSpec) -> None:
    spec, run = make_spec("progress")
    lines: list[str] = []
    state, control = TrainerState(max_steps=1000, is_world_process_zero=True), TrainerControl()
    with tracking.open_run(spec, run) as active:
        callback = tracking.progress_callback(run, lines.append)
        callback.on_train_begin(None, state, control)
        for step in range(50, 1001, 50):
            state.global_step = step
            callback.on_log(None, state, control, logs={"loss": 1 / step, "learning_rate": 1e-3, "text": "no number"})
        callback.on_log(None, state, control, logs={"eval_loss": 0.5, "eval_accuracy": 0.75})
        state.is_world_process_zero = False
        callback.on_log(None, state, control, logs={"loss": 99.0})
    history = client(spec.tracking_uri).get_metric_history(active.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(step, 1 / step) for step in range(50, 1001, 50)]
    assert run_of(spec, run).data.metrics["validation_accuracy"] == 0.75
    assert len(lines) == 12 and lines[0] == "model: 1,000 steps"
    assert lines[-1] == "model: step 1,000 of 1,000, validation loss 0.500, validation accuracy 0.750"


def test_a_model_is_registered_once_whatever_happens_between(make_spec: MakeSpec, bundle: Path) -> None:
    spec, run = make_spec("once")
    uri = spec.tracking_uri
    with pytest.raises(RuntimeError), tracking.open_run(spec, run) as active:
        model_registry._log_pyfunc(spec, run, active.info.run_id, bundle)  # killed before it is registered
        fail()
    with pytest.raises(RuntimeError), tracking.open_run(spec, run):
        first = model_registry.log_model(spec, run, bundle)  # killed before the run is finished
        fail()
    with tracking.open_run(spec, run):
        assert model_registry.log_model(spec, run, bundle) == first == model_registry.log_model(spec, run, bundle)
    experiment = client(uri).get_experiment_by_name("once")
    assert len(client(uri).search_logged_models([experiment.experiment_id])) == 1
    (version,) = model_registry.versions(uri, "once")
    assert version["version"] == 1 and version["run_id"] == active.info.run_id
    assert model_registry.version_run(uri, "once", first) == active.info.run_id
    tags = model_registry.version_tags(uri, "once", first)
    assert tags["training_fingerprint"] == run.fingerprint and tags["dataset_fingerprint"] == spec.dataset
    assert tags["dagster_run_id"] == "run-of-dagster"


def test_trainings_side_by_side_log_the_same_dataset_at_once(make_spec: MakeSpec, monkeypatch: Any) -> None:
    together, made, been = threading.Barrier(2, timeout=60), tracking._snapshot, set()

    def snapshot(spec: JobSpec) -> Any:
        if (key := (spec.dataset, threading.get_ident())) not in been:  # not when it is tried again
            been.add(key)
            together.wait()
        return made(spec)

    def train(spec: JobSpec, run: RunSpec) -> str:
        with tracking.open_run(spec, run) as active:
            return active.info.run_id

    monkeypatch.setattr(tracking, "_snapshot", snapshot)
    for n in range(5):
        pairs = [make_spec("beside", dataset=f"{n:016x}", seed=seed) for seed in (0, 1)]
        tracking.open_experiment(pairs[0][0])
        with ThreadPoolExecutor(2) as pool:
            runs = [client(pairs[0][0].tracking_uri).get_run(i) for i in pool.map(train, *zip(*pairs, strict=True))]
        assert [run.info.status for run in runs] == ["FINISHED"] * 2
        assert [[i.dataset.digest for i in run.inputs.dataset_inputs] for run in runs] == [[f"{n:016x}"]] * 2


def test_versions_have_aliases_looks_and_reasons(make_spec: MakeSpec, bundle: Path) -> None:
    (old_spec, old_run), (new_spec, new_run) = make_spec("aliases"), make_spec("aliases", seed=1)
    uri = old_spec.tracking_uri
    assert model_registry.alias(uri, "aliases", "champion") is None and model_registry.versions(uri, "aliases") == []
    for spec, run in ((old_spec, old_run), (new_spec, new_run)):
        with tracking.open_run(spec, run):
            tracking.log_results(bundle, {"accuracy": 0.5 + run.training.seed / 10}, {})
            model_registry.log_model(spec, run, bundle)
    assert model_registry.alias(uri, "aliases", "champion") is None
    model_registry.tag_version(uri, "aliases", "2", {"gate_reasons": json.dumps(["not better"])})
    with pytest.raises(ValueError, match=r"Version 2: not better\. `--version 2` asks it all the same"):
        model_registry.find_version(uri, "aliases", "champion")
    model_registry.set_alias(uri, "aliases", "challenger", "1")
    model_registry.set_alias(uri, "aliases", "champion", "1")
    assert model_registry.aliases(uri, "aliases", "1") == ["challenger", "champion"]
    model_registry.set_alias(uri, "aliases", "champion", "2")
    assert model_registry.alias(uri, "aliases", "champion") == "2"
    assert [model_registry.find_version(uri, "aliases", wanted) for wanted in ("champion", "challenger", "2")] == list(
        "212"
    )
    with pytest.raises(ValueError, match=r"no version '9' \(there are: 2 \(champion\), 1 \(challenger\)\)$"):
        model_registry.find_version(uri, "aliases", "9")
    model_registry.tag_version(uri, "aliases", "2", {"gate_reasons": json.dumps(["better"])})
    looks = [model_registry.count_look(uri, "aliases", "snapshot", version) for version in ("1", "2", "2")]
    assert looks == [1, 2, 2] and model_registry.count_look(uri, "aliases", "another", "2") == 1
    newest, oldest = model_registry.versions(uri, "aliases")
    assert (newest["version"], newest["aliases"], newest["accuracy"]) == (2, ["champion"], 0.6)
    assert newest["reasons"] == ["better"] and oldest["reasons"] == [] and oldest["aliases"] == ["challenger"]


def test_the_logged_model_holds_its_code_and_requirements_and_no_pickle(logged: Path) -> None:
    files = {str(path.relative_to(logged)) for path in logged.rglob("*") if path.is_file()}
    assert {"code/training/serving.py", "code/training/model.py", "artifacts/bundle/model.safetensors"} <= files
    assert not [name for name in files if name.endswith((".pkl", ".pyc", ".bin", ".pt")) or "__pycache__" in name]
    requirements = (logged / "requirements.txt").read_text().split()
    assert all("==" in line and "+" not in line for line in requirements)
    assert {"mlflow", "torch", "transformers"} <= {line.partition("==")[0] for line in requirements}
