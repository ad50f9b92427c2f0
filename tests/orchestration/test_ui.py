"""The web UI as a person uses it: the real `triptych ui` over GraphQL, beside runs of the command line."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from orchestration.processes import free_dead_runs
from orchestration.run import open_instance

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
LOCATION = {"repositoryLocationName": "triptych", "repositoryName": "__repository__"}
DATA = [
    *("manifest", "clean_text", "text_features", "clean_image", "image_features", "clean_speech", "speech_features"),
    *("samples", "dataset"),
]
DONE = {"SUCCESS", "FAILURE", "CANCELED"}

LAUNCH = """
mutation ($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
    ... on RunConfigValidationInvalid { errors { message } }
  }
}"""
RUNS = """
query ($job: String!, $tags: [ExecutionTag!]) {
  runsOrError(filter: {pipelineName: $job, tags: $tags}) {
    ... on Runs {
      results {
        runId status startTime
        tags { key value }
        stepStats { stepKey status startTime endTime }
      }
    }
  }
}"""
CHECKS = """
query ($key: AssetKeyInput!) {
  assetNodeOrError(assetKey: $key) {
    ... on AssetNode {
      assetChecksOrError {
        ... on AssetChecks {
          checks { name blocking executionForLatestMaterialization { status runId evaluation { success } } }
        }
      }
    }
  }
}"""
SCHEDULE = """
query ($selector: ScheduleSelector!) {
  scheduleOrError(scheduleSelector: $selector) {
    ... on Schedule { scheduleState { id status ticks { status runIds error { message } } } }
  }
}"""
STOP = "mutation ($id: String) { stopRunningSchedule(id: $id) { __typename } }"
SENSOR = """
mutation ($selector: SensorSelector!, $cursor: String) {
  sensorDryRun(selectorData: $selector, cursor: $cursor) {
    ... on DryRunInstigationTick { evaluationResult { cursor skipReason error { message } runRequests { runKey } } }
  }
}"""


class Ui:
    """`triptych ui` in a process of its own, and what can be asked of it."""

    def __init__(self, home: Path, project: Path) -> None:
        self.home, self.project = home, project
        self.env = os.environ | {"TRIPTYCH_HOME": str(home), "PYTHONPATH": str(ROOT)}
        self.env.pop("MLFLOW_TRACKING_URI", None)
        self.port, self.mlflow_port = free_port(), free_port()
        self.told: dict[str, Any] = {}
        self.stopped = False

    def triptych(self, *arguments: str) -> subprocess.Popen[str]:
        # From another folder, without PATH's triptych: what is tested is this checkout.
        command = [sys.executable, "-P", "-m", "orchestration.cli", *arguments]
        return subprocess.Popen(command, cwd=self.home.parent, env=self.env, text=True, stdout=subprocess.PIPE)

    def run(self, *arguments: str) -> dict[str, Any]:
        process = self.triptych("run", str(self.project), "--json", *arguments)
        stdout, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        return json.loads(stdout.splitlines()[-1])

    def ask(self, query: str, **variables: Any) -> Any:
        """The first field of a GraphQL answer."""
        url = f"http://127.0.0.1:{self.port}/graphql"
        answer = requests.post(url, json={"query": query, "variables": variables}, timeout=60).json()
        assert "errors" not in answer, answer
        return next(iter(answer["data"].values()))

    def launch(self, assets: Sequence[str], run_config: dict[str, Any] | None = None) -> str:
        """What the launchpad sends; returns the id of the run."""
        selector = {**LOCATION, "jobName": "tiny", "assetSelection": [{"path": ["tiny", name]} for name in assets]}
        params = {"selector": selector, "runConfigData": json.dumps(run_config or {}), "mode": "default"}
        launched = self.ask(LAUNCH, params=params)
        assert launched["__typename"] == "LaunchRunSuccess", launched
        return launched["run"]["runId"]

    def launch_with(self, assets: Sequence[str], *overrides: str) -> str:
        return self.launch(assets, {"resources": {"tiny_project": {"config": {"overrides": list(overrides)}}}})

    def runs(self) -> dict[str, dict[str, Any]]:
        """Those that the page of the job lists, by id; it asks for the code location, too."""
        tags = [{"key": ".dagster/repository", "value": "__repository__@triptych"}]
        return {run["runId"]: run for run in self.ask(RUNS, job="tiny", tags=tags)["results"]}

    def follow(self, run_id: str, timeout: float = 240) -> dict[str, Any]:
        """The run when it is over."""
        return wait_for(lambda: (run := self.runs()[run_id])["status"] in DONE and run, f"run {run_id}", timeout)

    def checks(self, asset: str) -> dict[str, dict[str, Any]]:
        found = self.ask(CHECKS, key={"path": ["tiny", asset]})["assetChecksOrError"]["checks"]
        return {check["name"]: check for check in found}

    def schedule(self) -> dict[str, Any]:
        return self.ask(SCHEDULE, selector={**LOCATION, "scheduleName": "tiny_schedule"})["scheduleState"]

    def look(self, cursor: str | None = None) -> dict[str, Any]:
        """What the sensor says at its next look."""
        selector = {**LOCATION, "sensorName": "tiny_files"}
        found = self.ask(SENSOR, selector=selector, cursor=cursor)["evaluationResult"]
        assert found["error"] is None
        return found

    def start(self) -> None:
        self.process = self.triptych("ui", "--port", str(self.port), "--mlflow-port", str(self.mlflow_port))
        wait_for(lambda: answers(f"http://127.0.0.1:{self.port}/server_info"), "Dagster's web server", 120)
        wait_for(lambda: answers(f"http://127.0.0.1:{self.mlflow_port}/health"), "MLflow's server", 120)

    def stop(self) -> None:
        """As Ctrl-C does; no process is left."""
        if self.stopped:
            return
        self.stopped = True
        everyone = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGINT)
        try:
            assert self.process.wait(timeout=60) == 128 + signal.SIGINT
        finally:
            self.process.kill()
            left = psutil.wait_procs(everyone, timeout=10)[1]
            for orphan in left:
                orphan.kill()
        assert not left, "servers outlived `triptych ui`"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_for(asked: Callable[[], Any], what: str, timeout: float) -> Any:
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        if answer := asked():
            return answer
        time.sleep(0.5)
    raise AssertionError(f"{what}: not within {timeout} s")


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.ConnectionError:
        return False


def command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory, make_project: Callable[..., Path]) -> Iterator[Ui]:
    """Started after a run of the command line; at its end no process is left."""
    folder = tmp_path_factory.mktemp("ui")
    found = Ui(folder / "home", make_project(folder / "project"))
    found.told = found.run("--select", "+dataset")
    try:
        found.start()
        yield found
    finally:
        found.stop()


# The tests follow one another on the same servers.


def test_the_project_is_there_without_a_reload(ui):
    location = ui.ask(
        "{ workspaceOrError { ... on Workspace { locationEntries { name locationOrLoadError { __typename "
        "... on RepositoryLocation { repositories { jobs { name } schedules { name } sensors { name } } } } } } } }"
    )["locationEntries"]
    assert [entry["name"] for entry in location] == ["triptych"]
    (repository,) = location[0]["locationOrLoadError"]["repositories"]
    assert "tiny" in {job["name"] for job in repository["jobs"]}
    assert repository["schedules"] == [{"name": "tiny_schedule"}]
    assert repository["sensors"] == [{"name": "tiny_files"}]


def test_a_run_of_the_command_line_stands_under_the_job(ui):
    (run,) = ui.runs().values()
    assert run["runId"] == ui.told["dagster_run_id"]
    assert run["status"] == "SUCCESS"


def test_a_launch_without_any_settings_succeeds_and_its_checks_are_read(ui):
    run_id = ui.launch(DATA)
    assert ui.follow(run_id)["status"] == "SUCCESS"
    assert set(ui.runs()) == {run_id, ui.told["dagster_run_id"]}
    for asset, names in (
        ("manifest", {"every_item_listed", "manifest_schema"}),
        ("samples", {"samples_schema", "no_item_lost", "no_leakage", "one_label_each"}),
        ("dataset", {"dataset_schema", "null_rates"}),
    ):
        checks = ui.checks(asset)
        assert set(checks) == names
        for name, check in checks.items():
            done = check["executionForLatestMaterialization"]
            assert (done["status"], done["runId"]) == ("SUCCEEDED", run_id), name


def test_a_blocking_check_that_fails_stops_the_run(ui):
    run_id = ui.launch_with([*DATA, "model"], "align.max_missing=0.1")
    run = ui.follow(run_id)
    assert run["status"] == "FAILURE"
    check = ui.checks("dataset")["null_rates"]
    assert check["blocking"]
    assert check["executionForLatestMaterialization"]["status"] == "FAILED"
    assert check["executionForLatestMaterialization"]["runId"] == run_id
    steps = {step["stepKey"]: step["status"] for step in run["stepStats"]}
    assert steps["tiny__dataset"] == "SUCCESS"
    assert steps.get("tiny__training") in (None, "SKIPPED"), "nothing trains on data that failed"


@pytest.mark.soak  # depends on the machine's speed; `make soak`
def test_two_trainings_at_once_take_turns_on_the_gpu(ui):
    assert ui.follow(ui.launch(DATA))["status"] == "SUCCESS"
    ids = [ui.launch_with(["model"], f"training.seed={seed}") for seed in (1, 2)]
    runs = [ui.follow(run_id) for run_id in ids]
    assert [run["status"] for run in runs] == ["SUCCESS", "SUCCESS"]
    first, second = sorted(
        (next(step for step in run["stepStats"] if step["stepKey"] == "tiny__training") for run in runs),
        key=lambda step: step["startTime"],
    )
    assert max(run["startTime"] for run in runs) < first["endTime"], "both runs were under way"
    assert first["endTime"] <= second["startTime"], "but one trained at a time"


def test_the_sensor_asks_for_a_run_when_a_file_has_appeared(ui, make_png):
    first = ui.look()
    assert first["skipReason"].startswith("first look")
    make_png(ui.project.parent / "photos" / "q03.png", 3)
    second = ui.look(first["cursor"])
    assert "still" in second["skipReason"]
    third = ui.look(second["cursor"])
    assert third["skipReason"] is None
    assert len(third["runRequests"]) == 1


def test_the_schedule_starts_a_run_under_the_job(ui):
    assert ui.schedule()["status"] == "RUNNING"
    before = set(ui.runs())
    # The file says so from now on, and nobody tells the servers.
    edit(ui.project, '"0 3 * * *"', '"* * * * *"')
    (run_id, *_) = wait_for(lambda: set(ui.runs()) - before, "a run of the schedule", 180)
    ui.ask(STOP, id=ui.schedule()["id"])
    run = ui.runs()[run_id]
    assert {"key": "dagster/schedule_name", "value": "tiny_schedule"} in run["tags"]
    ticks = ui.schedule()["ticks"]  # of which the minute may have begun another one
    assert {"SUCCESS"} <= {tick["status"] for tick in ticks} <= {"SUCCESS", "STARTED"}, ticks


@pytest.mark.soak  # depends on the machine's speed; `make soak`
def test_a_run_that_is_stopped_with_the_servers_leaves_nothing(ui):
    def trainers() -> list[psutil.Process]:
        return [child for child in workers() if "training.job" in command_line(child)]

    def workers() -> list[psutil.Process]:
        return psutil.Process(ui.process.pid).children(recursive=True)

    run_id = next(iter(ui.runs()))  # of the schedule
    trainer, *_ = wait_for(trainers, "a training of the scheduled run", 120)
    family = workers()
    assert trainer in family
    ui.stop()
    assert not psutil.wait_procs(family, timeout=15)[1]
    with open_instance(ui.home) as instance:
        free_dead_runs(instance)
        assert instance.get_run_by_id(run_id).is_finished
        assert not instance.event_log_storage.get_concurrency_info("gpu").active_slot_count
