"""What coordinator and silos know of each other: who is there, the present round, what came of it.

Server threads write what silos say, the coordinator's own thread waits for it; a lock guards both.
"""

import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from training.federation.settings import FederationSettings
from training.federation.wire import (
    Joining,
    Learned,
    NotAllowedError,
    Plan,
    RefusedError,
    Task,
    TooLateError,
    UnknownSiloError,
)

Log = Callable[[str], None]
Checked = Callable[[Mapping[str, np.ndarray], Learned], None]  # raises RefusedError
_LOOK_SECONDS = 0.2
_GOODBYE_SECONDS = 10


@dataclass
class Update:
    """What a silo made of a round's weights."""

    silo: str
    changes: Mapping[str, np.ndarray]
    learned: Learned


@dataclass
class _Round:
    task: Task
    body: bytes  # as silos get it
    silos: frozenset[str]
    check: Checked
    asked: set[str] = field(default_factory=set)  # have fetched it
    updates: dict[str, Update] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)  # silo -> why


class Board:
    def __init__(self, settings: FederationSettings, parts: Mapping[str, str], log: Log) -> None:
        """Args: `parts` as a silo's `Joining` has to have them."""
        self.settings, self.parts, self.log = settings, dict(parts), log
        self.plan: Plan | None = None
        self.ended: str | None = None  # what is said to silos when all is done
        self._joined: dict[str, Joining] = {}
        self._seen: dict[str, float] = {}
        self._round: _Round | None = None
        self._told: set[str] = set()  # know that all is done
        self._changed = threading.Condition()

    # What silos do.

    def join(self, joining: Joining) -> None:
        """Raises RefusedError: its settings differ."""
        if others := sorted(n for n, known in self.parts.items() if joining.parts.get(n) != known):
            raise NotAllowedError(
                f"{joining.silo} cannot take part: {', '.join(others)} differ from the coordinator's. All project "
                "files need the same `model`, `training`, `features` and `federation`, and all machines the same "
                "versions of what makes features"
            )
        unknown = sorted(set(joining.modalities).difference(self.settings.modalities))
        if unknown or (joining.rows == 0 and not any(joining.modalities.values())):
            what = f"has {', '.join(unknown)}, which the model does not read" if unknown else "has no training row"
            raise NotAllowedError(f"{joining.silo} cannot take part: it {what}")
        with self._changed:
            again = joining.silo in self._joined
            self._joined[joining.silo] = joining
            self._seen[joining.silo] = time.monotonic()
            self._changed.notify_all()
        have = ", ".join(m if n < 0 else f"{m} in {n:,}" for m, n in joining.modalities.items() if n)
        rows = "" if joining.rows < 0 else f"{joining.rows:,} training rows, "
        self.log(f"silo {joining.silo} {'is back' if again else 'joined'}: {rows}{have}")

    def alive(self, silo: str) -> None:
        """Raises UnknownSiloError: it has not joined."""
        with self._changed:
            if silo not in self._joined:
                raise UnknownSiloError(f"{silo} has not joined this session: join first")
            self._seen[silo] = time.monotonic()

    def task(self, silo: str) -> bytes | None:
        """What a silo is to do now; None: nothing yet."""
        self.alive(silo)
        with self._changed:
            of = self._round
            if of is None or silo not in of.silos or silo in of.updates or silo in of.refused:
                return None
            of.asked.add(silo)
            return of.body

    def told(self, silo: str) -> None:
        """It knows that all is done."""
        with self._changed:
            self._told.add(silo)
            self._changed.notify_all()

    def take(self, silo: str, changes: Mapping[str, np.ndarray], learned: Learned) -> None:
        """Raises RefusedError: it is of another round, or no update of these weights."""
        self.alive(silo)
        with self._changed:
            of = self._round
            now = None if of is None else (of.task.number, of.task.attempt)
            if of is None or (learned.number, learned.attempt) != now or silo not in of.silos:
                raise TooLateError(f"round {learned.number} is over: what {silo} learned in it is left out")
            if silo in of.updates or silo in of.refused:
                raise TooLateError(f"{silo} has answered round {learned.number}: the first answer counts")
        try:
            of.check(changes, learned)
        except RefusedError as error:
            with self._changed:
                of.refused[silo] = str(error)
                self._changed.notify_all()
            raise
        with self._changed:
            of.updates[silo] = Update(silo, changes, learned)
            self._changed.notify_all()

    # What the coordinator does.

    @property
    def joined(self) -> dict[str, Joining]:
        with self._changed:
            return dict(self._joined)

    def present(self) -> list[str]:
        """Silos that have been heard of lately, by name."""
        with self._changed:
            return self._present()

    def _present(self) -> list[str]:
        now = time.monotonic()
        return sorted(s for s, seen in self._seen.items() if now - seen < self.settings.silent_seconds)

    def gather(self, wanted: int) -> list[str]:
        """Waits for so many silos, and for `wait_seconds` at most where there are `least` already.

        Raises:
            RuntimeError: fewer than `least` came.
        """
        of, until = self.settings, time.monotonic() + self.settings.wait_seconds
        with self._changed:
            while len(there := self._present()) < wanted and time.monotonic() < until:
                self._changed.wait(_LOOK_SECONDS)
        if len(there) < of.least:
            missing = ", ".join(sorted(set(of.silos).difference(there)))
            raise RuntimeError(
                f"{len(there)} silos are there after {of.wait_seconds:g} s, and federation.least is {of.least}: start "
                f"`triptych silo` at {missing}, or wait longer (federation.wait_seconds); the next run goes on from "
                "the last round"
            )
        return there

    def hold_round(self, task: Task, body: bytes, silos: Collection[str], check: Checked) -> dict[str, Update]:
        """Gives silos a round and waits for what each makes of it: until all have answered, been refused, fallen
        silent or taken too long. Returns the updates that were taken, by silo."""
        of = _Round(task, body, frozenset(silos), check)
        until = time.monotonic() + self.settings.round_seconds
        with self._changed:
            self._round = of
            while True:
                waited = of.silos.difference(of.updates, of.refused).intersection(self._present())
                if not waited or time.monotonic() > until:
                    break
                self._changed.wait(_LOOK_SECONDS)
            self._round = None
            updates, refused = dict(of.updates), dict(of.refused)
        for silo, why in sorted(refused.items()):
            self.log(f"round {task.number}: what {silo} sent is refused: {why}")
        for silo in sorted(of.silos.difference(updates, refused)):
            said = "took too long" if silo in waited else "fell silent"
            self.log(f"round {task.number}: {silo} {said} and is left out; it may come back")
        return updates

    def dismiss(self) -> None:
        """Waits a little until all that are there know that all is done."""
        until = time.monotonic() + _GOODBYE_SECONDS
        with self._changed:
            while set(self._present()).difference(self._told) and time.monotonic() < until:
                self._changed.wait(_LOOK_SECONDS)
