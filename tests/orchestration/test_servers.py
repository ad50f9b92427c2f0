"""The servers of `triptych ui`: whom they answer, and that they end with it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import requests

from orchestration.web_server import ALLOWED, OnlyOurHosts

ROOT = Path(__file__).parents[2]
ProcessesOf = Callable[[Path], list[psutil.Process]]


def wait_for(asked: Callable[[], object], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not asked():
        assert time.monotonic() < until
        time.sleep(0.2)


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.ConnectionError:
        return False


@pytest.fixture
def ui(
    home: Path, tiny: Path, free_ports: Callable[[int], list[int]], processes_of: ProcessesOf
) -> Iterator[tuple[subprocess.Popen, int]]:
    """A running `triptych ui` that knows a project, and Dagster's port."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-m", "orchestration.cli"]
    subprocess.run([*command, "run", str(tiny), "--select", "manifest"], env=env, check=True, timeout=120)
    port, mlflow_port = free_ports(2)
    started = subprocess.Popen([*command, "ui", "--port", str(port), "--mlflow-port", str(mlflow_port)], env=env)
    try:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/server_info"), 120)
        wait_for(lambda: answers(f"http://127.0.0.1:{mlflow_port}/health"), 120)
        yield started, port
    finally:
        started.kill()
        started.wait()
        for left in processes_of(home):
            left.kill()


@pytest.mark.slow
def test_a_killed_ui_leaves_no_server_and_foreign_hosts_get_no_answer(ui, home, processes_of):
    started, port = ui
    url = f"http://127.0.0.1:{port}"
    for host, status in (("evil.example.org", 403), (f"evil.example.org:{port}", 403), ("", 403), ("localhost", 200)):
        assert requests.get(f"{url}/server_info", headers={"Host": host}, timeout=5).status_code == status, host
    query = {"query": "{ version }"}
    assert (
        requests.post(f"{url}/graphql", json=query, headers={"Host": "evil.example.org"}, timeout=5).status_code == 403
    )
    assert requests.post(f"{url}/graphql", json=query, timeout=5).json()["data"]["version"]
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    upgrade |= {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Protocol": "graphql-ws"}
    refused = requests.get(f"{url}/graphql", headers=upgrade | {"Host": "evil.example.org"}, timeout=5)
    assert refused.status_code == 403
    assert len(processes_of(home)) > 5  # web server, daemon, code server, MLflow, their children and guards
    started.kill()
    wait_for(lambda: not processes_of(home), 5)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_ui_says_so_and_leaves_nothing(ui, home, processes_of, number):
    started, _ = ui
    started.send_signal(number)
    assert started.wait(30) == 128 + number
    assert not processes_of(home)


@pytest.mark.parametrize(
    ("host", "known"),
    [
        *[(host, True) for host in ("localhost", "LOCALHOST:3000", "127.0.0.1:3000", "[::1]:3000", "192.168.0.7")],
        *[(host, True) for host in ("ui.example.org", "a.lab.local:80")],
        *[
            (host, False)
            for host in ("", "evil.com", "127.0.0.1.evil.com", "localhost.evil.com:3000", "localhost:x", "[evil]")
        ],
    ],
)
def test_which_hosts_are_known(monkeypatch, host, known):
    monkeypatch.setenv(ALLOWED, "ui.example.org, *.lab.local")
    assert OnlyOurHosts(None).knows(host.lower()) == known
