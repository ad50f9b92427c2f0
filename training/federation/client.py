"""A silo's side of the wire: it asks, and waits where there is nothing yet."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict

import numpy as np
import urllib3

from training.federation import wire

_PAUSE_SECONDS = 0.3  # between two questions whether there is a round
_ALIVE_SECONDS = 2.0  # between two words of a silo that is at work
_TIMEOUT = urllib3.Timeout(connect=10, read=120)
_STATUS = {400: wire.RefusedError, 403: wire.NotAllowedError, 404: wire.UnknownSiloError, 409: wire.TooLateError}


class Coordinator:
    """The one that a silo asks. What does not answer is asked again for `patience` seconds.

    Raises (all methods):
        ConnectionError: it does not answer.
        RefusedError: it refuses what was asked.
    """

    def __init__(self, url: str, silo: str, patience: float) -> None:
        self.url, self.silo, self.patience = url.rstrip("/"), silo, patience
        self._headers = {wire.SILO: silo, "Authorization": f"Bearer {wire.secret()}"}
        self._pool = urllib3.PoolManager(timeout=_TIMEOUT, retries=False, maxsize=2)

    def join(self, joining: wire.Joining) -> None:
        self._ask("POST", "/join", json.dumps(asdict(joining)).encode())

    def plan(self) -> wire.Plan:
        """Once all silos are there."""
        while (status_and_body := self._ask("GET", "/plan"))[0] == 204:
            time.sleep(_PAUSE_SECONDS)
        return wire.read(wire.Plan, json.loads(status_and_body[1]))

    def next_round(self) -> tuple[dict[str, np.ndarray], wire.Task] | str:
        """Weights and task of the next round; a sentence once there is none any more."""
        while True:
            status, body = self._ask("GET", "/round")
            if status != 204:
                return str(json.loads(body)["ended"]) if body[:1] == b"{" else wire.unpacked(body, wire.Task)
            time.sleep(_PAUSE_SECONDS)

    def send(self, tensors: Mapping[str, np.ndarray], learned: wire.Learned) -> None:
        self._ask("POST", "/update", wire.packed(tensors, learned))

    @contextlib.contextmanager
    def kept_alive(self) -> Iterator[None]:
        """Within, the coordinator hears again and again that this silo is at work."""
        done = threading.Event()

        def say() -> None:
            while not done.wait(_ALIVE_SECONDS):
                with contextlib.suppress(wire.RefusedError, ConnectionError):
                    self._once("POST", "/alive", b"{}")

        thread = threading.Thread(target=say, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        until = time.monotonic() + self.patience
        while True:
            try:
                return self._once(method, path, body)
            except ConnectionError:
                if time.monotonic() > until:
                    raise
                time.sleep(2 * _PAUSE_SECONDS)

    def _once(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        try:
            answer = self._pool.request(method, self.url + path, body=body, headers=self._headers, redirect=False)
        except urllib3.exceptions.HTTPError as error:
            raise ConnectionError(f"the coordinator at {self.url} does not answer ({type(error).__name__})") from None
        if answer.status in (200, 204):
            return answer.status, answer.data
        try:
            why = str(json.loads(answer.data)["error"])
        except (ValueError, KeyError, TypeError):
            raise ConnectionError(f"the coordinator at {self.url} answers with HTTP {answer.status}") from None
        raise _STATUS.get(answer.status, wire.RefusedError)(why)
