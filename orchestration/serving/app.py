"""The server of a model's answers over HTTP. `triptych serve` starts it.

    python -P -m orchestration.serving MODEL [--host H] [--port P] [--workers N] [--batch ROWS]

MODEL is the folder of a logged model. `POST /invocations` speaks MLflow's scoring protocol; `/ping`, `/health` and
`/version` are MLflow's, too; `POST /feedback` says whether an answer was right (`orchestration.serving.feedback`);
`/stream` answers while a recording still runs (`orchestration.serving.stream`); `/` is a page for people
(`orchestration.serving.page`). The model runs with the code that was logged with it, this server with today's: what
faces strangers (limits, timeouts, mended faults) holds for every version, those logged before it as well. So
nothing here imports `training` or anything else of ours; of the version it uses MLflow's pyfunc (`predict`), and where
its model has them `read` (a record to a row) and `answer` (rows to answers), by which requests are answered in batches,
`about` (what the page must know), and `x_m` (where it places rows, for a log of answers).
"""

import asyncio
import contextlib
import json
import multiprocessing
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import h11
from mlflow.exceptions import MlflowException
from mlflow.version import VERSION
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import Receive, Scope, Send
from uvicorn.config import STARTUP_FAILURE
from uvicorn.protocols.http.h11_impl import H11Protocol

from orchestration.serving.answer_log import AnswerLog
from orchestration.serving.batching import Batcher
from orchestration.serving.feedback import FeedbackLog
from orchestration.serving.media import check_media
from orchestration.serving.page import about_model, page_routes
from orchestration.serving.rows import Record, Refused, read_rows
from orchestration.serving.stream import Stream

ARGUMENTS = "TRIPTYCH_SERVING"  # the environment's variable that carries the command's arguments to its workers
_HEADER_SECONDS = 10  # for the head of a request, and for the first one of a connection
_LINGER_SECONDS = 3  # what a refused client still sends is thrown away for so long
_INLINE_BYTES = 2**17  # a body up to this size is parsed at once, a larger one in a thread
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True)
class Limits:
    body_bytes: int = 48 * 2**20  # two media of 16 MiB as base64, and some text
    held_bytes: int = 512 * 2**20  # of all requests that are under way in a worker
    pause_seconds: float = 10.0  # between two parts of a body
    body_seconds: float = 60.0  # for a whole body
    rows: int = 512  # under way in a worker
    batch: int = 64  # rows that are answered together
    pixels: int = 500_000_000  # of all pictures of a request; some seconds of decoding
    seconds: float = 3600.0  # of all recordings of a request


class Connection(H11Protocol):
    """Drops clients that do not send the head of a request in time; uvicorn waits for them without end."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop()

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._stop()
        elif self._late is None:
            self._late = self.loop.call_later(_HEADER_SECONDS, self.transport.abort)

    def _stop(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


class Service:
    """The endpoints `/invocations` and `/feedback` of one model."""

    def __init__(
        self,
        model: Any,
        columns: Sequence[str],
        limits: Limits,
        log: AnswerLog | None = None,
        feedback: FeedbackLog | None = None,
    ) -> None:
        self.columns = columns
        self.most = int(model.max_rows)
        self.limits = limits
        self._held = 0  # bytes
        self.log, self.marks = log, feedback
        self.batcher = Batcher(
            *_steps(model, log is not None), limits.batch, limits.rows, readers=max(4, os.cpu_count() or 1)
        )

    async def invocations(self, request: Request) -> Response:
        body = bytearray()
        try:
            await self._receive(request, body)
            records = await self._rows(request, bytes(body))
            answers = await _unless_gone(request, self.answered(records))
        finally:
            self.release(len(body))
        return JSONResponse({"predictions": answers})

    async def answered(self, records: Sequence[Record], is_logged: bool = True) -> list[dict[str, Any]]:
        """The answers to records. Raises what `Batcher` raises."""
        answers = await self.batcher(records)
        if self.log is None:
            return answers
        told = [{name: value for name, value in answer.items() if name != "x_m"} for answer in answers]
        if not is_logged:
            return told
        ids = await asyncio.to_thread(self.log.add, records, answers)
        return [{"answer_id": name, **answer} for name, answer in zip(ids, told, strict=True)]

    async def feedback(self, request: Request) -> Response:
        body = bytearray()
        try:
            if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
                # What a page of another site may send without being asked is no JSON.
                raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "expected the content type application/json")
            await self._receive(request, body)
            if self.marks is None:
                words = "answers are not logged here: `answers: {log: true}` in the project file"
                raise Refused(HTTPStatus.NOT_FOUND, words)
            said = await asyncio.to_thread(self.marks.add, bytes(body), self.log)
        finally:
            self.release(len(body))
        return JSONResponse(said)

    async def _receive(self, request: Request, body: bytearray) -> None:
        """Adds the body to `body`. Raises `_Unread` where not all of it was taken."""
        most = self.limits.body_bytes
        too_large = _Unread(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is over the limit of {most:,} bytes")
        if request.headers.get("content-encoding", "identity") != "identity":
            raise _Unread(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body is compressed: send it as it is")
        if int(request.headers.get("content-length", 0)) > most:
            raise too_large
        loop = asyncio.get_running_loop()
        end = loop.time() + self.limits.body_seconds
        more = True
        while more:
            try:
                async with asyncio.timeout_at(min(end, loop.time() + self.limits.pause_seconds)):
                    message = await request.receive()
            except TimeoutError:
                raise _Unread(HTTPStatus.REQUEST_TIMEOUT, "the body did not come in time") from None
            if message["type"] == "http.disconnect":
                raise _Gone
            part, more = message.get("body", b""), message.get("more_body", False)
            body += part
            try:
                self.hold(len(part))
            except Refused as error:
                raise _Unread(error.status, str(error)) from None
            if len(body) > most:
                raise too_large

    def hold(self, count: int) -> None:
        """Counts bytes that a request has sent, until `release`. Raises Refused: all together have sent too many."""
        self._held += count
        if self._held > self.limits.held_bytes:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "too many large requests are under way: try again later")

    def release(self, count: int) -> None:
        self._held -= count

    async def _rows(self, request: Request, body: bytes) -> list[Record]:
        arguments = body, request.headers.get("content-type", ""), self.columns, self.most
        rows = read_rows(*arguments) if len(body) <= _INLINE_BYTES else await asyncio.to_thread(read_rows, *arguments)
        # The model bounds each picture and recording, and so the only one of a small body without lists and objects.
        if len(rows) > 1 or any(isinstance(c, list | dict) or str(c)[:1] in ("[", "{") for c in rows[0].values()):
            await asyncio.to_thread(check_media, rows, self.limits.pixels, self.limits.seconds)
        return rows


def _steps(model: Any, with_x_m: bool = False) -> tuple[Callable[[Record, int], Any], Callable[[list[Any]], list[Any]]]:
    """How a model reads a record, and answers what it read (with its x_m, where it tells it). One without these steps
    does both in `predict`."""
    if hasattr(model, "read"):
        if not (with_x_m and hasattr(model, "x_m")):
            return model.read, model.answer

        def answer(rows: list[Any]) -> list[Any]:
            answers, places = model.answer(rows), model.x_m(rows)
            return [said | {"x_m": place} for said, place in zip(answers, places, strict=True)]

        return model.read, answer

    def predict(records: list[Record]) -> list[Any]:
        import pandas as pd

        return model.predict(None, pd.DataFrame(records)).to_dict("records")

    return lambda record, number: record, predict


class _Unread(Refused):
    """The body has not come whole."""


class _Gone(Exception):
    """The client has closed its connection."""


async def _unless_gone(request: Request, work: Any) -> Any:
    """The result of `work`, which is cancelled when the client leaves. Raises _Gone."""

    async def leave() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.ensure_future(work), asyncio.ensure_future(leave())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise _Gone
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()


class _Closing(JSONResponse):
    """Ends the connection, after what is still to come: data that nobody read would make the system reset it, and the
    client lose the answer."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [*self.raw_headers, (b"connection", b"close")]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                while (await receive()).get("more_body"):
                    pass
        await send({"type": "http.response.body", "body": b""})


async def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    content = {"error_code": error.status.name, "message": " ".join(str(error).split())}
    response = _Closing if isinstance(error, _Unread) else JSONResponse
    headers = {"retry-after": "1"} if error.status is HTTPStatus.SERVICE_UNAVAILABLE else None
    return response(content, error.status, headers)


async def _refuse_rows(_: Request, error: Exception) -> Response:
    assert isinstance(error, MlflowException)
    content = {"error_code": error.error_code, "message": " ".join(error.message.split())}
    return JSONResponse(content, error.get_http_status_code())


async def _refuse_path(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = f"{request.method} {request.url.path}: {error.detail}; ask with POST /invocations"
    return JSONResponse({"error_code": HTTPStatus(error.status_code).name, "message": words}, error.status_code)


async def _failed(_: Request, error: Exception) -> Response:
    words = f"the model failed ({type(error).__name__}); the server's log says why"
    return JSONResponse({"error_code": "INTERNAL_ERROR", "message": words}, HTTPStatus.INTERNAL_SERVER_ERROR)


async def _leave(_: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


def make_app(
    model: Any,
    columns: Sequence[str],
    limits: Limits,
    host: str,
    project: str | None = None,
    log: AnswerLog | None = None,
    feedback: FeedbackLog | None = None,
) -> Starlette:
    """The ASGI application; on loopback it answers to the names of loopback only.

    Args:
        model: loaded, with `max_rows`, and `read` and `answer`, or `predict` alone.
        columns: that it takes.
        host: at which the server listens.
        project: whose model it is, for the page.
        log: what is answered goes there, too.
        feedback: what people say of answers goes there.
    """
    service = Service(model, columns, limits, log, feedback)
    about = about_model(model, list(columns), project, limits.body_bytes)
    recordings = tuple(n for n, one in about["inputs"].items() if str(one.get("type", "")).startswith("audio/"))
    stream = Stream(service, recordings, float(about["limits"].get("max_seconds", limits.seconds)))

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        answering = asyncio.create_task(service.batcher.run())
        yield
        answering.cancel()
        if log is not None:
            await asyncio.to_thread(log.close)

    async def ping(_: Request) -> Response:
        return Response("\n", media_type="application/json")

    async def version(_: Request) -> Response:
        return Response(VERSION, media_type="application/json")

    # A web page may make a browser ask any server, under a name of the page's own that leads here.
    loopback = host in _LOOPBACK or host.startswith("127.") or host == "::1"
    hosts = [*_LOOPBACK, host] if loopback else ["*"]
    return Starlette(
        routes=[
            Route("/invocations", service.invocations, methods=["POST"]),
            Route("/feedback", service.feedback, methods=["POST"]),
            *(Route(path, ping) for path in ("/ping", "/health")),
            Route("/version", version),
            WebSocketRoute("/stream", stream.answer),
            *page_routes(about),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)],
        exception_handlers={
            Refused: _refuse,
            MlflowException: _refuse_rows,
            HTTPException: _refuse_path,
            _Gone: _leave,
            Exception: _failed,
        },
        lifespan=lifespan,
    )


def from_environment() -> Starlette:
    """What a worker serves; called in each of them."""
    from mlflow.pyfunc import load_model

    arguments = json.loads(os.environ[ARGUMENTS])
    _end_with_parent()
    config = json.loads(os.environ.get("SERVING_MODEL_CONFIG", "null"))  # MLflow's name for it
    try:
        pyfunc = load_model(Path(arguments["model"]).as_uri(), model_config=config)
        columns, model = pyfunc.metadata.get_input_schema().input_names(), pyfunc.unwrap_python_model()
        if (example := pyfunc.input_example) is not None:
            model.predict(None, example)  # what is loaded at first use is loaded before anyone waits for it
    except Exception as error:
        print(f"{arguments['model']} cannot be served: {type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(STARTUP_FAILURE)  # a worker that ends otherwise is started again
    print(f"Ready (process {os.getpid()})", file=sys.stderr, flush=True)
    project = (pyfunc.metadata.metadata or {}).get("project")
    limits, log = Limits(batch=arguments["batch"]), AnswerLog.from_environment()
    return make_app(model, columns, limits, arguments["host"], project, log, FeedbackLog.from_environment())


def _end_with_parent() -> None:
    """A worker does not outlive the process that started it, however that one ends."""

    def end(parent: BaseProcess) -> None:
        parent.join()
        os._exit(1)

    if parent := multiprocessing.parent_process():
        threading.Thread(target=end, args=[parent], daemon=True).start()
