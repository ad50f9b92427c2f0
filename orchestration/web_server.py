"""Dagster's web server, which answers only requests that were meant for it.

    python -m orchestration.web_server [options of dagster-webserver]

A page of a foreign site may let its own name point to 127.0.0.1 (DNS rebinding) and so speak with what listens there:
Dagster would start runs for it. The name it asks for gives it away: the header `Host`. MLflow's server does the same.
"""

import fnmatch
import ipaddress
import os
import re
import socket
from typing import Any

ALLOWED = "MLFLOW_SERVER_ALLOWED_HOSTS"  # more names, as MLflow's server reads them: a.example.org,*.local
_HOST = re.compile(r"(\[[^]]*\]|[^:]*)(:\d+)?")


class OnlyOurHosts:
    """ASGI middleware: 403 where the header `Host` is neither an IP address, nor this machine's name, nor allowed."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.names = ["localhost", socket.gethostname().lower()]
        self.patterns = list(filter(None, os.environ.get(ALLOWED, "").lower().replace(" ", "").split(",")))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] in ("http", "websocket"):
            host = dict(scope["headers"]).get(b"host", b"").decode("latin-1").lower()
            if not self.knows(host):
                return await _refuse(scope["type"], send)
        return await self.app(scope, receive, send)

    def knows(self, host: str) -> bool:
        """Args: `host` is a name or an address, perhaps with a port."""
        if (match := _HOST.fullmatch(host)) is None:
            return False
        name = match[1]
        if name in self.names or _is_address(name):
            return True
        return any(fnmatch.fnmatch(asked, pattern) for asked in (name, host) for pattern in self.patterns)


async def _refuse(kind: str, send: Any) -> None:
    if kind == "websocket":
        return await send({"type": "websocket.close"})  # before it is accepted: 403
    words = f"Invalid Host header: if the name is this server's, add it to {ALLOWED}\n"
    await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": words.encode()})


def _is_address(name: str) -> bool:
    """Of an IP address nobody else is in charge, as of a name."""
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def main() -> None:
    from dagster_webserver.cli import main as serve
    from dagster_webserver.webserver import DagsterWebserver

    theirs = DagsterWebserver.create_asgi_app
    DagsterWebserver.create_asgi_app = lambda self, **options: OnlyOurHosts(theirs(self, **options))  # type: ignore
    serve()


if __name__ == "__main__":
    main()
