"""Answers while a recording still runs, over real WebSockets."""

import base64
import io
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import soundfile
import uvicorn
from mlflow.exceptions import MlflowException
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from orchestration.serving.app import Connection, Limits, make_app

RATE = 8000
SAMPLES = np.random.default_rng(0).integers(-3000, 3000, 2 * RATE, dtype=np.int16)


class Model:
    """Answers how long a recording is, and what else it was given; "slow" takes its time."""

    max_rows = 20

    def __init__(self) -> None:
        self.waveforms: list[np.ndarray] = []

    def about(self) -> dict[str, Any]:
        inputs = {"text": {"type": "text/plain"}, "speech": {"type": "audio/*"}}
        return {"version": "7", "dataset_fingerprint": None, "inputs": inputs, "limits": {"max_seconds": 3.0}}

    def read(self, record: dict[str, Any], number: int) -> Any:
        waveform, rate = soundfile.read(io.BytesIO(base64.b64decode(record["speech"])), dtype="int16")
        if len(waveform) < 0.3 * rate:
            raise MlflowException.invalid_parameter_value("row 0, column speech: is too short")
        return waveform, rate, record.get("text")

    def answer(self, rows: list[Any]) -> list[dict[str, Any]]:
        if any(text == "slow" for _, _, text in rows):
            time.sleep(0.3)
        if any(text == "broken" for _, _, text in rows):
            raise RuntimeError("out of memory")
        self.waveforms += [waveform for waveform, _, _ in rows]
        return [{"prediction": f"{len(waveform) / rate:g} {text}"} for waveform, rate, text in rows]


class Log:
    """Keeps the records of answers that are logged."""

    def __init__(self) -> None:
        self.records: list[Any] = []

    def add(self, records: Any, answers: Any) -> list[str]:
        self.records += records
        return [f"a{len(self.records)}"] * len(records)

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def served(free_ports: Callable[[int], list[int]]) -> Iterator[tuple[str, Model, Log]]:
    (port,) = free_ports(1)
    model, log = Model(), Log()
    app = make_app(model, ("text", "speech"), Limits(pause_seconds=1.0, held_bytes=10**6), "127.0.0.1", log=log)  # type: ignore[arg-type]
    server = uvicorn.Server(uvicorn.Config(app, port=port, http=Connection, ws="websockets-sansio", log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < until
        time.sleep(0.02)
    yield f"ws://127.0.0.1:{port}/stream", model, log
    server.should_exit = True
    thread.join(20)


def begin(socket: ClientConnection, **said: Any) -> None:
    socket.send(json.dumps({"rate": RATE, **said}))


def speak(socket: ClientConnection, start: float, end: float) -> None:
    socket.send(SAMPLES[round(start * RATE) : round(end * RATE)].tobytes())


def hear(socket: ClientConnection) -> dict[str, Any]:
    return json.loads(socket.recv(timeout=20))


def test_answers_come_while_the_recording_runs(served: tuple[str, Model, Log]) -> None:
    url, model, log = served
    before = len(log.records)
    with connect(url, open_timeout=20) as socket:
        begin(socket, every=0.5, row={"text": "hm"})
        speak(socket, 0.0, 0.4)  # is too little for an answer
        speak(socket, 0.4, 0.6)
        first = hear(socket)
        assert (first["seconds"], first["final"], first["answer"]) == (0.6, False, {"prediction": "0.6 hm"})
        assert 0 < first["milliseconds"] < 20_000 and len(log.records) == before
        speak(socket, 0.6, 1.3)
        assert hear(socket)["answer"] == {"prediction": "1.3 hm"}
        speak(socket, 1.3, 1.5)
        socket.send('{"end": true}')
        last = hear(socket)
        assert last["final"] and last["answer"] == {"answer_id": f"a{before + 1}", "prediction": "1.5 hm"}
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=20)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1000
    np.testing.assert_array_equal(model.waveforms[-1], SAMPLES[: round(1.5 * RATE)])
    assert len(log.records) == before + 1 and log.records[-1]["text"] == "hm"


def test_a_slow_model_answers_more_seldom(served: tuple[str, Model, Log]) -> None:
    url, model, _ = served
    before = len(model.waveforms)
    with connect(url, open_timeout=20) as socket:
        begin(socket, every=0.1, row={"text": "slow"})
        for n in range(20):
            speak(socket, n / 10, (n + 1) / 10)
            time.sleep(0.02)
        socket.send('{"end": true}')
        said = [hear(socket)]
        while not said[-1]["final"]:
            said.append(hear(socket))
    assert all(one["seconds"] < 0.3 for one in said if "message" in one), "too short at first"
    answered = [one["answer"]["prediction"] for one in said if "answer" in one]
    assert 2 <= len(answered) == len(model.waveforms) - before <= 6 and answered[-1] == "2 slow"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("hello", "expected {"),
        ('{"rate": 8000, "input": "picture"}', "input is 'picture', expected one of speech"),
        ('{"rate": true}', "rate is True, expected a number from 1,000 to 192,000"),
        ('{"rate": 8000, "every": 0}', "every is 0, expected a number from 0.1 to 60"),
        ('{"rate": 8000, "row": {"speech": "UklG"}}', "row is to be an object of the inputs beside 'speech'"),
        ('{"rate": 8000, "row": {"texts": "a"}}', "did you mean 'text'?"),
        (b"\0\0", "expected {"),
    ],
)
def test_a_wrong_beginning_is_refused_in_words(served: tuple[str, Model, Log], said: Any, words: str) -> None:
    with connect(served[0], open_timeout=20) as socket:
        socket.send(said)
        told = hear(socket)
        assert told["error_code"] == "BAD_REQUEST" and words in told["message"]
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=20)


def test_what_cannot_be_answered_is_said_and_what_is_too_long_ends_it(served: tuple[str, Model, Log]) -> None:
    with connect(served[0], open_timeout=20) as socket:
        begin(socket)
        speak(socket, 0.0, 0.2)
        socket.send('{"end": true}')
        told = hear(socket)
        assert told["final"] and "answer" not in told and told["message"].endswith("is too short")
    with connect(served[0], open_timeout=20) as socket:
        begin(socket, every=60)
        for _ in range(2):
            speak(socket, 0.0, 2.0)
        assert hear(socket)["message"] == "the recording is longer than 3.0 s"
    with connect(served[0], open_timeout=20) as socket:
        begin(socket)  # and then nothing
        assert hear(socket)["error_code"] == "REQUEST_TIMEOUT"


def test_a_model_that_fails_is_said_and_the_log_tells_why(
    served: tuple[str, Model, Log], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "handlers", [caplog.handler])
    with connect(served[0], open_timeout=20) as socket:
        begin(socket, row={"text": "broken"})
        speak(socket, 0.0, 0.4)
        socket.send('{"end": true}')
        told = hear(socket)
        assert told["error_code"] == "INTERNAL_ERROR" and "RuntimeError" in told["message"]
    assert "out of memory" in caplog.text


def test_who_leaves_is_forgotten(served: tuple[str, Model, Log]) -> None:
    """What connections hold together is bounded, so each must give back what it held."""
    for _ in range(40):  # 1.3 MB together
        with connect(served[0], open_timeout=20) as socket:
            begin(socket, every=60)
            speak(socket, 0.0, 2.0)
    with connect(served[0], open_timeout=20) as socket:
        begin(socket)
        speak(socket, 0.0, 1.0)
        assert hear(socket)["answer"] == {"prediction": "1 None"}


def test_the_page_of_another_site_may_not_connect(served: tuple[str, Model, Log]) -> None:
    url = served[0]
    own = url.replace("ws://", "http://").removesuffix("/stream")
    with connect(url, origin=own, open_timeout=20):  # type: ignore[arg-type]
        pass
    with pytest.raises(InvalidStatus):
        connect(url, origin="http://elsewhere.example", open_timeout=20)  # type: ignore[arg-type]
