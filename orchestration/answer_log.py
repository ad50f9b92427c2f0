"""Who asks a model: that its answers are logged, where the project file says so (`answers`), into the table `answers`.

Hashes tell whether something was asked, and what was answered; what was asked itself is not kept unless the file says
so (`answers.texts`, `answers.inputs`), since it may be anybody's.
"""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from assets import pipeline
from assets.lake import sql_among
from assets.settings import Project
from orchestration.serving.answer_log import VARIABLE, answer_row, input_rows
from orchestration.serving.feedback import VARIABLE as FEEDBACK_VARIABLE
from training.catalog import MODALITIES
from training.schema import ANSWER_INPUTS, ANSWERS, FEEDBACK

Given = list[tuple[str, bytes]]  # of a row: name of each input, and its bytes


def log_environment(project: Project, version: str) -> dict[str, str]:
    """What the server of a version finds in its environment; the table is made, so that all know how it is written."""
    if not project.answers.log:
        return {}
    from training.model_registry import version_tags

    lake = pipeline.open_lake(project)
    for name in ("answers", "feedback", *(["answer_inputs"] if project.answers.inputs else [])):
        lake.create(name)
    tags = version_tags(project.mlflow_uri, project.name, version)
    log = {
        "table": lake.table_uri("answers"),
        "options": dict(lake.storage_options),
        "schema": _encoded(ANSWERS),
        "modalities": project.modalities,
        "media": [m for m in project.modalities if not project.features.modality(m).as_string],
        "plain": [*(m for m in _texts(project) if m not in project.align.several), *project.asked_columns],
        "in_clear": _in_clear(project),
        "origin": {"model_version": version, "dataset_fingerprint": tags.get("dataset_fingerprint")},
        "inputs": (lake.table_uri("answer_inputs"), _encoded(ANSWER_INPUTS)) if project.answers.inputs else None,
    }
    marks = {
        "table": lake.table_uri("feedback"),
        "answers": lake.table_uri("answers"),
        "schema": _encoded(FEEDBACK),
        "options": dict(lake.storage_options),
        "project": project.name,
    }
    return {VARIABLE: json.dumps(log), FEEDBACK_VARIABLE: json.dumps(marks)}


def _encoded(schema: pa.Schema) -> str:
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def _texts(project: Project) -> list[str]:
    return [m for m in project.modalities if MODALITIES.load(m).is_text]


def _in_clear(project: Project) -> list[str]:
    return [*_texts(project), *project.asked_columns] if project.answers.texts else []


def watched(batches: Iterator[pa.RecordBatch], given: list[Given]) -> Iterator[pa.RecordBatch]:
    """The batches of raw rows; what each row gives is put into `given` meanwhile."""
    for batch in batches:
        for row in batch.to_pylist():
            listed: Given = []
            for name in MODALITIES.names():
                values = [value for value in (row[name], *(row[f"{name}_more"] or ())) if value is not None]
                listed += [(name, value.encode() if isinstance(value, str) else value) for value in values]
            listed += [(name, str(value).encode()) for name, value in json.loads(row["attributes"] or "{}").items()]
            given.append(listed)
        yield batch


def log_answers(
    project: Project, given: Sequence[Given], told: Sequence[dict[str, Any]], places: Sequence[Any]
) -> list[dict[str, Any]]:
    """The answers, each with the id under which it is now logged; one to a row that cannot be answered has none.

    Args:
        places: x_m of each row; None where the model does not tell.
    """
    in_clear, rows, answers, asked = _in_clear(project), list[Mapping[str, Any]](), [], dict[str, dict[str, Any]]()
    for inputs, answer, place in zip(given, told, places, strict=True):
        if "error" in answer:
            answers.append(answer)
            continue
        rows.append(answer_row(inputs, answer | {"x_m": place}, MODALITIES.names(), in_clear))
        answers.append({"answer_id": rows[-1]["answer_id"], **answer})
        asked |= {row["sha256"]: row for row in input_rows(inputs)} if project.answers.inputs else {}
    lake = pipeline.open_lake(project)
    if asked:
        kept = lake.sql(f"SELECT sha256 FROM answer_inputs WHERE {sql_among('sha256', asked)}")["sha256"].to_pylist()
        new = [row for name, row in asked.items() if name not in kept]
        lake.append("answer_inputs", [pa.Table.from_pylist(new, ANSWER_INPUTS)])
    lake.append("answers", [pa.Table.from_pylist(rows, ANSWERS)])
    return answers
