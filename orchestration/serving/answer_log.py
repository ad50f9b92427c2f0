"""The log of answers (`answers: {log: true}` in the project file): each under an id, with the hashes of what was asked.

A server commits what it has answered together, in a thread of its own, every few seconds: an answer waits for no
commit. What waits is written when the server is asked to stop; killed, it loses the last seconds.

As in the server (`app`) nothing of ours is imported: where the table lies, and its schema, come from who starts it
(`orchestration.answer_log`).
"""

import base64
import contextlib
import hashlib
import json
import os
import secrets
import sys
import threading
import time
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from orchestration.serving.media import content, strings
from orchestration.serving.rows import Record

VARIABLE = "TRIPTYCH_ANSWER_LOG"  # of the environment, as JSON: the arguments of `AnswerLog`
_SECONDS = 5.0  # between two commits
_ROWS = 500  # that are committed at once, without waiting
_COMMITS = 100  # after which the small files become one: who looks for an answer would open each
_MOST = 100_000  # rows that wait for a lake that does not answer; more are lost, and that is said
_MOST_BYTES = 256 * 2**20  # of inputs that wait; what is more is not kept, and the answers to it are


def new_id() -> str:
    """A UUID of version 7 (RFC 9562): later ones sort behind earlier ones."""
    bits = (time.time_ns() // 1_000_000) << 80 | 7 << 76 | secrets.randbits(12) << 64
    return str(uuid.UUID(int=bits | 2 << 62 | secrets.randbits(62)))


def answer_row(
    given: Iterable[tuple[str, bytes]], told: Mapping[str, Any], modalities: Sequence[str], in_clear: Collection[str]
) -> dict[str, Any]:
    """An answer as the table `answers` has it.

    Args:
        given: modality, or column that the prompt names, and the bytes of each of its contents; of text in UTF-8.
        told: the answer as it was given, and `x_m` where the model tells it.
        in_clear: of what is given the names whose contents are kept as they are, too.
    """
    given = list(given)
    names = {name for name, _ in given}
    return {
        "answer_id": new_id(),
        "time": datetime.now(UTC),
        "model_version": told.get("model_version"),
        "dataset_fingerprint": told.get("dataset_fingerprint"),
        "subset": "+".join(name for name in modalities if name in names),
        "inputs": [
            {
                "name": name,
                "sha256": hashlib.sha256(data).hexdigest(),
                "text": _text(data) if name in in_clear else None,
            }
            for name, data in given
        ],
        "prediction": None if (said := told.get("prediction")) is None else _text(_bytes(_json(said))),
        "probability": told.get("probability"),
        "best": told.get("best"),
        "adapter": told.get("adapter"),
        "x_m": told.get("x_m"),
    }


def input_rows(given: Iterable[tuple[str, bytes]]) -> list[dict[str, Any]]:
    """What was given (as of `answer_row`) as the table `answer_inputs` has it."""
    now = datetime.now(UTC)
    return [{"sha256": hashlib.sha256(d).hexdigest(), "name": name, "time": now, "data": d} for name, d in given]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # JSON may say half of a character


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def read_schema(encoded: str) -> pa.Schema:
    """Args: `encoded` is Arrow's IPC in base64."""
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(encoded)))


def append(table: str, rows: Iterable[Mapping[str, Any]], schema: pa.Schema, options: Mapping[str, str]) -> None:
    """Commits rows to a Delta table. Of several writers each commits: deltalake tries again where another one was
    faster."""
    from deltalake import WriterProperties, write_deltalake

    write_deltalake(
        table,
        pa.Table.from_pylist(list(rows), schema),
        mode="append",
        schema_mode="merge",  # a table of older code may lack columns
        storage_options=dict(options),
        writer_properties=WriterProperties(compression="ZSTD"),
    )


class AnswerLog:
    """What a server answers, on its way into the table.

    Args:
        table: where the Delta table lies; it is there.
        options: deltalake's storage options.
        schema: of the table, as Arrow's IPC in base64.
        modalities: in their order.
        media: those whose strings are base64.
        plain: those, and columns, whose strings are no JSON of several.
        in_clear: what is kept as it was asked, too.
        origin: what is known of the model that is served, and it may not know itself.
        inputs: where what was asked is kept as well (`answer_inputs`), and the schema of that; None: nowhere.
    """

    def __init__(
        self,
        table: str,
        options: Mapping[str, str],
        schema: str,
        modalities: Sequence[str],
        media: Collection[str],
        plain: Collection[str],
        in_clear: Collection[str],
        origin: Mapping[str, Any],
        inputs: tuple[str, str] | None = None,
    ) -> None:
        self._table, self._options = table, dict(options)
        self._schema, self._inputs = read_schema(schema), inputs and (inputs[0], read_schema(inputs[1]))
        self._asked: dict[str, dict[str, Any]] = {}  # rows of `answer_inputs` that wait, by hash
        self._asked_bytes, self._kept = 0, set[str]()  # what of it was written lately: people ask the same again
        self._modalities, self._media, self._plain = modalities, media, plain
        self._in_clear, self._origin = in_clear, origin
        self._rows: list[dict[str, Any]] = []
        self._lock, self._wake, self._closing = threading.Lock(), threading.Event(), False
        self._failing, self._commits = False, 0
        self._thread = threading.Thread(target=self._run, name="answer log", daemon=True)
        self._thread.start()

    @classmethod
    def from_environment(cls) -> "AnswerLog | None":
        """None: answers are not logged."""
        given = os.environ.get(VARIABLE)
        return cls(**json.loads(given)) if given else None

    def add(self, records: Sequence[Record], answers: Sequence[Mapping[str, Any]]) -> list[str]:
        """Takes in what was answered to the records; returns the ids of the answers."""
        told = [{**answer, **{k: v for k, v in self._origin.items() if answer.get(k) is None}} for answer in answers]
        given = [list(self._given(record)) for record in records]
        rows = [
            answer_row(listed, answer, self._modalities, self._in_clear)
            for listed, answer in zip(given, told, strict=True)
        ]
        with self._lock:
            for row in () if self._inputs is None else (row for listed in given for row in input_rows(listed)):
                size, name = len(row["data"]), row["sha256"]
                if name not in self._kept and name not in self._asked and self._asked_bytes + size <= _MOST_BYTES:
                    self._asked[name], self._asked_bytes = row, self._asked_bytes + size
            self._rows += rows
            if len(self._rows) >= _ROWS:
                self._wake.set()
        return [row["answer_id"] for row in rows]

    def waiting(self, answer_id: str) -> dict[str, Any] | None:
        """The row of an answer that waits to be written."""
        with self._lock:
            return next((row for row in self._rows if row["answer_id"] == answer_id), None)

    def close(self) -> None:
        """Writes what waits."""
        self._closing = True
        self._wake.set()
        self._thread.join()

    def _given(self, record: Record) -> Iterable[tuple[str, bytes]]:
        for name, value in record.items():
            for one in strings(value, name in self._plain):
                yield name, (content(one) if name in self._media else None) or _bytes(one)

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(_SECONDS)
            self._wake.clear()
            self._write()
        self._write()

    def _compact(self) -> None:
        """Alone, by the lock of `assets.compaction`: two at once would leave rows twice. On an object store, where
        there is none, it is left to `gc`."""
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError
        from filelock import FileLock, Timeout

        if "://" in self._table:
            return
        with contextlib.suppress(DeltaError, Timeout), FileLock(Path(self._table).parent / ".compacting", timeout=0):
            DeltaTable(self._table, storage_options=self._options).optimize.compact()

    def _write(self) -> None:
        with self._lock:
            rows, self._rows = self._rows, []
            asked = dict(self._asked)
        if not rows:
            return
        try:
            if asked and self._inputs is not None:
                append(self._inputs[0], asked.values(), self._inputs[1], self._options)
                with self._lock:
                    self._asked = {name: row for name, row in self._asked.items() if name not in asked}
                    self._asked_bytes = sum(len(row["data"]) for row in self._asked.values())
                    self._kept = {*asked} if len(self._kept) > _MOST else self._kept.union(asked)
            append(self._table, rows, self._schema, self._options)
            self._failing = False
            self._commits += 1
            if self._commits % _COMMITS == 0:
                self._compact()
        except Exception as error:  # whatever the lake's storage raises: answering goes on
            with self._lock:
                self._rows = (rows + self._rows)[-_MOST:]
            if not self._failing or self._closing:
                lost = "they are lost" if self._closing else "they wait, and are tried again"
                words = " ".join(str(error).split())[:300]
                print(f"{len(rows)} answers cannot be logged ({words}); {lost}", file=sys.stderr, flush=True)
            self._failing = True
