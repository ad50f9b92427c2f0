"""The coordinator over HTTP: silos ask, nobody asks them, so that they need no open port."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from training.federation import wire
from training.federation.board import Board

_JSON_BYTES = 2**22  # of a silo's labels, mostly
_START_SECONDS = 30


@contextlib.contextmanager
def serving(board: Board, address: str, update_bytes: Callable[[], int]) -> Iterator[str]:
    """Listens while the block runs; gives the URL.

    Args:
        address: HOST:PORT; port 0 takes a free one.
        update_bytes: the most that an update may have.

    Raises:
        OSError: the port is taken.
    """
    import uvicorn

    host, _, port = address.rpartition(":")
    try:
        listening = socket.create_server((host.strip("[]"), int(port)))
    except OSError as error:
        raise OSError(f"federation.listen is {address!r}: {error.strerror or error}; choose another") from None
    app = _app(board, wire.secret(), update_bytes)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, ws="none", lifespan="off", server_header=False, proxy_headers=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    until = time.monotonic() + _START_SECONDS
    while not server.started and thread.is_alive() and time.monotonic() < until:
        time.sleep(0.01)
    try:
        yield f"http://{host}:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        listening.close()


def _app(board: Board, secret: str, update_bytes: Callable[[], int]) -> Any:
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    def name_of(request: Request) -> str:
        silo = request.headers.get(wire.SILO, "")
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        known = silo in board.settings.silos
        if not (known and scheme == "Bearer" and wire.is_token(token, secret, silo)):
            raise wire.NotAllowedError(f"{silo or 'nobody'} is no silo of this federation, or has another token")
        return silo

    async def body_of(request: Request, most: int) -> bytes:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > most:
                raise wire.RefusedError(f"the body has more than {most:,} bytes")
        return bytes(body)

    async def json_of(request: Request) -> dict[str, Any]:
        try:
            said = json.loads(await body_of(request, _JSON_BYTES))
        except ValueError as error:
            raise wire.RefusedError(f"the body is no JSON: {error}") from None
        return said if isinstance(said, dict) else {}

    async def join(request: Request) -> Response:
        silo = name_of(request)
        joining = wire.read(wire.Joining, (await json_of(request)) | {"silo": silo})
        await run_in_threadpool(board.join, joining)
        return JSONResponse({})

    async def plan(request: Request) -> Response:
        board.alive(name_of(request))
        return Response(status_code=204) if board.plan is None else JSONResponse(asdict(board.plan))

    async def task(request: Request) -> Response:
        silo = name_of(request)
        board.alive(silo)
        if board.ended is not None:
            board.told(silo)
            return JSONResponse({"ended": board.ended})
        body = board.task(silo)
        if body is None:
            return Response(status_code=204)
        return Response(body, media_type="application/octet-stream")

    async def update(request: Request) -> Response:
        silo = name_of(request)
        body = await body_of(request, update_bytes())
        await run_in_threadpool(lambda: board.take(silo, *wire.unpacked(body, wire.Learned)))
        return JSONResponse({})

    async def alive(request: Request) -> Response:
        board.alive(name_of(request))
        return JSONResponse({})

    async def refused(_request: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, status_code=getattr(error, "status", 400))

    return Starlette(
        routes=[
            Route("/join", join, methods=["POST"]),
            Route("/plan", plan),
            Route("/round", task),
            Route("/update", update, methods=["POST"]),
            Route("/alive", alive, methods=["POST"]),
        ],
        exception_handlers={wire.RefusedError: refused},
    )
