"""Runs that are in a real MLflow store (SQLite): which of them are over."""

from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from training import runs
from training.mlflow_store import client
from training.spec import JobSpec, RunSpec

MakeSpec = Callable[..., tuple[JobSpec, RunSpec]]


def test_runs_of_dead_processes_are_ended_and_others_left_alone(make_spec: MakeSpec) -> None:
    spec, _ = make_spec("dead")
    store, checkpoints = client(spec.tracking_uri), Path(spec.checkpoints)
    experiment = store.create_experiment(spec.project)
    # The host's name says nothing: a container has another at each start.
    tags = {"triptych.process": "another-machine 1@1.00"}
    ids = {
        name: store.create_run(experiment, tags=tags | {"triptych.training_fingerprint": name}).info.run_id
        for name in ("dead", "elsewhere", "alive")
    }
    checkpoints.mkdir(exist_ok=True)
    (checkpoints / "dead.lock").touch()
    with FileLock(checkpoints / "alive.lock"):
        assert runs.end_dead_runs(spec.tracking_uri, spec.project, checkpoints) == [ids["dead"]]
    states = {name: store.get_run(run_id).info.status for name, run_id in ids.items()}
    assert states == {"dead": "KILLED", "elsewhere": "RUNNING", "alive": "RUNNING"}
    assert runs.end_dead_runs(spec.tracking_uri, "no such project", checkpoints) == []
