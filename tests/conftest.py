"""A small project of real media, written on the spot: what most tests of the data side and the orchestration run on."""

import csv
import gc
import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import time
import wave
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import psutil
import pytest
from PIL import Image

PROJECT = """
name: {name}
sources:
  - {{name: photos, modality: image, files: photos}}
  - {{name: recordings, modality: speech, files: recordings, table: recordings.csv, key: id, file: file}}
  - {{name: questions, modality: text, table: questions.csv, column: question, key: id}}
align: {{label: answer, group: [speaker], split: {{train: 0.6, validation: 0.2}}}}
features:
  image: {{size: 16, color: grey}}
  speech: {{sample_rate: 4000, mels: 16, coefficients: 8}}
model: {{width: 16, heads: 2, layers: 1, tokens: 1, max_new_tokens: 4}}
training: {{epochs: 1, batch_size: 16, evaluations: 1, parallel: 1}}
promotion: {{must_beat: [champion]}}
engine: {{workers: 2}}
schedule: "0 3 * * *"
"""
SAMPLES = 60
NO_IMAGE, NO_SPEECH = (3, 9), (6, 9)  # last digits of the samples that lack it
TRUNCATED, NOT_FOUND, TWICE = 5, 8, 10  # the picture cut short, the recording that is not there, the row that is twice
POSTGRES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
POSTGRES_PASSWORD = MARIADB_PASSWORD = "xyzzy42"
MARIADB = shutil.which("mariadbd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


hypothesis.settings.register_profile("triptych", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("triptych")


def pytest_configure() -> None:
    """Temporary folders in memory where there is room: Dagster's SQLite waits for the disk at each event. No proxy of
    this machine is asked for servers on loopback. The millions of objects of the libraries are looked through for
    garbage less often: that takes a tenth of the time. Of several workers each keeps to a core of its own, so that
    libraries do not start threads which only wait for each other: that takes a fifth."""
    if (worker := os.environ.get("PYTEST_XDIST_WORKER")) is not None and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if int(os.environ["PYTEST_XDIST_WORKER_COUNT"]) >= len(cores):
            os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
    gc.set_threshold(20_000, 20, 50)
    memory = Path("/dev/shm")
    if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2**30:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(memory))
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1", "localhost")))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """No test asks the MLflow of the one before: MLflow sets this variable in a process that asks it something."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)


def write_png(path: Path, number: int) -> None:
    """20 x 20, bright where the number is odd, no two alike."""
    pixels = np.full((20, 20), 200 if number % 2 else 40, np.uint8)
    pixels[number % 20, number // 20] ^= 255
    Image.fromarray(pixels).save(path)
    _age(path)


def write_wav(path: Path, number: int) -> None:
    """0.2 s of a tone at 4 kHz, high where the number is divisible by three, no two alike."""
    pitch = (900 if number % 3 == 0 else 300) + number
    samples = (12000 * np.sin(2 * np.pi * pitch * np.arange(800) / 4000)).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 4000, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    _age(path)


def write_csv(path: Path, rows: Iterable[dict[str, object]]) -> None:
    rows = list(rows)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    _age(path)


def _age(path: Path) -> None:
    """As if written a while ago: the time of a fresh file is not relied on, so it would be read again."""
    then = path.stat().st_mtime - 100
    os.utime(path, (then, then))


def write_project(folder: Path, name: str = "tiny") -> Path:
    """Writes a project of SAMPLES samples; returns its file.

    All have a question; 48 have a picture, of which one is cut short; 48 have a recording by one of 20 speakers, of
    which one is not there, and one row stands twice. So of 157 items 154 are listed and 153 can be used.
    """
    for sub in ("photos", "recordings"):
        (folder / sub).mkdir(parents=True)
    questions, recordings = [], []
    for n in range(SAMPLES):
        key = f"q{n:02d}"
        if n % 10 not in NO_IMAGE:
            write_png(folder / "photos" / f"{key}.png", n)
        if n % 10 not in NO_SPEECH:
            recordings.append({"id": key, "file": f"{key}.wav", "speaker": f"speaker{n // 3}"})
            if n != NOT_FOUND:
                write_wav(folder / "recordings" / f"{key}.wav", n)
        asked = ("Is it bright?", n % 2 == 1) if n % 4 < 2 else ("Is it high?", n % 3 == 0)
        questions.append({"id": key, "question": f"{asked[0]} ({n})", "answer": "yes" if asked[1] else "no"})
    truncated = folder / "photos" / f"q{TRUNCATED:02d}.png"
    truncated.write_bytes(truncated.read_bytes()[:60])
    _age(truncated)
    recordings.append(next(row for row in recordings if row["id"] == f"q{TWICE:02d}"))
    write_csv(folder / "questions.csv", questions)
    write_csv(folder / "recordings.csv", recordings)
    path = folder / "project.yaml"
    path.write_text(PROJECT.format(name=name))
    time.sleep(0.06)  # the time of an inode cannot be set, and is not relied on for a few ticks
    return path


@pytest.fixture(scope="session")
def make_project() -> Callable[..., Path]:
    return write_project


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's, empty: its migrations take seconds."""
    from training.mlflow_store import make_database

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    make_database(f"sqlite:///{path}")
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty TRIPTYCH_HOME of its own."""
    monkeypatch.setenv("TRIPTYCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))  # set again by the code under test: this puts it back
    return tmp_path / "home"


@pytest.fixture
def tiny(tmp_path: Path, home: Path, mlflow_database: Path) -> Path:
    """The file of a small project that has not been run; its home has MLflow's database."""
    home.mkdir()
    shutil.copy(mlflow_database, home)
    return write_project(tmp_path / "project")


@pytest.fixture(scope="session")
def free_ports() -> Callable[[int], list[int]]:
    """Ports of loopback that nobody listens on."""

    def find(count: int) -> list[int]:
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
        ports = [free.getsockname()[1] for free in sockets]
        for free in sockets:
            free.close()
        return ports

    return find


@pytest.fixture(scope="session")
def processes_of() -> Callable[[Path], list[psutil.Process]]:
    """All that run for a home, with whatever parent."""

    def find(home: Path) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("TRIPTYCH_HOME") == str(home) and process.status() != "zombie":
                    found.append(process)
            except psutil.Error:  # it ended, or is another user's
                continue
        return found

    return find


@pytest.fixture(scope="session")
def make_png() -> Callable[[Path, int], None]:
    return write_png


@pytest.fixture(scope="session")
def make_wav() -> Callable[[Path, int], None]:
    return write_wav


@pytest.fixture
def decoded_sizes(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int | None]]:
    """Modality -> the size that is asked of each content that the data side decodes from now on."""
    from assets.decoder import decode_each

    asked: dict[str, list[int | None]] = {}

    def counted(modality: Any, files: Iterable[tuple[bytes, int | None]], *more: Any) -> Iterator[Any]:
        files = list(files)
        asked.setdefault(modality.name, []).extend(size for _, size in files)
        return decode_each(modality, files, *more)

    monkeypatch.setattr("assets.processing.decode_each", counted)
    return asked


@pytest.fixture(scope="session")
def mariadb(free_ports: Callable[[int], list[int]]) -> Iterator[str]:
    """user:password@host:port of a server with the database shop."""
    pytest.importorskip("pymysql")
    if MARIADB is None:
        pytest.skip("MariaDB is not installed: make system")
    user = "nobody" if os.getuid() == 0 else getpass.getuser()  # it refuses to run as root
    folder = Path(tempfile.mkdtemp(prefix="mariadb-"))
    (port,) = free_ports(1)
    (folder / "start.sql").write_text(
        "CREATE DATABASE shop CHARACTER SET utf8mb4;\n"
        f"CREATE USER triptych@'127.0.0.1' IDENTIFIED BY '{MARIADB_PASSWORD}';\n"
        "GRANT ALL ON *.* TO triptych@'127.0.0.1';\n"  # a statement a line
    )
    for path in (folder, folder / "start.sql"):
        shutil.chown(path, user)
    data = [f"--datadir={folder / 'data'}", "--skip-test-db", "--auth-root-authentication-method=normal"]
    subprocess.run(["mariadb-install-db", "--no-defaults", *data], check=True, user=user, capture_output=True)
    settings = [f"--port={port}", "--bind-address=127.0.0.1", f"--socket={folder / 'socket'}", "--skip-name-resolve"]
    settings += [f"--init-file={folder / 'start.sql'}", f"--pid-file={folder / 'pid'}"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([MARIADB, "--no-defaults", data[0], *settings], user=user, stdout=log, stderr=log)
    try:
        until = time.monotonic() + 30
        while b"ready for connections" not in (folder / "log").read_bytes():
            assert server.poll() is None and time.monotonic() < until, (folder / "log").read_text()
            time.sleep(0.1)
        yield f"triptych:{MARIADB_PASSWORD}@127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()
        shutil.rmtree(folder)


@pytest.fixture
def browse(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens a page in a new window of Chromium, whose microphone hears 440 Hz and whose camera sees a green picture.
    `open_page.errors` are what the pages complained of, `open_page.asked` the URLs they asked for."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs chromium (make system)")
    tone, rate = tmp_path / "tone.wav", 48000
    with wave.open(str(tone), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes((12000 * np.sin(2 * np.pi * 440 * np.arange(2 * rate) / rate)).astype("<i2").tobytes())
    devices = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    options = [*devices, f"--use-file-for-fake-audio-capture={tone}", "--host-resolver-rules=MAP shop.test 127.0.0.1"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=options)

        def open_page(url: str, **window: Any) -> Any:
            page = browser.new_context(**window).new_page()
            page.set_default_timeout(120_000)  # a busy machine is no failure
            page.on("pageerror", lambda error: open_page.errors.append(str(error)))
            page.on("request", lambda request: open_page.asked.append(request.url))
            page.goto(url)
            return page

        open_page.errors, open_page.asked = [], []
        yield open_page
        browser.close()


@pytest.fixture
def postgres(free_ports: Callable[[int], list[int]]) -> Iterator[str]:
    """user:password@host:port of a server with the databases dagster and mlflow."""
    pytest.importorskip("psycopg2")
    if POSTGRES is None:
        pytest.skip("PostgreSQL is not installed: make system")
    user = "postgres" if os.getuid() == 0 else getpass.getuser()  # it refuses to run as root
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    (port,) = free_ports(1)

    def call(name: str, *arguments: str) -> None:
        subprocess.run([POSTGRES / name, *arguments], check=True, user=user, cwd=folder, capture_output=True)

    try:
        (folder / "password").write_text(POSTGRES_PASSWORD)
        for path in (folder, folder / "password"):
            shutil.chown(path, user)
        signed = [f"--pwfile={folder / 'password'}", "--auth=scram-sha-256", "--username=triptych"]
        call("initdb", "-D", str(folder / "data"), *signed)
        settings = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        call("pg_ctl", "-D", str(folder / "data"), "-w", "-l", str(folder / "log"), "-o", settings, "start")
        os.environ["PGPASSWORD"] = POSTGRES_PASSWORD
        for name in ("dagster", "mlflow"):
            call("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "triptych", name)
        del os.environ["PGPASSWORD"]
        yield f"triptych:{POSTGRES_PASSWORD}@127.0.0.1:{port}"
    finally:
        subprocess.run([POSTGRES / "pg_ctl", "-D", folder / "data", "-m", "immediate", "stop"], user=user, check=False)
        shutil.rmtree(folder)
