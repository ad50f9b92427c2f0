"""Answers while a recording still runs: GET /stream, a WebSocket.

    ->  {"input": "speech", "rate": 16000, "every": 0.5, "row": {"text": "..."}}   what the samples are; other inputs
    ->  bytes, again and again           samples: 16 bits, little-endian, one channel
    <-  {"seconds": 1.5, "milliseconds": 83, "final": false, "answer": {...}}      to what has come so far
    ->  {"end": true}
    <-  {"seconds": 2.1, ..., "final": true, "answer": {"answer_id": ..., ...}}    to all of it; then it is closed

An answer is to the whole recording so far, by the same steps as any other request's: the last one is what
/invocations says. `milliseconds` have passed since the last of its `seconds` came. While one is made no other is asked
for: a model that takes long answers more seldom, and does not fall behind. Only the last one is logged.

What cannot be answered is {"error_code", "message"} in the place of `answer`; an error in what the client said ends the
connection.
"""

import asyncio
import base64
import io
import json
import logging
import time
import wave
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mlflow.exceptions import MlflowException
from starlette.websockets import WebSocket, WebSocketDisconnect

from orchestration.serving.media import check_media
from orchestration.serving.rows import Record, Refused, bad, read_rows

if TYPE_CHECKING:
    from orchestration.serving.app import Service

_LOG = logging.getLogger("uvicorn.error")  # where the server tells what became of other requests
_RATES, _EVERY = (1_000, 192_000), (0.1, 60.0)  # Hz; seconds
_BYTES = 2  # a sample
_REFUSED = 1008  # the code that closes a WebSocket whose client broke a rule


@dataclass(frozen=True)
class Asked:
    """What a client said first."""

    column: str
    rate: int  # Hz
    every: float  # seconds
    row: Record  # the other inputs


class Heard:
    """What has come of a recording."""

    def __init__(self) -> None:
        self.samples, self.came, self.more = bytearray(), time.perf_counter(), asyncio.Event()


class Stream:
    """The endpoint.

    Args:
        recordings: the inputs that are recordings; empty: the model does not tell.
        seconds: that a recording may last.
    """

    def __init__(self, service: "Service", recordings: tuple[str, ...], seconds: float) -> None:
        self.service, self.recordings = service, recordings
        self.seconds = min(seconds, service.limits.seconds)

    async def answer(self, socket: WebSocket) -> None:
        origin = socket.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != socket.headers.get("host"):
            await socket.close(_REFUSED)  # browsers let the page of any site connect
            return
        await socket.accept()
        try:
            await self._run(socket)
        except Refused as error:
            await socket.send_json(_problem(error))
            await socket.close(_REFUSED)
        except WebSocketDisconnect:
            pass

    async def _run(self, socket: WebSocket) -> None:
        asked, heard = await self._asked(await self._receive(socket)), Heard()
        listening = asyncio.create_task(self._listen(socket, asked, heard))
        try:
            told, step = 0, round(asked.every * asked.rate) * _BYTES
            while True:
                if is_final := listening.done():
                    listening.result()
                if is_final or len(heard.samples) - told >= step:
                    told, came = len(heard.samples), heard.came
                    said = await self._said(asked, bytes(heard.samples), is_final)
                    passed = round(1000 * (time.perf_counter() - came), 1)
                    seconds = round(told / _BYTES / asked.rate, 3)
                    await socket.send_json({"seconds": seconds, "milliseconds": passed, "final": is_final} | said)
                    if is_final:
                        return await socket.close()
                else:
                    await heard.more.wait()
                    heard.more.clear()
        finally:
            listening.cancel()
            self.service.release(len(heard.samples))

    async def _asked(self, text: str | bytes) -> Asked:
        """Raises Refused."""
        said = _object(text, '{"input": ..., "rate": ..., "every": ..., "row": {...}}')
        rate: Any = said.get("rate")
        column, every = said.get("input"), said.get("every", 0.5)
        columns = self.recordings or tuple(self.service.columns)
        if column is None and len(self.recordings) == 1:
            (column,) = self.recordings
        if column not in columns:
            raise bad(f"input is {column!r}, expected one of {', '.join(columns)}")
        for name, value, (low, high) in (("rate", rate, _RATES), ("every", every, _EVERY)):
            if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
                raise bad(f"{name} is {value!r}, expected a number from {low:,} to {high:,}")
        row = said.get("row") or {}
        if not isinstance(row, dict) or column in row:
            raise bad(f"row is to be an object of the inputs beside {column!r}, whose samples come by themselves")
        body = json.dumps({"dataframe_records": [{**row, column: ""}]}).encode()
        (record,) = await asyncio.to_thread(read_rows, body, "", self.service.columns, 1)
        del record[column]
        limits = self.service.limits
        await asyncio.to_thread(check_media, [record], limits.pixels, limits.seconds)
        return Asked(column, round(rate), float(every), record)

    async def _listen(self, socket: WebSocket, asked: Asked, heard: Heard) -> None:
        """Until the client says that it was all. Raises Refused, WebSocketDisconnect."""
        most = min(round(self.seconds * asked.rate) * _BYTES, self.service.limits.body_bytes)
        try:
            while isinstance(part := await self._receive(socket), bytes):
                if len(heard.samples) + len(part) > most:
                    lasts = most / _BYTES / asked.rate
                    raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the recording is longer than {lasts:.1f} s")
                heard.samples += part
                self.service.hold(len(part))
                heard.came = time.perf_counter()
                heard.more.set()
            if _object(part, '{"end": true}') != {"end": True}:
                raise bad('expected samples, or {"end": true}')
            heard.came = time.perf_counter()
        finally:
            heard.more.set()

    async def _receive(self, socket: WebSocket) -> str | bytes:
        try:
            async with asyncio.timeout(self.service.limits.pause_seconds):
                message = await socket.receive()
        except TimeoutError:
            raise Refused(HTTPStatus.REQUEST_TIMEOUT, "nothing came for too long") from None
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1000))
        given = message.get("bytes")
        return given if given is not None else message["text"]

    async def _said(self, asked: Asked, samples: bytes, is_final: bool) -> dict[str, Any]:
        recording = await asyncio.to_thread(_wav, samples, asked.rate)
        try:
            (answer,) = await self.service.answered([{**asked.row, asked.column: recording}], is_logged=is_final)
        except (Refused, MlflowException) as error:
            return _problem(error)
        except Exception as error:
            _LOG.exception("an answer to a stream failed")
            words = f"the model failed ({type(error).__name__}); the server's log says why"
            return {"error_code": "INTERNAL_ERROR", "message": words}
        return {"answer": answer}


def _wav(samples: bytes, rate: int) -> str:
    """A WAV file in base64."""
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setparams((1, _BYTES, rate, 0, "NONE", ""))
        file.writeframes(samples[: len(samples) // _BYTES * _BYTES])
    return base64.b64encode(stream.getvalue()).decode()


def _object(text: str | bytes, expected: str) -> dict[str, Any]:
    """Raises Refused: it is no JSON object."""
    try:
        said = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise bad(f"expected {expected} as text")
    return said


def _problem(error: Refused | MlflowException) -> dict[str, Any]:
    if isinstance(error, Refused):
        return {"error_code": error.status.name, "message": " ".join(str(error).split())}
    return {"error_code": error.error_code, "message": " ".join(error.message.split())}
