"""The server of answers, on real sockets, before a model whose work a test can hold up."""

import base64
import contextlib
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any

import numpy as np
import pytest
import requests
import soundfile
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from PIL import Image

from orchestration.serving import app, batching
from orchestration.serving.app import Connection, Limits, make_app
from orchestration.serving.rows import Refused, read_rows

COLUMNS = ("text", "image")


class Model:
    """Says the texts back; one that starts with "slow" waits until `go`, "broken" fails in the model."""

    max_rows = 20

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.go, self.busy = threading.Event(), threading.Event()

    def read(self, record: dict[str, Any], number: int) -> str:
        if record.get("text") == "large":
            assert self.go.wait(20)
        if not isinstance(record.get("text"), str):
            raise MlflowException.invalid_parameter_value(f"row {number}, column text: is no text")
        return record["text"]

    def answer(self, rows: list[str]) -> list[dict[str, str]]:
        self.batches.append(rows)
        if any(row.startswith("slow") for row in rows):
            self.busy.set()
            assert self.go.wait(20)
        if "broken" in rows:
            raise RuntimeError("out of memory")
        if "fewer" in rows:
            return []
        return [{"prediction": row} for row in rows]


class Server:
    def __init__(self, model: Any, limits: Limits, log: Any = None, feedback: Any = None) -> None:
        self.model = model
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.app = make_app(model, COLUMNS, limits, "127.0.0.1", log=log, feedback=feedback)
        self.uvicorn = uvicorn.Server(
            uvicorn.Config(self.app, port=self.port, http=Connection, log_level="error", timeout_graceful_shutdown=5)
        )
        self.thread = threading.Thread(target=self.uvicorn.run, daemon=True)

    def ask(self, *texts: str, timeout: float = 20) -> requests.Response:
        body = {"dataframe_records": [{"text": text} for text in texts]}
        return requests.post(f"http://127.0.0.1:{self.port}/invocations", json=body, timeout=timeout)

    def post(self, body: Any, content_type: str = "application/json", **headers: str) -> requests.Response:
        url, headers = f"http://127.0.0.1:{self.port}/invocations", {"Content-Type": content_type, **headers}
        return requests.post(url, data=body, headers=headers, timeout=20)

    def connect(self, sent: bytes = b"") -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        connection.sendall(sent)
        return connection

    def stop(self) -> None:
        self.uvicorn.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(model: Any = None, **limits: Any) -> Server:
        server = Server(model or Model(), Limits(**limits))
        servers.append(server)
        server.thread.start()
        wait_for(lambda: server.uvicorn.started)
        return server

    yield start
    for server in servers:
        if isinstance(server.model, Model):
            server.model.go.set()
        server.stop()


def wait_for(condition: Callable[[], Any], seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.01)


def head(length: int, *more: str) -> bytes:
    lines = ["POST /invocations HTTP/1.1", "Host: localhost", "Content-Type: application/json", *more]
    return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()


def answers(response: requests.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [row["prediction"] for row in response.json()["predictions"]]


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        ('{"dataframe_records": [{"text": "a", "image": null, "id": 7}, {"image": "b"}]}', "application/json"),
        ('{"dataframe_split": {"index": [5], "columns": ["image", "text"], "data": [[null, "a"], ["b", null]]}}', ""),
        ('{"inputs": {"text": ["a", null], "image": [null, "b"]}}', "application/json; charset=UTF-8"),
        ('{"instances": [{"text": "a"}, {"image": "b"}], "params": null}', "application/json"),
        ("text,image\r\na,\r\n,b\r\n", "text/csv"),
    ],
)
def test_the_forms_of_mlflow_say_the_same(body: str, content_type: str) -> None:
    rows = read_rows(body.encode(), content_type, COLUMNS, 10)
    assert [{name: value for name, value in row.items() if value is not None} for row in rows] == [
        {"text": "a"},
        {"image": "b"},
    ]


BAD = {
    "deep": (b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    "many marks": (b'{"inputs": [' + b"0," * 2_000_001 + b"0]}", "over 2,000,000"),
    "huge integer": (b'{"inputs": [' + b"9" * 10_000 + b"]}", "integer of thousands of digits"),
    "NaN": (b'{"inputs": {"text": NaN}}', "NaN, which is no value of JSON"),
    "NUL": (b'{"inputs": [{"text": "a"}, {"text": "a\\u0000"}]}', "row 1, column text: has a NUL"),
    "NUL byte": (b'{"inputs": [{"text": "a\0"}]}', "is not JSON"),
    "twice": (b'{"inputs": [{"text": "a", "text": "b"}]}', "the key 'text' twice"),
    "number": (b'{"inputs": [5]}', "row 0 is a number, expected an object with text, image"),
    "no object": (b"[1, 2]", "the JSON is an array, expected an object"),
    "other key": (b'{"rows": []}', "expected exactly one of dataframe_records"),
    "two keys": (b'{"inputs": [], "instances": []}', "exactly one of"),
    "not UTF-8": (b'{"inputs": "\xff"}', "is not JSON"),
    "cut": (b'{"inputs": [{"te', "is not JSON"),
    "empty": (b"", "is not JSON"),
    "misspelt": (b'{"inputs": [{"text": "a", "imge": "b"}]}', "'imge' is none that is read: did you mean 'image'?"),
    "foreign column": (b'{"inputs": [{"smell": "a"}]}', "no column is one of text, image"),
    "too many": (b'{"inputs": [' + b",".join([b'{"text": "a"}'] * 21) + b"]}", "21 rows are over the limit of 20"),
    "ragged": (b'{"dataframe_split": {"columns": ["text"], "data": [["a"], ["a", "b"]]}}', "row 1 has 2 values"),
    "columns": (b'{"dataframe_split": {"columns": [["text"]], "data": []}}', "not an array of strings"),
    "same column": (b'{"dataframe_split": {"columns": ["text", "text"], "data": []}}', "named twice"),
    "lengths": (b'{"inputs": {"text": ["a"], "image": ["b", "c"]}}', "1, 2 rows, expected as many in each"),
    "wrong type": (b'{"inputs": [{"text": "a"}, {"text": {"b": 1}}]}', "row 1, column text: is no text"),
}


def test_what_cannot_be_understood_is_refused_in_words(serve: Callable[..., Server]) -> None:
    server = serve()
    for name, (body, words) in BAD.items():
        found = server.post(body)
        assert (name, found.status_code) == (name, 400)
        assert words in found.json()["message"] and "\n" not in found.json()["message"]
        assert len(found.text) < 500, name  # nothing of the body comes back
    tables = (b'text\n"a', b"text,image\na\n", b"", b"text\n\xff\n", b"\n" * 2_000_001)
    assert [server.post(table, "text/csv").status_code for table in tables] == [400] * 5
    for content_type in ("application/octet-stream", "application/json; charset=latin-1"):
        assert server.post(b"{}", content_type).status_code == HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    assert server.post(b"{}", **{"Content-Encoding": "gzip"}).status_code == HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    url = f"http://127.0.0.1:{server.port}"
    assert [requests.get(url + path, timeout=9).status_code for path in ("/x", "/invocations")] == [404, 405]
    assert [requests.get(url + path, timeout=9).status_code for path in ("/ping", "/health", "/version")] == [200] * 3
    assert answers(server.ask("a")) == ["a"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*COLUMNS, "data"]), inner, max_size=4),
    max_leaves=12,
)
forms = st.sampled_from(["dataframe_records", "dataframe_split", "inputs", "instances", "params"])


@given(st.dictionaries(forms, json_values, max_size=2).map(lambda v: json.dumps(v).encode()) | st.binary(max_size=80))
def test_any_body_is_rows_or_refused(body: bytes) -> None:
    for content_type in ("application/json", "text/csv"):
        with contextlib.suppress(Refused):
            rows = read_rows(body, content_type, COLUMNS, 10)
            assert all(isinstance(row, dict) and row.keys() <= set(COLUMNS) for row in rows)


def test_a_body_over_the_limit_is_refused_before_it_has_come(serve: Callable[..., Server]) -> None:
    server = serve(body_bytes=10_000)
    with server.connect(head(10**12)) as connection:  # nothing of the body is sent
        assert connection.recv(100).startswith(b"HTTP/1.1 413")
    whole = server.post(b"x" * 5_000_000)  # the client sends it all, and gets its answer all the same
    assert whole.status_code == 413 and "over the limit of 10,000 bytes" in whole.json()["message"]
    streamed = server.post(iter([b"x" * 6000, b"y" * 6000]))  # chunks, without a length
    assert streamed.status_code == 413
    assert answers(server.ask("a" * 9000)) == ["a" * 9000]


def encoded(content: Any, form: str) -> str:
    """A picture, or a recording of 1 kHz, as base64."""
    stream = io.BytesIO()
    if form == "FLAC":
        soundfile.write(stream, content, 1000, format=form)
    else:
        Image.fromarray(content).save(stream, form)
    return base64.b64encode(stream.getvalue()).decode()


@pytest.mark.parametrize(
    ("form", "content", "says"),
    [
        ("PNG", np.zeros((100, 100), np.uint8), "pictures have more than 25,000 pixels together"),
        ("JPEG", np.zeros((100, 100, 3), np.uint8), "pictures have more than 25,000 pixels together"),
        ("FLAC", np.zeros(2000), "recordings last longer than 5 seconds together"),
    ],
)
def test_the_media_of_a_request_are_bounded_together(
    serve: Callable[..., Server], form: str, content: Any, says: str
) -> None:
    server = serve(pixels=25_000, seconds=5.0)
    media = encoded(content, form)
    url_safe = media.translate(str.maketrans("+/", "-_")).rstrip("=")
    rows = [{"text": "what do you see", "image": value} for value in (media, f"data:x;base64,{url_safe}", media)]

    def post(rows: list[dict[str, Any]]) -> requests.Response:
        return server.post(json.dumps({"dataframe_records": rows}))

    assert len(answers(post(rows[:2]))) == 2
    refused = post(rows)
    assert refused.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    assert says in refused.json()["message"] and "send fewer rows" in refused.json()["message"]
    for several in ([media] * 3, json.dumps([media] * 3)):
        for more in ([], [{"text": "["}]):
            together = post([{"text": "of one row", "image": several}, *more])
            assert together.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    large = encoded(np.repeat(content, 9, 0), form)
    assert len(answers(post([{"text": "the model bounds a row", "image": large}]))) == 1
    texts = [{"text": "iVBORw0KGgo", "image": "is no base64: " * 9}] * 20
    assert len(answers(post(texts))) == 20


def test_what_all_requests_hold_is_bounded(serve: Callable[..., Server]) -> None:
    server = serve(held_bytes=10_000)
    with server.connect(head(20_000) + b" " * 8000):
        wait_for(lambda: server.post(b" " * 3000).status_code == HTTPStatus.SERVICE_UNAVAILABLE)
        assert answers(server.ask("a")) == ["a"]
    wait_for(lambda: server.post(b" " * 3000).status_code == 400)


def test_slow_clients_hold_up_nobody_and_are_dropped(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "_HEADER_SECONDS", 2.0)
    monkeypatch.setattr(app, "_LINGER_SECONDS", 0.1)
    server = serve(pause_seconds=2.0)
    starts = (b"", b"POST /invocations HTTP/1.1\r\nHost: loc", head(5000) + b'{"inputs"')
    slow = [server.connect(starts[n % 3]) for n in range(300)]
    started = time.monotonic()
    for n in range(20):
        assert answers(server.ask(str(n))) == [str(n)]
    assert time.monotonic() - started < 2
    wait_for(lambda: not server.uvicorn.server_state.connections, 10)
    received = [connection.recv(4000) if n % 3 == 2 else b"" for n, connection in enumerate(slow)]
    assert all(part.startswith(b"HTTP/1.1 408") for part in received[2::3])
    for connection in slow:
        connection.close()


def test_a_connection_may_be_kept(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "_HEADER_SECONDS", 0.3)
    server = serve()
    body = b'{"inputs": [{"text": "slow"}]}'
    with server.connect(head(len(body)) + body) as connection:
        assert server.model.busy.wait(10)
        time.sleep(0.5)  # an answer may take longer than the head of a request
        server.model.go.set()
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        connection.sendall(head(len(body)) + body)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")


def test_requests_that_wait_are_answered_together(serve: Callable[..., Server]) -> None:
    server = serve(batch=8)
    with ThreadPoolExecutor(20) as clients:
        first = clients.submit(server.ask, "slow")
        assert server.model.busy.wait(10)
        texts = [(f"a{n}", f"b{n}") for n in range(10)]
        others = [clients.submit(server.ask, *pair) for pair in texts]
        wait_for(lambda: waiting(server) == 20)
        server.model.go.set()
        assert answers(first.result()) == ["slow"]
        assert [tuple(answers(other.result())) for other in others] == texts
    assert [len(batch) for batch in server.model.batches] == [1, 8, 8, 4]


def batcher(server: Server) -> Any:
    route = next(route for route in server.app.routes if route.path == "/invocations")
    return route.endpoint.__self__.batcher


def waiting(server: Server) -> int:
    """Rows that are read and wait for the model."""
    return batcher(server)._waiting.qsize()


def test_an_idle_model_waits_a_moment_for_what_is_being_read(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "_MOMENT", 20.0)
    server = serve()
    with ThreadPoolExecutor(2) as clients:
        first = clients.submit(server.ask, "large")
        wait_for(lambda: batcher(server)._being_read == 1)
        second = clients.submit(server.ask, "a")
        wait_for(lambda: (batcher(server)._under_way, batcher(server)._being_read) == (2, 1))
        server.model.go.set()
        assert answers(first.result()) + answers(second.result()) == ["large", "a"]
    assert server.model.batches == [["a", "large"]]


def test_one_by_one_by_setting(serve: Callable[..., Server]) -> None:
    server = serve(batch=1)
    assert answers(server.ask("a", "b", "c")) == ["a", "b", "c"]
    assert server.model.batches == [["a"], ["b"], ["c"]]


def test_the_work_of_a_client_that_left_is_dropped(serve: Callable[..., Server]) -> None:
    server = serve()
    with ThreadPoolExecutor(2) as clients:
        first = clients.submit(server.ask, "slow")
        assert server.model.busy.wait(10)
        body = b'{"inputs": [{"text": "left"}, {"text": "alone"}]}'
        connection = server.connect(head(len(body)) + body)
        wait_for(lambda: waiting(server) == 2)
        second = clients.submit(server.ask, "stays")
        wait_for(lambda: waiting(server) == 3)
        connection.close()
        wait_for(lambda: len(server.uvicorn.server_state.connections) == 2)
        server.model.go.set()
        assert (answers(first.result()), answers(second.result())) == (["slow"], ["stays"])
    assert server.model.batches == [["slow"], ["stays"]]


def test_a_full_queue_says_when_to_come_again(serve: Callable[..., Server]) -> None:
    server = serve(rows=3)
    with ThreadPoolExecutor(2) as clients:
        first = clients.submit(server.ask, "slow")
        assert server.model.busy.wait(10)
        second = clients.submit(server.ask, "a", "b")
        wait_for(lambda: waiting(server) == 2)
        full = server.ask("c")
        assert full.status_code == 503 and int(full.headers["Retry-After"]) >= 1
        assert "3 rows are under way" in full.json()["message"]
        server.model.go.set()
        assert answers(first.result()) + answers(second.result()) == ["slow", "a", "b"]
    assert answers(server.ask("c")) == ["c"]
    assert answers(server.ask(*"defgh")) == list("defgh")  # more than the queue, but nothing is in its way


def test_a_request_that_takes_long_to_read_holds_up_no_other(serve: Callable[..., Server]) -> None:
    server = serve()
    with ThreadPoolExecutor(1) as clients:
        first = clients.submit(server.ask, *["large"] * 20)
        wait_for(lambda: len(server.uvicorn.server_state.connections) == 1)
        assert [answers(server.ask(text)) for text in "abc"] == [["a"], ["b"], ["c"]]
        assert not first.done()
        server.model.go.set()
        assert answers(first.result()) == ["large"] * 20


def test_a_failure_stays_with_its_request(serve: Callable[..., Server]) -> None:
    server = serve()
    with ThreadPoolExecutor(3) as clients:
        first = clients.submit(server.ask, "slow")
        assert server.model.busy.wait(10)
        others = [clients.submit(server.ask, text) for text in ("broken", "whole")]
        wait_for(lambda: waiting(server) == 2)
        server.model.go.set()
        broken, whole = (other.result() for other in others)
    assert answers(first.result()) + answers(whole) == ["slow", "whole"]
    assert broken.status_code == 500 and "RuntimeError" in broken.json()["message"]
    assert server.ask("fewer").status_code == 500
    assert answers(server.ask("a")) == ["a"]


def test_asked_to_stop_it_answers_what_is_under_way_and_takes_no_more(serve: Callable[..., Server]) -> None:
    server = serve()
    with ThreadPoolExecutor(1) as clients:
        first = clients.submit(server.ask, "slow")
        assert server.model.busy.wait(10)
        server.uvicorn.should_exit = True
        wait_for(lambda: refuses(server.port))
        server.model.go.set()
        assert answers(first.result()) == ["slow"]
    server.stop()


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_on_loopback_only_its_names_are_answered(serve: Callable[..., Server]) -> None:
    server = serve()
    for host, status in (("evil.example", 400), ("localhost", 200), (f"127.0.0.1:{server.port}", 200), ("[::1]", 200)):
        url = f"http://127.0.0.1:{server.port}/ping"
        assert (host, requests.get(url, headers={"Host": host}, timeout=9).status_code) == (host, status)


class Older:
    """A model that was logged before there were steps: it has `predict` alone."""

    max_rows = 5

    def predict(self, context: Any, rows: Any) -> Any:
        return rows.rename(columns={"text": "prediction"})[["prediction"]]


def test_a_model_without_steps_is_served_too(serve: Callable[..., Server]) -> None:
    server = serve(Older())
    assert answers(server.ask("a", "b")) == ["a", "b"]
