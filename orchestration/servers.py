"""The servers a person starts: web UIs of Dagster and MLflow, and the champion over HTTP. On loopback by default."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from orchestration.server_output import MaskedOutput
from orchestration.signals import NAMES
from training import children
from training.files import write_text
from training.guard import end_family, guarded
from training.mlflow_store import make_database

LOCATION = "triptych"  # the code location; `workspace.yaml` gives the same name
_QUIET = ("--log-level", "warning")
_STOP_SECONDS = 15  # a server that was asked to stop has this long


def environment(home: Path) -> dict[str, str]:
    """For the servers: where state lies, and no jobs of MLflow's."""
    # MLflow's server would start seven processes for jobs of language model services, which nothing here uses.
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return quiet | children.environment(DAGSTER_HOME=str(home), TRIPTYCH_HOME=str(home))


def run_ui(home: Path, host: str, port: int, mlflow_port: int, tracking_uri: str) -> int:
    """Dagster's web server and daemon (schedules, sensors, queued runs) over one code server, and MLflow's UI.

    Where MLflow's tracking server is elsewhere (`tracking_uri` is http), its own UI is the one to look at.
    The code server reloads when a project is registered or its file changes, so both see it without a restart.

    Returns:
        As `run_until_stopped`.

    Raises:
        OSError: a port is taken.
    """
    check_free(host, port)
    write_text(home / ".nux" / "nux.yaml", "seen: 1\n")  # else Dagster's UI first asks for an e-mail address
    code_port = _free_port()
    workspace = home / "workspace.yaml"
    location = {"host": "localhost", "port": code_port, "location_name": LOCATION}
    write_text(workspace, yaml.safe_dump({"load_from": [{"grpc_server": location}]}))
    faces = [
        [sys.executable, "-m", "orchestration.web_server", "-w", str(workspace), "-h", host, "-p", str(port)],
        [sys.executable, "-m", "dagster._daemon", "run", "-w", str(workspace), *_QUIET],
    ]
    if not tracking_uri.startswith("http"):
        check_free(host, mlflow_port, "--mlflow-port")
        make_database(tracking_uri)
        store = ["--backend-store-uri", tracking_uri, "--default-artifact-root", str(home / "artifacts")]
        address = ["--host", host, "--port", str(mlflow_port), "--workers", "1"]
        faces.append([sys.executable, "-m", "mlflow", "server", *store, *address])
    code_server = _CodeServer(home, code_port)
    return run_until_stopped([code_server.command], environment(home), code_server.follow, faces)


class _CodeServer:
    """The server of the registered projects' definitions; it is made to load them anew when they change."""

    def __init__(self, home: Path, port: int) -> None:
        from dagster._grpc.client import DagsterGrpcClient

        self.home = home
        self.command = [
            *(sys.executable, "-m", "dagster", "code-server", "start", "-m", "orchestration.definitions"),
            *("-d", str(children.CODE), "-p", str(port), "--location-name", LOCATION, *_QUIET),
            "--use-python-environment-entry-point",
        ]
        self.client = DagsterGrpcClient(port=port)
        self.loaded: object = None  # of what the server has loaded; None until it answers

    def follow(self) -> bool:
        """Called again and again; whether the server answers."""
        from dagster._core.errors import DagsterUserCodeUnreachableError

        present = self._present()
        if present == self.loaded:
            return True
        try:
            if self.loaded is None:
                self.client.ping("")
            else:
                self.client.reload_code(timeout=120)
        except DagsterUserCodeUnreachableError:
            return self.loaded is not None
        self.loaded = present
        return True

    def _present(self) -> list[tuple[str, int]]:
        from orchestration.registration import registered

        files = registered(self.home).values()
        return [(str(file), file.stat().st_mtime_ns if file.exists() else 0) for file in files]


def serve_command(model: Path, host: str, port: int, *options: str) -> tuple[list[str], dict[str, str]]:
    """Command and environment of the server (`orchestration.serving`) for the folder of a fetched model.

    The model's own code comes first in the path: what is imported as `training` is that, and the server imports none.
    """
    env = children.environment(model / "code")
    env["PYTHONPATH"] += os.pathsep + str(children.CODE)
    env["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # of the loading of weights
    argv = [sys.executable, "-P", "-B", "-m", "orchestration.serving", str(model), "--host", host, "--port", str(port)]
    return [*argv, *options], env


def run_until_stopped(
    commands: Sequence[Sequence[str]],
    env: Mapping[str, str],
    ready: Callable[[], bool] = lambda: True,
    then: Sequence[Sequence[str]] = (),
    left: str = ".",
) -> int:
    """Runs servers side by side until one ends or a person stops them; the others are stopped too.

    Args:
        commands: to start at once.
        ready: asked all the time; the first time it says yes, `then` is started, too.
        left: what is said after "Stopped by Ctrl-C".

    Returns:
        The exit code of the one that ended by itself; 130 or 143 when a signal stopped them.
    """
    with _stopped_by_signal() as stopped, _Group(env) as group:
        group.start(commands)
        while not stopped() and (ended := group.ended()) is None:
            if ready() and then:
                group.start(then)
                then = ()
            time.sleep(0.2)
        number = stopped()
    if number:
        print(f"Stopped by {NAMES[number]}{left}", file=sys.stderr)
        return 128 + number
    assert ended is not None
    server = " ".join(str(part) for part in ended.args[5:8])  # type: ignore[index]  # after the guard's own
    print(f"{server} ended with exit code {ended.returncode}; the other servers stopped, too", file=sys.stderr)
    return ended.returncode or 1


@contextlib.contextmanager
def _stopped_by_signal() -> Iterator[Callable[[], signal.Signals | None]]:
    """Which of SIGINT and SIGTERM has come first, if one has; their handlers are put back at the end."""
    received: list[signal.Signals] = []
    before = [signal.signal(number, lambda number, _frame: received.append(signal.Signals(number))) for number in NAMES]
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in zip(NAMES, before, strict=True):
            signal.signal(number, handler)


class _Group:
    """Servers, each with its children in a process group of its own, so that all end; also with this process. What
    they print is passed on with its passwords masked."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = dict(env)
        self.servers: list[subprocess.Popen[bytes]] = []
        self.outputs: list[MaskedOutput] = []

    def __enter__(self) -> "_Group":
        return self

    def start(self, commands: Sequence[Sequence[str]]) -> None:
        for command in commands:
            output = MaskedOutput()
            out, err = output.open()
            server = subprocess.Popen(guarded(command), env=self.env, stdout=out, stderr=err, start_new_session=True)
            output.started()
            self.servers.append(server)
            self.outputs.append(output)

    def ended(self) -> subprocess.Popen[bytes] | None:
        """A server that has ended; None while all run."""
        return next((server for server in self.servers if server.poll() is not None), None)

    def __exit__(self, *_: object) -> None:
        self._signal(signal.SIGTERM)
        until = time.monotonic() + _STOP_SECONDS
        for server in self.servers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(timeout=max(0.1, until - time.monotonic()))
        for server in self.servers:
            end_family(server.pid)  # one that hangs
            server.wait()
        for output in self.outputs:
            output.wait()

    def _signal(self, number: int) -> None:
        for server in self.servers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, number)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])


def check_free(host: str, port: int, option: str = "--port") -> None:
    """Raises OSError where another server has the port."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    with socket.socket(family) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
        except OSError as error:
            raise OSError(f"port {port} of {host}: {error.strerror}; choose another with {option}") from None
