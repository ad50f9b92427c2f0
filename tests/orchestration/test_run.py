"""Runs on the shared instance: a killed one is ended by the next, a selection means what it says."""

import os
import signal
import subprocess
import sys
import time

import dagster as dg
import psutil
import pytest

from orchestration.definitions import project_definitions
from orchestration.processes import alive, free_dead_runs
from orchestration.project import load
from orchestration.run import open_instance, select


def test_a_process_is_alive_only_as_itself():
    me = psutil.Process()
    assert alive(me.pid, me.create_time())
    assert not alive(me.pid, me.create_time() - 60), "a recycled process id is another process"


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
