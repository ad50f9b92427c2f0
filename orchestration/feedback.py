"""`triptych feedback`: what a person says of an answer, into the table `feedback`."""

from dataclasses import dataclass

import pyarrow as pa

from assets import pipeline
from assets.settings import Project
from orchestration.serving.feedback import feedback_row, same_answer
from training.schema import FEEDBACK


@dataclass(frozen=True)
class Marked:
    """What was written."""

    project: str
    answer_id: str
    verdict: str
    answer: str | None  # the right one, where it was told
    by: str | None
    time: str


def mark(project: Project, answer_id: str, verdict: str, answer: str | None = None, by: str | None = None) -> Marked:
    """Of what one person says of an answer the latest counts.

    Args:
        verdict: right or wrong.
        answer: the right one, of an answer that is wrong.

    Raises:
        ValueError: the project has given no such answer, or the right one that is told is the one that was given.
    """
    row, lake = feedback_row(answer_id, verdict, answer, by), pipeline.open_lake(project)
    there = lake.sql("SELECT prediction FROM answers WHERE answer_id = $id", {"id": answer_id})["prediction"]
    if not len(there):
        off = "" if project.answers.log else "; answers are not logged: `answers: {log: true}` in the project file"
        raise ValueError(f"{project.name} has given no answer {answer_id!r}{off}")
    if same_answer(there[0].as_py(), row["answer"]):
        raise ValueError(f"{row['answer']!r} is the answer that was given: mark it right")
    lake.append("feedback", [pa.Table.from_pylist([row], FEEDBACK)])
    return Marked(project.name, **{**row, "time": row["time"].isoformat()})
