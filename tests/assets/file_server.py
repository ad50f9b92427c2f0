"""A server on loopback that gives files as web servers and as S3 stores do, and fails as they do when told to."""

import contextlib
import hashlib
import socket
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.message import Message
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

OLD = 1_700_000_000.0  # long ago: times to be relied on


class FileServer(ThreadingHTTPServer):
    """`files` by path. `faults` of a path are used up by one GET each: a status; "cut": half of the body, then the
    connection ends; "drop": it ends at once; "short": half, said to be all; a function: called before the answer."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, tuple[bytes, float]] = {}
        self.faults: dict[str, list] = defaultdict(list)
        self.moved: dict[str, str] = {}  # path -> where it redirects to
        self.asked: list[str] = []  # METHOD path [range]
        self.headers: list[Message] = []  # of what was asked
        self.etags, self.times, self.ranges, self.lengths, self.heads = True, True, True, True, True
        self.url = f"http://127.0.0.1:{self.server_port}"

    def put(self, path: str, content: bytes, time: float = OLD) -> None:
        self.files[path] = content, time

    def handle_error(self, *_: object) -> None:
        """Whoever has enough hangs up."""

    def reads(self, word: str = "") -> list[str]:
        """The GETs of files since the last call."""
        found = [line for line in self.asked if line.startswith("GET") and "list-type" not in line and word in line]
        self.asked.clear()
        return found


@contextmanager
def serving() -> Iterator[FileServer]:
    with FileServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FileServer

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(405) if not self.server.heads else self._give(head=True)

    def do_CONNECT(self) -> None:
        """As a proxy; of a request with a whole URL it looks at the path alone, as if it were every server."""
        self.server.asked.append(f"CONNECT {self.path}")
        self.server.headers.append(self.headers)
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host, int(port)), 5) as there:
            self.connection.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
            other = threading.Thread(target=_pass_on, args=(there, self.connection), daemon=True)
            other.start()
            _pass_on(self.connection, there)
            other.join()
        self.close_connection = True

    def do_GET(self) -> None:
        self._give(head=False)

    def _give(self, head: bool) -> None:
        server, parts = self.server, urlsplit(self.path)
        path = unquote(parts.path).lstrip("/")
        if (asked_for := unquote(self.path).lstrip("/")) in server.files:  # a file whose query names it
            path = asked_for
        asked = self.headers.get("Range", "")
        server.asked.append(f"{self.command} {self.path} {asked}".rstrip())
        server.headers.append(self.headers)
        fault = server.faults[path].pop(0) if not head and server.faults[path] else None
        if callable(fault):
            fault()
        if isinstance(fault, int):
            return self._answer(fault)
        if fault == "drop":
            self.close_connection = True
            return self.connection.close()
        if path in server.moved:
            return self._answer(302, Location=server.moved[path])
        if "list-type" in (query := parse_qs(parts.query)):
            return self._answer(200, self._listed(path, query))
        if head and "/" not in path and any(name.startswith(f"{path}/") for name in server.files):
            return self._answer(200)  # the bucket
        if path not in server.files:
            return self._answer(404)
        self._send(path, asked, head, fault)

    def _send(self, path: str, asked: str, head: bool, fault: object) -> None:
        server = self.server
        content, time = server.files[path]
        etag = _etag(content)
        headers = {"Last-Modified": formatdate(time, usegmt=True)} if server.times else {}
        headers |= {"ETag": etag} if server.etags else {}
        headers |= {"Accept-Ranges": "bytes"} if server.ranges else {}
        same = self.headers.get("If-Range") in (None, headers.get("ETag"), headers.get("Last-Modified"))
        status = 200
        if asked and server.ranges and same:
            first, last = asked.removeprefix("bytes=").split("-")
            end = min(int(last) + 1 if last else len(content), len(content))
            if int(first) >= len(content):
                return self._answer(416)
            headers["Content-Range"], status = f"bytes {first}-{end - 1}/{len(content)}", 206
            content = content[int(first) : end]
        if fault == "short":
            content = content[: len(content) // 2]
        self._answer(status, content, head, cut=fault == "cut", **headers)

    def _answer(self, status: int, body: bytes = b"", head: bool = False, cut: bool = False, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        chunked = not self.server.lengths and status == 200
        self.send_header("Transfer-Encoding", "chunked") if chunked else self.send_header(
            "Content-Length", str(len(body))
        )
        self.end_headers()
        if head or self.command == "HEAD":
            return
        sent = body[: len(body) // 2] if cut else body
        self.wfile.write(b"%x\r\n%s\r\n" % (len(sent), sent) + (b"" if cut else b"0\r\n\r\n") if chunked else sent)
        if cut:
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()

    def _listed(self, bucket: str, query: dict[str, list[str]]) -> bytes:
        prefix, slash = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
        below = {name.removeprefix(f"{bucket}/"): name for name in sorted(self.server.files)}
        keys = {key: name for key, name in below.items() if key != name and key.startswith(prefix)}
        folders = {prefix + key[len(prefix) :].partition("/")[0] + "/" for key in keys if "/" in key[len(prefix) :]}
        rows = []
        for key, name in keys.items():
            if not slash or "/" not in key[len(prefix) :]:
                content, time = self.server.files[name]
                facts = (
                    f"<LastModified>{_iso(time)}</LastModified><ETag>{_etag(content)}</ETag><Size>{len(content)}</Size>"
                )
                rows.append(f"<Contents><Key>{escape(key)}</Key>{facts}</Contents>")
        rows += [f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>" for f in sorted(folders) if slash]
        head = f"<Name>{bucket}</Name><IsTruncated>false</IsTruncated><KeyCount>{len(rows)}</KeyCount>"
        return f"<ListBucketResult>{head}{''.join(rows)}</ListBucketResult>".encode()


def _pass_on(one: socket.socket, other: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := one.recv(2**16):
            other.sendall(data)
        other.shutdown(socket.SHUT_WR)


def _etag(content: bytes) -> str:
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'


def _iso(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
