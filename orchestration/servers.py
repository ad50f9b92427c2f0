"""The servers a person starts: web UIs of Dagster and MLflow, and the champion over HTTP. On loopback by default."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

CODE = Path(__file__).resolve().parent.parent


def environment(home: Path) -> dict[str, str]:
    """For child processes: where state lies and where the code is, so that no foreign package is imported."""
    path = os.pathsep.join([str(CODE), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"DAGSTER_HOME": str(home), "TRIPTYCH_HOME": str(home), "PYTHONPATH": path}


def ui_commands(home: Path, host: str, port: int, mlflow_port: int, tracking_uri: str) -> list[list[str]]:
    """Dagster's web server and daemon (schedules, sensors, queued runs), and MLflow's UI."""
    workspace = ["-w", str(CODE / "workspace.yaml")]
    return [
        [sys.executable, "-m", "dagster_webserver", *workspace, "-h", host, "-p", str(port)],
        [sys.executable, "-m", "dagster._daemon", "run", *workspace],
        [
            *(sys.executable, "-m", "mlflow", "server", "--backend-store-uri", tracking_uri),
            *("--default-artifact-root", str(home / "artifacts"), "--host", host, "--port", str(mlflow_port)),
        ],
    ]


def run_until_stopped(commands: Sequence[Sequence[str]], env: Mapping[str, str]) -> int:
    """Runs servers side by side until one ends or a person stops them; the others are stopped too.

    Returns:
        The exit code of the one that ended by itself, 0 when a person stopped them.
    """
    servers = [subprocess.Popen(command, env=dict(env), start_new_session=True) for command in commands]
    stopped = False

    def stop(_number: int, _frame: object) -> None:
        nonlocal stopped
        stopped = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        while not stopped and all(server.poll() is None for server in servers):
            time.sleep(0.2)
    finally:
        ended = [server.returncode for server in servers if server.poll() is not None]
        for server in servers:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
        for server in servers:
            try:
                server.wait(timeout=15)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
    return 0 if stopped or not ended else ended[0] or 1
