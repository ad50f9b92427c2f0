"""Runs on the shared instance: a killed one is ended by the next, a selection means what it says."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from filelock import FileLock

from assets import pipeline
from orchestration import processes
from orchestration.definitions import project_definitions
from orchestration.inspection import check
from orchestration.processes import free_dead_runs, wait_quietly, waits_for
from orchestration.project import load
from orchestration.run import open_instance, run_job, select
from training.mlflow_store import artifact_location, check_artifacts, client, kept_elsewhere


def test_a_killed_run_is_ended_and_gives_back_its_slot(tiny, home):
    command = [sys.executable, "-m", "orchestration.cli", "run", str(tiny), "--select", "+dataset"]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": os.getcwd()}, stderr=subprocess.DEVNULL)
    with open_instance(home) as instance:
        deadline = time.monotonic() + 60
        while not (runs := instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        (run,) = runs
        instance.event_log_storage.set_concurrency_slots("gpu", 1)
        instance.event_log_storage.claim_concurrency_slot("gpu", run.run_id, "model")
        assert free_dead_runs(instance) == [run.run_id]
        assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.FAILURE
        assert instance.event_log_storage.get_concurrency_info("gpu").active_slot_count == 0
        assert free_dead_runs(instance) == []


def test_what_is_not_installed_is_told_before_anything_runs(tiny, home, monkeypatch):
    for module in ("ray", "boto3"):
        monkeypatch.setitem(sys.modules, module, None)  # as where it is not
    project = load(tiny, ["engine=ray", "artifacts=s3://bucket/files"])
    with open_instance(home) as instance, pytest.raises(ValueError, match=r"not installed: .*'triptych\[ray\]'"):
        run_job(project, instance)
    assert pipeline.open_lake(project).version("manifest") is None
    with pytest.raises(ValueError, match=r"s3://bucket/files, .* not installed: pip install 'triptych\[s3\]'"):
        check_artifacts(project.artifacts_uri)


def test_what_the_daemon_starts_tells_it_in_the_first_step(tiny, home, monkeypatch):
    monkeypatch.setitem(sys.modules, "boto3", None)
    tiny.write_text(tiny.read_text() + "artifacts: s3://bucket/files\n")
    job = project_definitions(load(tiny)).resolve_job_def("tiny")
    with open_instance(home) as instance:
        result = job.execute_in_process(instance=instance, raise_on_error=False)
        (failed,) = (event for event in result.all_events if event.is_step_failure)
        assert failed.step_key == "tiny__manifest"
        assert "not installed: pip install 'triptych[s3]'" in str(failed.step_failure_data.error.cause)
        data = [dg.AssetKey(["tiny", "manifest"])]
        assert job.execute_in_process(instance=instance, asset_selection=data).success, "which needs no MLflow"


def test_artifacts_that_go_elsewhere_than_is_said_are_told(tiny, home, tmp_path):
    project = load(tiny, [f"artifacts={tmp_path}/new"])
    uri, place = project.mlflow_uri, project.artifacts_uri
    assert kept_elsewhere(uri, "tiny", place) is None, "there is no experiment yet"
    client(uri).create_experiment("tiny", artifact_location=artifact_location(str(tmp_path / "old")))
    (told,) = (finding.message for finding in check(project).findings if finding.code == "artifacts_elsewhere")
    assert told == kept_elsewhere(uri, "tiny", place)
    assert re.search(
        rf"artifacts is {place}, and MLflow goes on .* {tmp_path.as_uri()}/old, .*take `artifacts` back", told
    )
    assert kept_elsewhere(uri, "tiny", str(tmp_path / "old")) is None


def test_settings_of_the_instance_are_whole_or_not_there(home, monkeypatch):
    def die(path, data):
        path.touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(Path, "write_bytes", die)
        with pytest.raises(KeyboardInterrupt):
            open_instance(home)
    assert not (home / "dagster.yaml").exists()
    (home / "dagster.yaml").touch()  # as a kill left it once
    with open_instance(home) as instance:
        assert instance.get_concurrency_config().pool_config.default_pool_limit == 1
        assert instance.get_concurrency_config().run_queue_config.max_user_code_failure_retries == 10


OLD = """telemetry:
  enabled: false
concurrency:
  pools:
    default_limit: 2 # two GPUs
run_monitoring:
  enabled: true"""


@pytest.mark.parametrize(
    ("before", "retries"),
    [
        (OLD, 10),
        (OLD + "\n", 10),
        (OLD + "\nrun_queue: {max_user_code_failure_retries: 3}\n", 3),
        (OLD + "\nrun_coordinator: {module: dagster.core.run_coordinator, class: DefaultRunCoordinator}\n", None),
        ("{concurrency: {pools: {default_limit: 2}}}\n", 0),
    ],
)
def test_a_home_from_before_gets_the_retries_unless_its_settings_say_otherwise(home, before, retries):
    home.mkdir()
    for _ in range(2):
        if not (home / "dagster.yaml").exists():
            (home / "dagster.yaml").write_text(before)
        with open_instance(home) as instance:
            config = instance.get_concurrency_config()
            assert config.pool_config.default_pool_limit == 2
            queue = config.run_queue_config
            assert (queue and queue.max_user_code_failure_retries) == retries
            assert instance.run_retries_enabled == (not before.startswith("{"))
    after = (home / "dagster.yaml").read_text()
    assert after.startswith(before) and after.count("run_queue:") == (before.count("run_queue:") or retries == 10)
    assert after.count("run_retries:") == (not before.startswith("{"))


STATES = ["NOT_STARTED", "STARTING", "STARTED", "CANCELING"]
HOLDER = """
import sys, time
from pathlib import Path
from orchestration.processes import hold
from orchestration.run import open_instance
with open_instance(Path(sys.argv[1])) as instance:
    for run_id in sys.argv[2:]:
        hold(instance, run_id)
    print("held", flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def process_of(home, *runs):
    """A process that these runs are in."""
    command = [sys.executable, "-c", HOLDER, str(home), *runs]
    env = os.environ | {"PYTHONPATH": os.getcwd()}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def add_run(instance, run_id, status):
    repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("triptych"), "__repository__")
    origin = RemoteJobOrigin(repository, "tiny")  # Dagster asks for it where a run is queued
    state = dg.DagsterRunStatus[status]
    return instance.add_run(dg.DagsterRun(job_name="tiny", run_id=run_id, status=state, remote_job_origin=origin))


def test_a_dead_run_is_ended_whatever_it_was_at(home):
    with open_instance(home) as instance:
        for state in STATES:
            add_run(instance, state, state)
        with process_of(home, *STATES) as process:
            assert free_dead_runs(instance) == []
            process.kill()  # its host name, which a container changes at each start, plays no part
            process.wait()
            assert free_dead_runs(instance) == sorted(STATES)
        assert {run.status for run in instance.get_runs()} == {dg.DagsterRunStatus.FAILURE}
        assert free_dead_runs(instance) == [] and not list((home / "running").iterdir())


def test_a_run_that_no_process_took_up_is_ended_after_a_while(home, monkeypatch):
    with open_instance(home) as instance:
        for state in [*STATES, "QUEUED"]:
            add_run(instance, state, state)
        assert free_dead_runs(instance) == [], "a process may be starting"
        monkeypatch.setattr(processes, "_START_SECONDS", -1)
        # One that has started without a lock here is another machine's; a queued one waits for the daemon.
        assert sorted(free_dead_runs(instance)) == ["NOT_STARTED", "STARTING"]


def test_a_run_that_waits_says_for_whom_and_goes_on_when_that_one_dies(home, capsys):
    wait_quietly()
    with open_instance(home) as instance, process_of(home, "holder") as process:
        holder, waiting = (add_run(instance, name, "STARTED") for name in ("holder", "waiting"))
        with InstanceConcurrencyContext(instance, holder) as pool:
            assert pool.claim("gpu", "model")
        with InstanceConcurrencyContext(instance, waiting) as pool:
            assert not pool.claim("gpu", "model")
            for _ in range(2):
                assert pool.interval_to_next_pending_claim_check() > 0
            said = "waiting for the pool gpu, which run holder of tiny holds"
            assert capsys.readouterr().err.count(said) == 1
            assert said in [entry.dagster_event.message for entry in instance.all_logs("waiting")]
            process.kill()
            process.wait()
            pool.interval_to_next_pending_claim_check()
            assert instance.get_run_by_id("holder").status == dg.DagsterRunStatus.FAILURE
            assert waits_for(instance, "waiting") is None


@pytest.mark.slow
def test_a_second_run_of_a_project_waits_for_the_first(tiny, home):
    project = load(tiny)
    lake, place = pipeline.open_lake(project), project.folder / "run.lock"
    place.parent.mkdir(parents=True)
    command = [sys.executable, "-m", "orchestration.cli", "run", str(tiny), "--select", "manifest"]
    env = os.environ | {"PYTHONPATH": os.getcwd()}
    with FileLock(place) as first:
        place.write_text("0123456789")
        second = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
        assert any("run 01234567 of tiny is at work: this one waits" in line for line in second.stderr)
        time.sleep(1)
        assert second.poll() is None and lake.version("manifest") is None
        first.release()
        assert second.wait(60) == 0 and lake.version("manifest") == 0
        second.stderr.close()
    with open_instance(home) as instance:
        assert place.read_text() == instance.get_runs()[0].run_id
        run_job(project, instance, "manifest")
        run_job(project, instance, "manifest")  # the lock is let go, too, where the process goes on


def test_a_training_that_died_is_ended_in_mlflow_by_whatever_runs_next(tiny, home):
    project = load(tiny)
    store = client(project.mlflow_uri)
    tags = {"triptych.training_fingerprint": "f00d"}
    left = store.create_run(store.create_experiment(project.name), tags=tags).info.run_id
    checkpoints = home / "projects" / "tiny" / "checkpoints"
    (checkpoints / "f00d").mkdir(parents=True)
    (checkpoints / "f00d.lock").touch()
    with open_instance(home) as instance:
        run_job(project, instance, "manifest")
    assert store.get_run(left).info.status == "KILLED"


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ("samples", {"samples"}),
        ("clean_image", {"clean_image", "image_features"}),
        ("evaluation+", {"evaluation", "champion"}),
        ("+clean_text", {"manifest", "clean_text", "text_features"}),
        ("manifest, dataset", {"manifest", "dataset"}),
    ],
)
def test_a_selection(tiny, names, chosen):
    project = load(tiny)
    job = project_definitions(project).resolve_job_def(project.name)
    assert {key.path[-1] for key in select(job, project.name, names)} == chosen
    assert {tuple(key.path[:-1]) for key in select(job, project.name, names)} == {(project.name,)}
