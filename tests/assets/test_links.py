"""Dagster and MLflow lead to each other, wherever their web UIs are."""

from dataclasses import replace

from assets import links
from orchestration.project import load
from training.mlflow_store import client
from training.runs import TRAINING_PAGES


def test_addresses_are_those_of_the_last_ui(tiny):
    project = load(tiny)
    assert links.dagster_run(project, "abc") == "http://127.0.0.1:3000/runs/abc"
    assert links.mlflow_version(project, "2") == f"http://127.0.0.1:5000/#/models/tiny/versions/2{TRAINING_PAGES}"
    links.write_addresses(project.home, "http://0.0.0.0:3001", "http://127.0.0.1:5005")
    assert links.dagster_run(project, "abc") == "http://127.0.0.1:3001/runs/abc"
    assert links.mlflow_version(project, "2") == f"http://127.0.0.1:5005/#/models/tiny/versions/2{TRAINING_PAGES}"


def test_a_run_is_found_in_its_experiment(tiny):
    project = load(tiny)
    store = client(project.mlflow_uri)
    experiment = store.create_experiment("tiny")
    run_id = store.create_run(experiment).info.run_id
    page = f"http://127.0.0.1:5000/#/experiments/{experiment}/runs/{run_id}{TRAINING_PAGES}"
    assert links.mlflow_run(project, run_id) == page


def test_a_tracking_server_is_linked_without_its_password(tiny):
    project = replace(load(tiny), tracking_uri="https://me:secret@mlflow.example:8443/base/")
    assert (
        links.mlflow_version(project, "2")
        == f"https://mlflow.example:8443/base/#/models/tiny/versions/2{TRAINING_PAGES}"
    )
    links.write_addresses(project.home, "http://127.0.0.1:3000", "https://me:secret@mlflow.example")
    assert "secret" not in (project.home / "addresses.json").read_text()
