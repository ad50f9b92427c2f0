"""Latency and throughput of the champion, in process and over HTTP, beside the bare model.

    python -m benchmarks.serving [--quick]

The champion is the built-in example's, trained for a moment in a temporary TRIPTYCH_HOME: its answers are poor, its
size is right. One row and 64 rows of its test split (text, image and speech). Ours: `predict` of MLflow's pyfunc on a
DataFrame; and POST /invocations of `triptych serve` on loopback, over a connection that is kept (its memory is the
server's). The reference does the same work without either: files decoded and featurized one by one, then forward and
generate, in a loop of a few lines; it must give the same answers. Median and 95th percentile of 100 calls (of 64 rows:
20). Then 32 clients that ask for a row each, again and again, beside the same of a server that answers rows one by one
(`--batch 1`). Then a recording of 3 seconds that comes as it is spoken, over /stream: how long after the last of its
samples an answer comes, beside a request for as much. --data is not used.
"""

import base64
import contextlib
import http.client
import io
import json
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import psutil
import pyarrow.compute as pc
import pyarrow.parquet as pq
import requests
import soundfile
from websockets.sync.client import connect

from benchmarks import measure

# The gate is asked to let a model pass that has hardly seen anything, on few test rows.
_SETTINGS = ("training.epochs=0.1", "training.baseline_epochs=0.02", "training.evaluations=1", "promotion.must_beat=[]")
_SETTINGS += ("align.split={train: 0.98, validation: 0.01}",)
_INPUTS = ["text", "image", "speech"]
_CALLS, _QUICK = {1: 100, 64: 20}, 5
_CLIENTS = 32
_START_SECONDS = 120
Ask = Callable[[], list[str]]


def champion(home: Path) -> tuple[Path, Path]:
    """Trains one: the folder of the logged model, and 64 raw rows of the test split as Parquet."""
    from assets.gate import write_raw
    from assets.pipeline import open_lake
    from training.model_registry import fetch_model

    project = measure.run_example(home, *(part for setting in _SETTINGS for part in ("--set", setting)))
    whole, rows = home / "test.parquet", home / "rows.parquet"
    write_raw(open_lake(project), whole, "test", project.make_sources())
    table = pq.read_table(whole, columns=_INPUTS)
    complete = pc.and_(pc.is_valid(table["image"]), pc.is_valid(table["speech"]))
    pq.write_table(table.filter(complete).slice(0, max(_CALLS)), rows)
    return fetch_model(project.mlflow_uri, project.name, "1"), rows


def latency(make: Callable[..., Ask], calls: int, *arguments: Any) -> dict[str, Any]:
    ask, seconds, answers = make(*arguments), [], None
    for _ in range(calls):
        started = time.perf_counter()
        answers = ask()
        seconds.append(1000 * (time.perf_counter() - started))
    p95 = statistics.quantiles(seconds, n=20, method="inclusive")[-1]
    return {"ms, median": statistics.median(seconds), "ms, p95": p95, "check": answers}


def records(rows: Path, count: int) -> list[dict[str, str]]:
    """Rows as the service takes them: media as base64."""
    answered_rows = pq.read_table(rows).slice(0, count).to_pylist()
    return [
        {n: base64.b64encode(v).decode() if isinstance(v, bytes) else v for n, v in row.items()}
        for row in answered_rows
    ]


@cache
def in_process(model: Path, rows: Path, count: int) -> Ask:
    served, frame = mlflow.pyfunc.load_model(str(model)), pd.DataFrame(records(rows, count))
    return lambda: served.predict(frame)["prediction"].tolist()


@cache
def over_http(port: int, rows: Path, count: int) -> Ask:
    session, body = requests.Session(), json.dumps({"dataframe_records": records(rows, count)})
    session.headers["Content-Type"] = "application/json"
    url = f"http://127.0.0.1:{port}/invocations"
    return lambda: [row["prediction"] for row in session.post(url, body).json()["predictions"]]


@cache
def bare(model: Path, rows: Path, count: int) -> Ask:
    from transformers import AutoTokenizer

    from training.collator import make_collator
    from training.model import FusionModel
    from training.processor import Processor
    from training.score import bundle_of

    bundle = bundle_of(model)
    network = FusionModel.from_pretrained(bundle).eval()
    tokenizer = AutoTokenizer.from_pretrained(bundle, config=network.config)
    processor = Processor.from_pretrained(bundle)
    raw = pq.read_table(rows).slice(0, count).to_pylist()
    collate = make_collator(network, tokenizer, processor.features)
    return lambda: network.answer(collate([processor.row(**row) for row in raw]), tokenizer)


def throughput(port: int, rows: Path, seconds: float) -> dict[str, Any]:
    """Rows that 32 clients get answered in a second, each asking for its own again and again."""
    asked = [json.dumps({"dataframe_records": [record]}) for record in records(rows, _CLIENTS)]
    end = time.perf_counter() + seconds

    def ask(body: str) -> list[str]:
        # Not requests: it would take more of the machine than the server does.
        connection, answers = http.client.HTTPConnection("127.0.0.1", port), []
        while time.perf_counter() < end:
            connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
            answers.append(json.load(connection.getresponse())["predictions"][0]["prediction"])
        return answers

    with ThreadPoolExecutor(_CLIENTS) as clients:
        answers = list(clients.map(ask, asked))
    return {"rows/s": sum(map(len, answers)) / seconds, "check": [set(each) for each in answers]}


_SPOKEN, _RATE, _EVERY = 3.0, 16_000, 0.25  # seconds, Hz, seconds between two answers


def spoken() -> np.ndarray:
    return np.random.default_rng(0).integers(-3000, 3000, round(_SPOKEN * _RATE), dtype=np.int16)


def streamed(port: int, rows: Path) -> dict[str, Any]:
    """Milliseconds of each answer, as the server says them; each part comes when it has been spoken."""
    record = {name: value for name, value in records(rows, 1)[0].items() if name != "speech"}
    samples, part, said = spoken(), round(_EVERY * _RATE), list[dict[str, Any]]()
    with connect(f"ws://127.0.0.1:{port}/stream", open_timeout=60) as client:
        client.send(json.dumps({"rate": _RATE, "every": _EVERY, "row": record}))
        for start in range(0, len(samples), part):
            time.sleep(_EVERY)
            client.send(samples[start : start + part].tobytes())
        client.send('{"end": true}')
        while not (said and said[-1]["final"]):
            said.append(json.loads(client.recv(timeout=60)))
    found = [one["milliseconds"] for one in said if "answer" in one]
    return {"ms, median": statistics.median(found), "ms, max": max(found), "answers": len(found), "check": None}


def asked_whole(port: int, rows: Path) -> dict[str, Any]:
    """The same lengths, each asked for by a request of its own."""
    record, samples, found = records(rows, 1)[0], spoken(), list[float]()
    for end in range(round(_EVERY * _RATE), len(samples) + 1, round(_EVERY * _RATE)):
        stream = io.BytesIO()
        soundfile.write(stream, samples[:end], _RATE, format="WAV")
        row = record | {"speech": base64.b64encode(stream.getvalue()).decode()}
        started = time.perf_counter()
        requests.post(f"http://127.0.0.1:{port}/invocations", json={"dataframe_records": [row]}).raise_for_status()
        found.append(1000 * (time.perf_counter() - started))
    return {"ms, median": statistics.median(found), "ms, max": max(found), "answers": len(found), "check": None}


@contextlib.contextmanager
def server(home: Path, *options: str) -> Iterator[tuple[int, int]]:
    """`triptych serve` while it runs: its port, and the id of the process that answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv, env = measure.command(home, "serve", "digits", "--port", str(port), *options)
    with (home / f"log{port}").open("w+b") as log, subprocess.Popen(argv, env=env, stdout=log, stderr=log) as process:
        try:
            until = time.monotonic() + _START_SECONDS
            while process.poll() is None and time.monotonic() < until:
                with contextlib.suppress(requests.ConnectionError):
                    if requests.get(f"http://127.0.0.1:{port}/ping").ok:
                        break
                time.sleep(0.2)
            else:
                raise SystemExit(f"no server:\n{Path(log.name).read_text()}")
            children = psutil.Process(process.pid).children(recursive=True)
            yield port, max(children, key=lambda child: child.memory_info().rss).pid
        finally:
            process.terminate()


def main() -> None:
    arguments = measure.parser(__doc__).parse_args()
    times = measure.repetitions(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        model, rows = champion(home)
        with server(home) as (port, pid), server(home, "--batch", "1") as (one_by_one, _):
            for count, calls in _CALLS.items():
                calls = _QUICK if arguments.quick else calls
                reference = partial(latency, bare, calls, model, rows, count)
                for way, make, place, process in (("predict", in_process, model, None), ("HTTP", over_http, port, pid)):
                    name, ours = f"{way}, rows: {count}", partial(latency, make, calls, place, rows, count)
                    measure.compare(("serving", name), ours, "decode + forward + generate", reference, times, process)
            ours, reference = (partial(throughput, p, rows, 1 if arguments.quick else 10) for p in (port, one_by_one))
            name = ("serving", f"HTTP, clients: {_CLIENTS}")
            measure.compare(name, ours, "the same, one by one", reference, times, pid)
            ours, reference = partial(streamed, port, rows), partial(asked_whole, port, rows)
            measure.compare(("serving", "a recording as it is spoken"), ours, "whole requests", reference, times, pid)


if __name__ == "__main__":
    main()
