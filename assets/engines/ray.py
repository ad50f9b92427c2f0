"""The nodes of a Ray cluster, or of one on this machine that is started for a step and stopped after it.

Plain tasks of Ray in a window of our own, not Ray Data, which was tried beside it (2.60, 60 batches of 1 MB, two nodes,
one of them killed). Both gave every row, in order. Ray Data wants all input before it begins, and works ahead as far as
the object store lasts, however slow who takes the results: the first came after 38 s, the last after 50; tasks gave
them after seconds and 34, with 8 batches drawn at most when 5 were taken. What a dead node was at, or had made and not
given away, Ray does again from the batch, which this process keeps (lineage reconstruction); where this process dies,
the next run goes on from what is in the lake.

Nodes get the code of this process: ours, and the modules of users' own kinds. Credentials they have of their own.
"""

import functools
import importlib.util
import os
import pickle
import pickletools
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from assets.engines.base import Batch, Engine, Result, WorkerOptions, cores
from training.children import CODE, environment
from training.guard import end_family, guarded
from training.messages import one_line
from training.validation import check

_PACKAGES = ("assets", "training", "orchestration")  # ours
_ADDRESS = re.compile(r"(ray://)?([\w.-]+|\[[0-9a-fA-F:]+\]):(\d{1,5})")
_ANSWER_SECONDS = 5.0
# Ray's servers speak gRPC, thus HTTP/2 (RFC 9113, section 3.4): a fixed line and a frame of settings, without any; the
# answer begins with such a frame.
_SETTINGS = b"\x04"
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + _SETTINGS + b"\0\0\0\0\0"
_RETRIES = 3  # of a batch whose node or process died: one that kills each process it is in must end some time
_HEAD = """
import sys, time, ray
options = {"include_dashboard": False, "log_to_driver": False, "configure_logging": False}
ray.init("local", num_cpus=int(sys.argv[1]), _temp_dir=sys.argv[2], **options)
print(ray.get_runtime_context().gcs_address, flush=True)
time.sleep(1e9)
"""
# Places that every node reaches; other paths and URLs may mean this machine.
_ANYWHERE = ("s3://", "s3a://", "gs://", "gcs://", "abfs://", "abfss://", "az://", "http://", "https://")


class RayEngine(Engine):
    @dataclass(frozen=True, kw_only=True)
    class Options(WorkerOptions):
        # HOST:PORT of a cluster that this machine is a node of, or `auto`; ray://HOST:PORT of any; null: one is started
        address: str | None = None
        shared_files: bool = False  # paths mean the same files on all nodes; else this process reads them for the nodes
        gpus: float = 1.0  # of a GPU for each batch of a step that runs a network; without any, the CPUs do

        def __post_init__(self) -> None:
            super().__post_init__()
            known = self.address in (None, "auto") or _ADDRESS.fullmatch(self.address or "") is not None
            check(known, "address", self.address, "null, auto, HOST:PORT or ray://HOST:PORT")
            check(self.gpus > 0, "gpus", self.gpus, "above 0")
            check(self.gpus <= 1 or self.gpus.is_integer(), "gpus", self.gpus, "a share of one, or a whole number")

    def __init__(self, options: Options, runs_model: bool = False) -> None:
        """Raises ValueError: Ray is not installed."""
        if importlib.util.find_spec("ray") is None:
            raise ValueError("engine ray needs Ray, which is not installed: pip install 'triptych[ray]'")
        super().__init__(options)
        self._runs_model = runs_model

    def suited(self, in_python: bool, items: int, most: int | None = None, runs_model: bool = False) -> Engine:
        return RayEngine(self.options, runs_model)

    def reads(self, uri: str) -> bool:
        return self.options.address is None or self.options.shared_files or uri.lower().startswith(_ANYWHERE)

    def map(self, fn: Callable[[Batch], Result], batches: Iterable[Batch]) -> Iterator[Result]:
        batches = iter(batches)
        first = list(islice(batches, 1))
        if not first:
            return  # a cluster takes seconds to start
        function = pickle.dumps(fn)
        with _connected(self.options, function) as ray:
            has_gpus = self._runs_model and self._has_gpus(ray)
            each = {"num_cpus": 1, "num_gpus": self.options.gpus if has_gpus else 0}
            task = ray.remote(_run).options(**each, max_retries=_RETRIES, name="triptych")
            everywhere = ray.put(function)  # sent to each node once
            pending: deque[Any] = deque()
            try:
                for batch in chain(first, batches):
                    pending.append(task.remote(everywhere, batch))
                    if len(pending) >= 2 * self._workers(ray, has_gpus):
                        yield _result(ray, pending.popleft())
                while pending:
                    yield _result(ray, pending.popleft())
            finally:  # also where the consumer stops early
                for left in pending:
                    ray.cancel(left)

    def _has_gpus(self, ray: Any) -> bool:
        """Raises ValueError: no node has as many as a batch is to have, which Ray would wait for."""
        most = max((node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
        if 0 < most < self.options.gpus:
            raise ValueError(f"engine.gpus is {self.options.gpus:g}, and the node with the most has {most:g}")
        return bool(most > 0)

    def _workers(self, ray: Any, has_gpus: bool) -> int:
        """Batches that run at once; asked anew each time, since nodes come and go."""
        resources = ray.cluster_resources()
        there = resources.get("GPU", 0) / self.options.gpus if has_gpus else resources.get("CPU", 0)
        return max(1, min(int(there), self.options.workers or sys.maxsize))


def _result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None  # as the function raised it, without the lines of the worker's stack
    except ray.exceptions.RayError as error:
        raise RuntimeError(f"engine ray: {one_line(str(error))}") from None


def _run(function: bytes, batch: Any) -> Any:
    """In a worker of Ray."""
    return _loaded(function)(batch)


@functools.lru_cache(maxsize=1)
def _loaded(function: bytes) -> Any:
    """Once in a process: it may hold a network."""
    return pickle.loads(function)


@functools.cache
def _token() -> str:
    """One for all clusters of this process: Ray reads it once."""
    return secrets.token_hex()


@contextmanager
def _connected(options: RayEngine.Options, function: bytes) -> Iterator[Any]:
    """Ray, connected to the cluster that the options name, or to a new one.

    Raises:
        ConnectionError: there is no such cluster, or it is of another version of Ray or Python.
    """
    # Read when Ray is imported: it would tell its makers how it is used.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with ExitStack() as stack:
        if options.address is None:  # nobody else may ask it to run something
            for name, value in (("RAY_AUTH_MODE", "token"), ("RAY_AUTH_TOKEN", _token())):
                if os.environ.setdefault(name, value) == value:
                    stack.callback(os.environ.pop, name, None)
        import ray

        code = stack.enter_context(tempfile.TemporaryDirectory(prefix="triptych-code-"))
        _copy_code(Path(code), function)
        address = options.address or stack.enter_context(_started(options.workers or cores()))
        if address != "auto":
            _check_answers(address)
        try:
            with _same_signals():
                # The code is packed and sent to the nodes; there it is the working directory, and the first place to
                # import from.
                quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False, "logging_level": "ERROR"}
                ray.init(address, runtime_env={"working_dir": code}, **quiet)
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise ConnectionError(f"engine ray cannot use {address}: {one_line(str(error))}") from None
        stack.callback(ray.shutdown)
        yield ray


@contextmanager
def _started(workers: int) -> Iterator[str]:
    """The address of a new cluster of this machine, which ends with the block, or with this process, however that
    ends: Ray's own would leave two of its processes behind a kill -9."""
    # The paths of sockets have to be short, whatever TMPDIR says.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        command = guarded([sys.executable, "-P", "-c", _HEAD, str(workers), folder])
        log = Path(folder) / "head.log"
        with log.open("wb") as said:
            head = subprocess.Popen(
                command, env=environment(), stdout=subprocess.PIPE, stderr=said, text=True, start_new_session=True
            )
        try:
            assert head.stdout is not None
            if not (address := head.stdout.readline().strip()):
                why = one_line(log.read_text(errors="replace"))
                raise ConnectionError(f"engine ray cannot start a cluster on this machine: {why}")
            yield address
        finally:
            end_family(head.pid)
            head.communicate()


def _check_answers(address: str) -> None:
    """Raises ConnectionError within seconds; Ray itself would try for minutes."""
    found = _ADDRESS.fullmatch(address)
    assert found is not None
    try:
        with socket.create_connection((found[2].strip("[]"), int(found[3])), _ANSWER_SECONDS) as connection:
            connection.sendall(_GREETING)
            told = b"" if _has_tls() else connection.recv(9)
    except (OSError, OverflowError) as error:
        said = f"engine ray: nothing answers at {address} ({error})"
        raise ConnectionError(f"{said}: start the cluster, or correct engine.address") from None
    if not _has_tls() and told[3:4] != _SETTINGS:
        raise ConnectionError(f"engine ray: what answers at {address} is no Ray: correct engine.address")


def _has_tls() -> bool:
    """Whether nodes greet each other in another way first."""
    return os.environ.get("RAY_USE_TLS", "0") not in ("0", "")


def _copy_code(folder: Path, function: bytes) -> None:
    """Our packages, and the modules that the pickled function names and that no installer has put where they are."""
    for package in _PACKAGES:
        shutil.copytree(CODE / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    words = {word.partition(":")[0] for _, word, _ in pickletools.genops(function) if isinstance(word, str)}
    for name in sorted(words & sys.modules.keys()):
        top = name.partition(".")[0]
        files = [getattr(sys.modules.get(module), "__file__", None) for module in (top, name)]
        file = Path(next(filter(None, files), sys.executable))  # of the package, else of the module; or of neither
        if (folder / top / "__init__.py").exists() or file.suffix != ".py" or _is_installed(file):
            continue
        if file.name == "__init__.py":
            shutil.copytree(file.parent, folder / top, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            place = (folder / name.replace(".", "/")).with_suffix(".py")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)


def _is_installed(file: Path) -> bool:
    library = file.is_relative_to(sysconfig.get_path("stdlib"))
    return library or not {"site-packages", "dist-packages"}.isdisjoint(file.parts)


@contextmanager
def _same_signals() -> Iterator[None]:
    """Ray puts a handler of its own in the place of those that a run has for Ctrl-C and SIGTERM."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
