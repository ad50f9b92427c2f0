"""Silos that may not be joined train one model: processes with homes of their own, which meet over HTTP alone."""

import csv
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import write_csv
from training.federation.client import Coordinator
from training.federation.settings import TOKEN
from training.federation.wire import Joining, Learned, RefusedError, token_of

pytestmark = pytest.mark.slow

SECRET, ROUNDS = "a secret of the coordinator", 5
FEDERATION = f"""
federation:
  silos: [north, south, west, liar]
  modalities: [text, image, speech]
  rounds: {ROUNDS}
  wait_seconds: 180
  silent_seconds: 5
"""


def part(folder: Path, make_project: Callable[..., Path], keep: Callable[[int], bool], images: bool) -> Path:
    """A project that has only some of the samples, and perhaps no pictures."""
    path = make_project(folder)
    for name in ("questions", "recordings"):
        with (folder / f"{name}.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if keep(int(row["id"][1:]))]
        write_csv(folder / f"{name}.csv", rows)
    for medium in (*folder.glob("photos/*"), *folder.glob("recordings/*")):
        if not keep(int(medium.stem[1:])):
            medium.unlink()
    text = path.read_text().replace("group: [speaker], ", "")
    if not images:
        shutil.rmtree(folder / "photos")
        text = "\n".join(line for line in text.splitlines() if "photos" not in line)
    path.write_text(text + FEDERATION)
    return path


class Wire:
    """Passes on what goes to the coordinator, and keeps it."""

    def __init__(self, to: int) -> None:
        self.to, self.seen = to, bytearray()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
                far = socket.create_connection(("127.0.0.1", self.to))
            except OSError:
                continue
            for source, target, keep in ((near, far, True), (far, near, False)):
                threading.Thread(target=self._pass, args=(source, target, keep), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, keep: bool) -> None:
        try:
            while data := source.recv(2**16):
                if keep:
                    self.seen += data
                target.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, target):
                end.close()


@pytest.fixture
def start(tmp_path: Path, mlflow_database: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `triptych COMMAND PROJECT ...` in a home of its own."""
    started = []

    def begin(command: str, path: Path, token: str, *arguments: str) -> subprocess.Popen[str]:
        home = path.parent / "home"
        home.mkdir()
        shutil.copy(mlflow_database, home)
        own = {"TRIPTYCH_HOME": str(home), "TRIPTYCH_FEDERATION_TOKEN": token, "OMP_NUM_THREADS": "1"}
        argv = [sys.executable, "-m", "orchestration.cli", command, str(path), *arguments, "--json"]
        output = (path.parent / "output.txt").open("w")
        process = subprocess.Popen(argv, env=os.environ | own, stdout=output, stderr=subprocess.STDOUT, text=True)
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()


def output(path: Path) -> str:
    return (path.parent / "output.txt").read_text()


def until(done: Callable[[], bool], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


def lie(url: str, parts: dict[str, str], lies: list[str]) -> None:
    """A silo that joins as the others do, and sends what it never learned."""
    silo = Coordinator(url, "liar", 10)
    silo.join(Joining(silo="liar", parts=parts, modalities={"text": 9, "image": 9, "speech": 9}, rows=10**6))
    silo.plan()
    while not isinstance(said := silo.next_round(), str):
        weights, task = said
        what = ("NaN", "scaled", "flipped")[task.number % 3]
        values = {"NaN": np.nan, "scaled": 1e4, "flipped": -1e4}[what]
        changes = {name: np.full_like(weight, values) for name, weight in weights.items()}
        changes |= {name: np.zeros_like(x) for name, x in changes.items() if name.endswith("running_var")}
        rows = {"": 10**6, "text": 10**6, "image": 10**6, "speech": 10**6}
        try:
            silo.send(changes, Learned(number=task.number, attempt=task.attempt, rows=rows))
            lies.append(what)
        except RefusedError as error:
            lies.append(str(error))


def secrets_of(folder: Path) -> dict[str, bytes]:
    """What of a silo's data must never leave it, by what it is."""
    found = {}
    for path in (*folder.glob("photos/*"), *folder.glob("recordings/*")):
        data = path.read_bytes()
        found |= {f"name of {path.name}": path.name.encode(), f"bytes of {path.name}": data[len(data) // 2 :][:24]}
    with (folder / "questions.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            found |= {f"text of {row['id']}": row["question"].encode(), f"id {row['id']}": f'"{row["id"]}"'.encode()}
    return found


def test_silos_train_a_champion_and_nothing_of_theirs_leaves_them(
    tmp_path, make_project, start, free_ports, monkeypatch
):
    """One has no pictures, one is killed in a round, one lies; the rest make a model that the gate judges."""
    (port,) = free_ports(1)
    wire, paths, lies = Wire(port), {}, []
    whole = part(tmp_path / "hub", make_project, lambda n: n % 4 == 3, True)
    hub = start("federate", whole, SECRET, "--listen", f"127.0.0.1:{port}")
    silos = {}
    for number, name in enumerate(("north", "south", "west")):
        paths[name] = part(tmp_path / name, make_project, lambda n, k=number: n % 4 == k, name != "west")
        url = f"http://127.0.0.1:{wire.port}"
        silos[name] = start("silo", paths[name], token_of(SECRET, name), "--coordinator", url, "--name", name)
    until(lambda: b'"parts": ' in wire.seen and b'"key"' in wire.seen)
    parts = json.loads(re.search(rb'"parts": (\{[^}]*\})', bytes(wire.seen))[1])
    monkeypatch.setenv(TOKEN, token_of(SECRET, "liar"))
    liar = threading.Thread(target=lie, args=(f"http://127.0.0.1:{port}", parts, lies), daemon=True)
    liar.start()
    until(lambda: "round 1 of" in output(whole) or hub.poll() is not None)
    silos["south"].kill()
    assert hub.wait(timeout=240) == 0, output(whole)

    told, log = json.loads(output(whole).splitlines()[-1]), output(whole)
    assert told["model"]["version"] == 1 and {"champion", "challenger"} & {*told["model"]["aliases"]}
    assert told["standings"], "the gate has judged it beside the baselines"
    assert "silo west joined: 12 training rows, text in 12, speech in 9" in log
    assert "4 silos (liar, north, south, west)" in log or "3 silos (north, south, west)" in log
    assert "south fell silent and is left out" in log
    assert "what liar sent is refused" in log and "numbers that are none" in log
    for name in ("north", "west"):
        assert silos[name].wait(timeout=60) == 0, output(paths[name])
        silo = json.loads(output(paths[name]).splitlines()[-1])
        assert silo["rounds"] == ROUNDS and silo["ended"] == f"all {ROUNDS} rounds are done"
    liar.join(10)
    assert {"scaled", "flipped"} <= {*lies}
    seen = bytes(wire.seen)
    assert len(seen) > 10**5
    for name in paths:
        leaked = [what for what, secret in secrets_of(paths[name].parent).items() if secret in seen]
        assert not leaked, f"{name} sent {leaked}"
