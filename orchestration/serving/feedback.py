"""What people say of answers, into the table `feedback`.

    curl http://127.0.0.1:5001/feedback -H 'Content-Type: application/json' -d '{"answer_id": "019ac3e2-...", ...}'

with "verdict" (right or wrong), and where they are known "answer" (the right one) and "by".

As in the server (`app`) nothing of ours is imported: where the tables lie comes from who starts it
(`orchestration.answer_log`).
"""

import json
import os
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from orchestration.serving.answer_log import AnswerLog, append, read_schema
from orchestration.serving.rows import Refused, bad

VARIABLE = "TRIPTYCH_FEEDBACK"  # of the environment, as JSON: the arguments of `FeedbackLog`
VERDICTS = ("right", "wrong")
_LONGEST = 20_000  # characters of an answer that is told, or of who tells it
_WRITTEN = 60.0  # seconds after which an answer is in the table, whichever worker gave it
_FIELDS = ("answer_id", "verdict", "answer", "by")


def feedback_row(answer_id: str, verdict: str, answer: str | None, by: str | None) -> dict[str, Any]:
    """As the table `feedback` has it. Raises ValueError: it is no feedback."""
    if verdict not in VERDICTS:
        raise ValueError(f"the verdict is {verdict!r}, expected {' or '.join(VERDICTS)}")
    answer, by = ((text or "").strip() or None for text in (answer, by))
    if answer is not None and verdict != "wrong":
        raise ValueError("the right answer is told of an answer that is wrong: this one is marked right")
    for name, text in (("answer", answer), ("by", by)):
        if len(text or "") > _LONGEST:
            raise ValueError(f"{name} has {len(text or ''):,} characters, expected {_LONGEST:,} at most")
    return {"answer_id": answer_id, "time": datetime.now(UTC), "verdict": verdict, "answer": answer, "by": by}


def same_answer(prediction: str | None, answer: str | None) -> bool:
    """Whether the answer that is told is the one that was given. Args: `prediction` is JSON, as `answers` has it."""
    return answer is not None and prediction is not None and str(json.loads(prediction)).strip() == answer


class FeedbackLog:
    """Args: `table` and `answers` are where the Delta tables lie, `schema` is of the first (`answer_log.read_schema`),
    `options` are deltalake's, `project` is whose answers these are."""

    def __init__(self, table: str, answers: str, schema: str, options: Mapping[str, str], project: str) -> None:
        self._table, self._answers, self._schema = table, answers, read_schema(schema)
        self._options, self._project = dict(options), project

    @classmethod
    def from_environment(cls) -> "FeedbackLog | None":
        """None: answers are not logged."""
        given = os.environ.get(VARIABLE)
        return cls(**json.loads(given)) if given else None

    def add(self, body: bytes, log: AnswerLog | None = None) -> dict[str, Any]:
        """Writes what a request says; returns it. Raises Refused. Args: `log` has answers that are not written yet."""
        said = _fields(body)
        try:
            row = feedback_row(said["answer_id"], said["verdict"], said.get("answer"), said.get("by"))
        except ValueError as error:
            raise bad(str(error)) from None
        waiting = None if log is None else log.waiting(row["answer_id"])
        if same_answer((waiting or self._stored(row["answer_id"]))["prediction"], row["answer"]):
            raise bad("the right answer that is told is the one that was given: mark it right")
        append(self._table, [row], self._schema, self._options)
        return row | {"time": row["time"].isoformat()}

    def _stored(self, name: str) -> dict[str, Any]:
        """The prediction of an answer. Raises Refused: there is no such answer."""
        import pyarrow.dataset as ds
        from deltalake import DeltaTable

        table = DeltaTable(self._answers, storage_options=self._options).to_pyarrow_dataset()
        there = table.to_table(columns=["prediction"], filter=ds.field("answer_id") == name).to_pylist()
        if not there and time.time() - _made(name) < _WRITTEN:
            words = f"answer {name!r} is not written yet: try again in a few seconds"
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, words)
        if not there:
            raise Refused(HTTPStatus.NOT_FOUND, f"{self._project} has given no answer {name[:80]!r}")
        return dict(there[0])


def _fields(body: bytes) -> dict[str, str]:
    try:
        said = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise bad(f"the body is not JSON: {error}") from None
    needed = isinstance(said, dict) and {"answer_id", "verdict"} <= said.keys() <= {*_FIELDS}
    if not needed or not all(isinstance(said[n], str) or (n in _FIELDS[2:] and said[n] is None) for n in said):
        expected = '{"answer_id": "...", "verdict": "right" or "wrong"}, and "answer", "by" where they are known'
        raise bad(f"the body is no feedback, expected {expected}")
    return dict(said)


def _made(answer_id: str) -> float:
    """When an id was made (`answer_log.new_id`), in seconds since 1970; 0 of what is no such id."""
    try:
        return (uuid.UUID(answer_id).int >> 80) / 1000
    except ValueError:
        return 0.0
