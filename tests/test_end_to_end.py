"""The whole job as a person starts it: from files to a registered, judged and answering model, and again for free."""

import base64
import contextlib
import csv
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import dagster as dg
import nbclient
import nbformat
import numpy as np
import pandas as pd
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
import soundfile
from click.testing import CliRunner

import triptych
from orchestration.cli import main
from orchestration.run import open_instance
from tests.orchestration.test_housekeeping import take_away
from training.runs import TRAINING_PAGES, read_artifact

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
MODALITIES = ("text", "image", "speech")
SUBSETS = ["+".join(some) for n in (1, 2, 3) for some in itertools.combinations(MODALITIES, n)]
ASSETS = {
    *(name for m in MODALITIES for name in (f"clean_{m}", f"{m}_features")),
    *("manifest", "samples", "dataset", "baselines", "model", "evaluation", "champion"),
}


class Told(NamedTuple):
    """What a command said."""

    answer: dict[str, Any]  # the last line of stdout
    pid: int
    stderr: str


class Home:
    """A project, its TRIPTYCH_HOME, and the runs of it in order."""

    def __init__(self, path: Path, home: Path) -> None:
        self.path, self.home = path, home
        self.runs: list[Told] = []

    def run(self, *overrides: str) -> Told:
        """`triptych run --json` in a process of its own, started from another folder."""
        given = [part for override in overrides for part in ("--set", override)]
        command = [sys.executable, "-P", "-m", "orchestration.cli", "run", str(self.path), "--json", *given]
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            command, cwd=self.home.parent, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        stdout, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr
        self.runs.append(Told(json.loads(stdout.splitlines()[-1]), process.pid, stderr))
        return self.runs[-1]

    def ask(self, *arguments: Any) -> dict[str, Any]:
        """Another command's JSON object."""
        result = CliRunner().invoke(main, [*(str(argument) for argument in arguments), "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout.splitlines()[-1])

    @property
    def mlflow(self) -> Any:
        from mlflow import MlflowClient

        uri = f"sqlite:///{self.home / 'mlflow.db'}"
        return MlflowClient(tracking_uri=uri, registry_uri=uri)

    def mlflow_runs(self) -> list[Any]:
        store = self.mlflow
        return store.search_runs([store.get_experiment_by_name("tiny").experiment_id])

    def versions(self) -> list[Any]:
        return sorted(self.mlflow.search_model_versions("name = 'tiny'"), key=lambda version: int(version.version))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, make_project: Callable[..., Path]) -> Iterator[Home]:
    """A project that was run once."""
    folder = tmp_path_factory.mktemp("end_to_end")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIPTYCH_HOME", str(folder / "home"))
        patch.setenv("DAGSTER_HOME", str(folder / "home"))
        project = make_project(folder / "project")
        # Long enough for a sample of the system metrics.
        longer = project.read_text().replace("training: {epochs: 1,", "training: {epochs: 30, baseline_epochs: 1,")
        project.write_text(longer)
        found = Home(project, folder / "home")
        found.run()
        yield found


# The tests follow one another on the same project, as the days of a person do.


def test_a_run_tells_what_it_made(done):
    told = done.runs[0].answer
    assert told["project"] == "tiny"
    assert told["model"] == {"name": "tiny", "version": 1, "aliases": ["challenger", "champion"]}
    assert len(told["dataset"]["fingerprint"]) == 16
    assert set(told["dataset"]["rows"]) == {"train", "validation", "test"}
    assert sum(told["dataset"]["rows"].values()) == 60
    assert told["items"] == {"seen": 157, "processed": 155, "reused": 0, "quarantined": 2}
    assert 0 <= told["metrics"]["test/accuracy"] <= 1
    assert list(told["subsets"]) == SUBSETS
    assert told["subsets"][SUBSETS[-1]] == told["metrics"]["test/accuracy"]
    assert set(told["seconds"]) == ASSETS
    assert done.mlflow.get_run(told["mlflow_run_id"]).info.status == "FINISHED"
    with open_instance(done.home) as instance:
        assert instance.get_run_by_id(told["dagster_run_id"]).is_success


def test_python_says_what_the_command_line_says(done):
    project = triptych.open(done.path)
    assert project.sql("SELECT count(*) AS n FROM samples")["n"].to_pylist() == [project.table("samples").num_rows]
    with pytest.raises(ValueError, match="there is no table 'sample'; there are manifest"):
        project.table("sample")
    assert project.check().sources["photos"].listed == 48 and project.status().models[0]["version"] == 1
    assert {key.path[0] for key in project.definitions.resolve_asset_graph().get_all_asset_keys()} == {"tiny"}
    model, question = project.model(), "Is it bright? (1)"
    photo, recording = done.path.parent / "photos" / "q01.png", done.path.parent / "recordings" / "q01.wav"
    (told,) = done.ask("predict", done.path, "--text", question, "--image", photo, "--speech", recording)["predictions"]
    picture, heard = PIL.Image.open(photo), soundfile.read(recording)
    frame = pd.DataFrame(
        {"text": [question] * 3, "image": [str(photo), picture, np.asarray(picture)]}
        | {"speech": [recording.read_bytes(), recording, heard]}
    )
    assert model.predict(frame) == [told] * 3
    assert "error" not in model.predict(text=question, image=None)
    with pytest.raises(ValueError, match="sound: no input; there are text, image, speech"):
        model.predict(sound="x")
    with pytest.raises(ValueError, match="image is a int: expected a file's name"):
        model.predict(image=1)


def test_every_figure_has_its_rows_and_is_the_same_everywhere(done):
    told = done.runs[0].answer
    n = told["dataset"]["rows"]["test"]
    assert told["metrics"]["test/n"] == told["subset_rows"]["text+image+speech"] == n > told["subset_rows"]["image"] > 0
    majority, *baselines = told["standings"]
    assert [standing["name"] for standing in baselines] == ["text", "image", "speech", "concat"]
    assert majority["all"]["b"] == pytest.approx(told["metrics"]["test/majority_accuracy"])
    for standing in told["standings"]:
        assert standing["all"]["rows"] == n and standing["all"]["a"] == pytest.approx(told["metrics"]["test/accuracy"])
        assert standing["answered"]["rows"] == told["subset_rows"].get(standing["name"], n)
    assert 0 <= told["metrics"]["test/shuffled_p"] <= 1 and 0 <= told["metrics"]["test/shuffled_same"] <= n
    with open_instance(done.home) as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey(["tiny", "evaluation"]))
        metadata = event.asset_materialization.metadata
        accuracy = round(told["metrics"]["test/accuracy"], 4)
        assert metadata["accuracy"].value == metadata["test_accuracy"].value == accuracy
        assert metadata["n/image"].value == told["subset_rows"]["image"]
        assert metadata["accuracy/baseline/majority"].value == round(majority["all"]["b"], 4)
        plotted = ("accuracy", "n", "accuracy/text", "majority_accuracy", "shuffled_accuracy", "shuffled_p")
        assert all(isinstance(metadata[name], dg.FloatMetadataValue | dg.IntMetadataValue) for name in plotted)
        key = dg.AssetCheckKey(dg.AssetKey(["tiny", "evaluation"]), "fusion_is_used")
        (check,) = instance.event_log_storage.get_asset_check_execution_history(key, limit=5)
        passed = check.event.dagster_event.asset_check_evaluation_data.passed
    assert passed == (told["metrics"]["test/shuffled_p"] < 0.05) == (told["warnings"] == [])
    (model,) = done.ask("status", "tiny")["models"]
    assert model["n"] == n and (model["unused_fusion"] is None) == passed
    page = Path(done.ask("report", "tiny")["report"]).read_text()
    assert "The fused model (version 1)" in page and f"on the same {n} rows" in page and "It is champion." in page
    assert "Labels and splits" in page and "model.width" in page and "training.epochs" in page


def test_an_answer_is_explained(done, tmp_path):
    told = done.ask("explain", done.path, "q01", "--to", tmp_path)
    assert told["how"] == {"text": "occlusion", "image": "integrated gradients", "speech": "integrated gradients"}
    assert (told["sample"], told["version"], told["error"]) == ("q01", "1", None) and told["prediction"] is not None
    assert PIL.Image.open(told["picture"]).size > (300, 300) and Path(told["picture"]).parent == tmp_path
    refused = CliRunner().invoke(main, ["explain", str(done.path), "nothing"])
    assert refused.exit_code == 1 and "has no sample 'nothing'" in refused.stderr


def test_mlflow_holds_the_training(done):
    told = done.runs[0].answer
    assert sorted(run.info.run_name for run in done.mlflow_runs()) == ["concat", "image", "model", "speech", "text"]
    run = done.mlflow.get_run(told["mlflow_run_id"])
    expected = {"model.width": "16", "training.batch_size": "16", "training.seed": "0", "keep": "text+image+speech"}
    assert expected.items() <= run.data.params.items()
    losses = done.mlflow.get_metric_history(run.info.run_id, "loss")
    assert len({metric.step for metric in losses}) >= 2
    assert "validation_loss" in run.data.metrics
    assert run.data.metrics["test_accuracy"] == told["metrics"]["test/accuracy"]
    assert any(name.startswith("system/") for name in run.data.metrics)
    (used,) = run.inputs.dataset_inputs
    assert used.dataset.digest == told["dataset"]["fingerprint"]
    owner = run.data.tags["triptych.process"]
    assert f" {done.runs[0].pid}@" not in owner, "the training has a process of its own"
    files = {file.path for file in done.mlflow.list_artifacts(run.info.run_id)}
    assert {"confusion.png", "learning.png", "subsets.png", "examples.png", "predictions.parquet"} <= files


def test_the_dataset_of_a_run_is_named_with_its_version(done):
    run = done.mlflow.get_run(done.runs[0].answer["mlflow_run_id"])
    (used,) = run.inputs.dataset_inputs
    source = json.loads(used.dataset.source)
    assert source == {"path": f"{done.home}/projects/tiny/lake/dataset", "delta_table_version": 0}


def test_mlflow_says_in_words_what_it_holds(done):
    told, store = done.runs[0].answer, done.mlflow
    run = store.get_run(told["mlflow_run_id"])
    experiment = store.get_experiment(run.info.experiment_id)
    assert "models that answer `answer`" in experiment.tags["mlflow.note.content"]
    task = "Answers `answer` (output text) from text, image and speech"
    dagster = f"http://127.0.0.1:3000/runs/{told['dagster_run_id']}"
    assert run.data.tags["mlflow.note.content"].startswith(f"The model. {task}")
    assert f"]({dagster})" in run.data.tags["mlflow.note.content"]
    (text,) = store.search_runs([run.info.experiment_id], "tags.triptych.role = 'text'")
    assert "A baseline (text)" in text.data.tags["mlflow.note.content"]
    assert store.get_registered_model("tiny").description.startswith(task)
    (version,) = done.versions()
    rows, accuracy = told["dataset"]["rows"], told["metrics"]["test/accuracy"]
    assert f"Trained on {rows['train']} samples of dataset `{told['dataset']['fingerprint']}`" in version.description
    assert f"On {rows['test']} test samples, all inputs given: accuracy {accuracy:.4f}" in version.description
    assert f"]({dagster})" in version.description
    assert version.description.count("**The gate** (champion):\n\n- ") == 1
    assert "- there was no champion before" in version.description


def test_mlflow_shows_what_was_asked_and_answered(done):
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{done.home / 'mlflow.db'}")
    mlflow.set_experiment("tiny")
    told = done.runs[0].answer
    table = mlflow.load_table("evaluation_table.json", run_ids=[told["mlflow_run_id"]])
    shown = ["sample_id", "text", "image", "speech", "label", "prediction", "accuracy", "probability"]
    assert list(table) == [*shown, "text_adds", "image_adds", "speech_adds"]
    assert table["probability"].between(0, 1).all()
    table = table.astype(object).where(table.notna(), None)
    assert len(table) == told["dataset"]["rows"]["test"]
    assert table["accuracy"].mean() == pytest.approx(told["metrics"]["test/accuracy"])
    for row in table.to_dict("records"):
        key = row["text"].rpartition("(")[2].rstrip(")")
        assert row["image"] in (None, f"q{key:>02}.png") and row["speech"] in (None, f"q{key:>02}.wav")
    assert table["image"].notna().any() and table["speech"].notna().any()


def test_dagster_leads_to_mlflow(done):
    told = done.runs[0].answer
    run = done.mlflow.get_run(told["mlflow_run_id"])
    page = f"http://127.0.0.1:5000/#/experiments/{run.info.experiment_id}/runs/"
    with open_instance(done.home) as instance:
        found = {}
        for asset in ("baselines", "model", "evaluation", "champion"):
            event = instance.get_latest_materialization_event(dg.AssetKey(["tiny", asset]))
            found[asset] = event.asset_materialization.metadata["mlflow"].value
            if asset == "evaluation":
                tables = event.asset_materialization.metadata
    assert list(tables)[:6] == ["summary", "mlflow", "beside", "inputs", "slices", "no_slices"]
    assert tables["inputs"].value.startswith("|") and tables["subsets"].value.startswith("![")
    assert found["model"] == found["evaluation"] == page + told["mlflow_run_id"] + TRAINING_PAGES
    assert found["baselines"].count(page) == 4 and f"[speech]({page}" in found["baselines"]
    assert found["champion"] == f"http://127.0.0.1:5000/#/models/tiny/versions/1{TRAINING_PAGES}"


def test_the_card_of_a_model_says_how_to_load_it(done, tmp_path):
    """Each piece of code in it, in a fresh process, as it stands there but for the folder and the inputs."""
    from training.model_registry import fetch_model
    from training.score import bundle_of

    logged = fetch_model(f"sqlite:///{done.home / 'mlflow.db'}", "tiny", "1")
    bundle = bundle_of(logged)
    card = (bundle / "README.md").read_text()
    told = done.runs[0].answer
    assert card.startswith("---\nlibrary_name: transformers\n") and told["dataset"]["fingerprint"] in card
    assert f"accuracy {told['metrics']['test/accuracy']:.4f}" in card
    ours, network, pyfunc = (block.partition("```")[0] for block in card.split("```python\n")[1:])
    picture = done.path.parent / "photos" / "q00.png"
    asked = '"text": \'Is it bright? (0)\', "image": '
    given = '"text": ..., "image": ..., "speech": ...'
    assert given in ours and given in pyfunc
    opened = f"__import__('pathlib').Path({str(picture)!r}).read_bytes()"
    ours = ours.replace(given, asked + opened).replace("FOLDER", str(bundle))
    pyfunc = pyfunc.replace(given, asked + f"__import__('base64').b64encode({opened}).decode()")
    network = network.replace("FOLDER", str(bundle)) + "print(type(model).__name__, model.config.model_type)"
    said = []
    for code, path in ((ours, ROOT), (ours, logged / "code"), (network, ROOT), (pyfunc, tmp_path)):
        command, env = [sys.executable, "-P", "-c", code], os.environ | {"PYTHONPATH": str(path)}
        process = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert process.returncode == 0, process.stderr
        said.append(process.stdout.strip())
    (answer,) = done.ask("predict", "tiny", "--text", "Is it bright? (0)", "--image", picture)["predictions"]
    assert said[0] == said[1] == str([answer["prediction"]])
    assert said[2] == "FusionModel triptych_fusion"
    assert repr(answer["prediction"]) in said[3] and told["dataset"]["fingerprint"] in said[3]


def test_shorter_training_of_the_baselines_is_said_beside_their_figures(done):
    said = done.runs[0].stderr.splitlines()
    for asset in ("baselines", "evaluation"):
        (line,) = (line for line in said if line.startswith(f"  ✓ {asset}"))
        assert "; the baselines were trained for 1 epochs, the model for 30" in line, line


def test_the_version_says_where_it_comes_from(done):
    told = done.runs[0].answer
    (version,) = done.versions()
    assert version.run_id == told["mlflow_run_id"]
    assert version.tags["triptych.dagster_run_id"] == told["dagster_run_id"]
    assert version.tags["triptych.dataset_fingerprint"] == told["dataset"]["fingerprint"]
    assert done.mlflow.get_model_version_by_alias("tiny", "champion").version == version.version


def test_every_subset_of_the_inputs_is_answered(done, tmp_path):
    given = {
        "text": "Is it bright? (0)",
        "image": done.path.parent / "photos" / "q00.png",
        "speech": done.path.parent / "recordings" / "q00.wav",
    }
    origin = {"model_version": "1", "dataset_fingerprint": done.runs[0].answer["dataset"]["fingerprint"]}
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, MODALITIES)
        writer.writeheader()
        writer.writerows({m: given[m] for m in subset.split("+")} for subset in SUBSETS)
    answers = done.ask("predict", "tiny", "--table", tmp_path / "rows.csv")["predictions"]
    assert len(answers) == len(SUBSETS)
    for answer in answers:
        assert isinstance(answer.pop("prediction"), str) and answer.pop("abstained") is False
        assert 0 <= answer["probability"] <= 1 and answer.pop("best")[0]["probability"] == answer.pop("probability")
        assert answer == origin
    options = [part for m in MODALITIES for part in (f"--{m}", given[m])]
    (alone,) = done.ask("predict", "tiny", *options)["predictions"]
    assert origin.items() <= alone.items()


def test_the_notebook_runs(done, tmp_path, monkeypatch):
    """On this project, which is trained already."""
    notebook = nbformat.read(ROOT / "docs" / "notebook.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code), "it is kept without what it printed"
    environment = {"PROJECT": str(done.path), "PYTHONPATH": str(ROOT), "IPYTHONDIR": str(tmp_path)}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = [out.get("data", {}).get("text/plain", "") for cell in code for out in cell.outputs]
    assert any("version=1, aliases=['challenger', 'champion']" in text for text in said)
    (table,) = (text for text in said if "model_version" in text and "dataset_fingerprint" not in text)
    assert len({line.split(maxsplit=1)[1] for line in table.splitlines()[1:]}) == 1, "files, pictures and arrays"
    (table,) = (text for text in said if "text+image+speech" in text and "prediction" in text)
    assert [line.split()[0] for line in table.splitlines()[1:]] == SUBSETS


@contextlib.contextmanager
def serving(done: Home, port: int) -> Iterator[str]:
    """The page of a running `triptych serve`."""
    command = [sys.executable, "-P", "-m", "orchestration.cli", "serve", str(done.path), "--port", str(port)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=env, cwd=done.home.parent, text=True, stdout=subprocess.PIPE)
    try:
        url = re.search("Try it in a browser: +(.+)", process.stdout.readline() + process.stdout.readline())[1]
        for _ in range(600):
            with contextlib.suppress(requests.ConnectionError):
                if requests.get(f"{url}ping", timeout=60).ok:
                    break
            assert process.poll() is None
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM


@pytest.fixture
def served(done: Home, free_ports: Callable[[int], list[int]]) -> Iterator[str]:
    with serving(done, free_ports(1)[0]) as url:
        yield url


def test_a_person_asks_by_the_page(done, served, browse):
    """It says what `predict` says; what microphone and camera give can be read; what cannot be is said."""
    files = done.path.parent / "photos" / "q00.png", done.path.parent / "recordings" / "q00.wav"
    given = dict(zip(MODALITIES, ("Is it bright? (0)", *map(str, files)), strict=True))
    rows = [{m: given[m] for m in subset.split("+")} for subset in SUBSETS]
    expected = dict(zip(SUBSETS, triptych.open(done.path).model().predict(rows), strict=True))
    page = browse(served)
    page.wait_for_selector(".card")
    assert page.inner_text("h1") == "tiny"

    def ask() -> list[str]:
        page.click("#ask")
        page.wait_for_selector("#ask:enabled")
        return [line.inner_text() for line in page.locator("tr").filter(has=page.locator(".given")).all()]

    page.fill("textarea", given["text"])
    page.set_input_files("#input-image", files[0])
    page.set_input_files("#input-speech", files[1])
    names = {"Text": "text", "Picture": "image", "Recording": "speech"}
    found = {}
    for line in ask():
        subset, answer, chance = re.split(r"\s*\t\s*", line)
        found["+".join(names[name] for name in subset.split(" + "))] = answer, float(chance.rstrip("%"))
    assert found == {
        subset: (answer["prediction"], pytest.approx(100 * answer["probability"], abs=0.06))
        for subset, answer in expected.items()
    }
    assert page.inner_text(".said") == expected[SUBSETS[-1]]["prediction"]
    dataset = done.runs[0].answer["dataset"]["fingerprint"]
    assert page.inner_text("#answer .origin") == f"Version 1, trained on dataset {dataset}"
    page.get_by_role("button", name="Camera").click()
    page.get_by_role("button", name="Take the picture").click()
    page.get_by_text("taken just now").wait_for()
    page.get_by_role("button", name="Record").click()
    page.locator("[data-input=speech] .preview", has_text=re.compile(r"[1-9]\.\d s")).wait_for()
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("recorded just now").wait_for()
    assert len(ask()) == len(SUBSETS)
    page.set_input_files("#input-image", {"name": "cut.png", "mimeType": "image/png", "buffer": b"\x89PNG"})
    assert not ask() and "The model cannot read this.\nimage: " in page.inner_text("#problem")
    assert not browse.errors and {url.split("/")[2] for url in browse.asked if url.startswith("http")} == {
        served.split("/")[2]
    }


def test_a_second_run_makes_nothing(done):
    told = done.ask("check", "tiny")["run"]
    assert (told["work"], told["samples"], told["dataset"]) == ({}, "unchanged", "unchanged")
    assert told["trainings"] == dict.fromkeys(("model", "text", "image", "speech", "concat"), "unchanged")
    first, second = done.runs[0].answer, done.run().answer
    assert second["computed"] == {}
    assert second["items"] == {"seen": 157, "processed": 0, "reused": 155, "quarantined": 2}
    same = ("project", "mlflow_run_id", "model", "dataset", "metrics", "subsets")
    assert {name: second[name] for name in same} == {name: first[name] for name in same}
    assert second["dagster_run_id"] != first["dagster_run_id"]
    assert (len(done.mlflow_runs()), len(done.versions())) == (5, 1)
    assert "already trained" in done.runs[1].stderr
    with open_instance(done.home) as instance:
        runs = instance.get_runs(dg.RunsFilter(job_name="tiny"))
    # Others (the notebook's) may have made nothing in between.
    assert (runs[0].run_id, runs[-1].run_id) == (second["dagster_run_id"], first["dagster_run_id"])
    assert all(run.is_success for run in runs)


def test_another_seed_is_another_version_and_the_gate_says_why(done):
    changed = done.ask("check", "tiny", "--set", "training.seed=1", "--set", "model.abstain_below=0.1")["run"]
    assert set(changed["trainings"].values()) == {"training.seed: 0 -> 1"}
    distilled = "{kind: distillation, teacher: '1', weight: 0.01}"
    rewriting = "training.augmentation={text: {typos: 0.1, delete: 0.1}}"
    forgetting = "{kind: critic, column: speaker, weight: 0.01}"
    told = done.run("training.seed=1", f"training.objectives=[answer, {distilled}, {forgetting}]", rewriting).answer
    assert told["dataset"] == done.runs[0].answer["dataset"], "the data are the same"
    assert told["items"]["processed"] == 0
    assert told["model"]["version"] == 2
    assert (len(done.mlflow_runs()), len(done.versions())) == (10, 2)
    new, old = done.ask("status", "tiny")["models"]
    assert (new["version"], old["version"]) == (2, 1)
    assert "speaker can be told from fused in" in done.runs[-1].stderr
    (reason,) = [reason for reason in new["reasons"] if "the champion" in reason]
    assert "on the same" in reason and "test rows" in reason and "bootstrap" in reason
    better = reason.startswith("better than")
    assert new["aliases"] == (["challenger", "champion"] if better else ["challenger"])
    assert old["aliases"] == ([] if better else ["champion"])
    assert told["model"]["aliases"] == new["aliases"]
    assert reason in done.runs[-1].stderr, "a person sees it, too"
    page = Path(done.ask("report", "tiny")["report"]).read_text()
    assert reason.split(":")[0] in page
    assert page.count("data:image/png;base64,") == 5


def test_answers_of_predict_and_of_the_server_lead_to_what_made_them(done, free_ports):
    done.path.write_text(done.path.read_text() + "answers: {log: true}\n")
    photo = done.path.parent / "photos" / "q01.png"
    (told,) = done.ask("predict", done.path, "--image", photo, "--text", "Is it bright? (1)")["predictions"]
    with serving(done, free_ports(1)[0]) as url:
        asked = {"text": "Is it bright? (1)", "image": base64.b64encode(photo.read_bytes()).decode()}
        response = requests.post(f"{url}invocations", json={"dataframe_records": [asked]}, timeout=60)
        (heard,) = response.json()["predictions"]
    assert told["prediction"] == heard["prediction"] and told["answer_id"] < heard["answer_id"]
    first, second = (done.ask("trace", done.path, answer["answer_id"]) for answer in (told, heard))
    same = ("model", "snapshot", "nearest", "nearest_by")
    assert {name: first[name] for name in same} == {name: second[name] for name in same}
    assert first["answer"]["inputs"] == second["answer"]["inputs"]
    assert first["nearest_by"] == "the model's own x_m" and len(first["nearest"]) == 5
    assert {item["uri"].split("/")[-1] for item in first["items"]} == {"questions.csv", "q01.png"}
    (row,) = done.ask("sql", done.path, "SELECT sample_id FROM dataset WHERE split = 'test' LIMIT 1")["rows"]
    of_test = done.ask("trace", done.path, row["sample_id"], "--version", "1")
    (predicted,) = [one for one in predictions_of(done) if one["sample_id"] == row["sample_id"]]
    assert of_test["answer"]["prediction"] == predicted["prediction"] and not of_test["remarks"]


def predictions_of(done: Home) -> list[dict[str, Any]]:
    """What the first version answered to the test rows with all inputs."""
    content = read_artifact(f"sqlite:///{done.home / 'mlflow.db'}", done.versions()[0].run_id, "predictions.parquet")
    rows = pq.read_table(pa.BufferReader(content)).to_pylist()
    return [row for row in rows if row["subset"] == SUBSETS[-1]]


def test_a_model_is_trained_without_what_was_erased(done):
    take_away(done.path, "q01")
    told = done.ask("gc", done.path, "--erase", "q01", "--purge-artifacts", "--retrain")
    assert told["removed"]["samples"] == 1 and told["removed"]["answers"] == 2
    assert told["proof"]["found"] == []
    assert [model["version"] for model in done.ask("status", done.path)["models"]] == [told["retrained"]]
