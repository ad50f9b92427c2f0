"""Asks the champion: rows of text, image and speech to answers that name model version and dataset."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assets.contents import portions
from assets.names import as_object
from assets.settings import Project
from assets.tables import read_table
from orchestration.answer_log import Given, log_answers, watched
from orchestration.serving.rows import near_miss
from training import catalog
from training.schema import MODALITIES, RAW

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS = 256  # rows that are read at once, if their media are small


def file_of(modality: str, value: str, root: Path = Path()) -> Path | str:
    """What is given of a modality: the file that `value` names, relative to `root`; the value itself of a text, and of
    a list, for features that read vectors."""
    is_list = value.strip().startswith("[") and value.strip().endswith("]")
    return value if is_list or catalog.MODALITIES.load(modality).is_text else root / value


def given(row: Mapping[str, Any], modality: str) -> list[Any]:
    """What a row has of a modality, as a list of any length."""
    value = row.get(modality)
    return value if isinstance(value, list) else [] if value is None or value == "" else [value]


def named_value(text: str, columns: Sequence[str]) -> tuple[str, str]:
    """Of NAME=VALUE. Raises ValueError where NAME is none of the columns that the prompt names."""
    name, is_said, value = text.partition("=")
    if not is_said or name not in columns:
        there = f"that model.prompt names ({', '.join(columns)})" if columns else ": model.prompt names none"
        raise ValueError(f"--column {text!r}: expected NAME=VALUE with a column {there}")
    return name, value


def rows_of_table(
    path: Path, columns: Sequence[str] = (), several: Mapping[str, int] | None = None
) -> list[dict[str, Any]]:
    """The rows of a table (`assets.tables`) with columns text, image and speech (`file_of`), and those that the prompt
    names; empty is absent. Where a row may have several of a modality, a cell is `a.jpg;b.jpg` or a list.

    Raises:
        ValueError: it cannot be read, none of the three columns is there, one is misspelt, or a file is not there.
    """
    rows: list[dict[str, Any]] = []
    for record in read_table(path, optional=(*MODALITIES, *columns)):
        if record.problem:
            raise ValueError(f"{path}: {record.problem}")
        if not rows and (slip := near_miss(record.values, MODALITIES)):
            raise ValueError(f"{path}: {slip}")
        if not record.values.keys() & set(MODALITIES):
            raise ValueError(f"{path}: has columns {', '.join(record.values)}, expected one of {', '.join(MODALITIES)}")
        inputs: dict[str, Any] = {}
        for m in MODALITIES:
            cell = record.values.get(m) or ""
            names = _listed(cell) if m in (several or {}) else [cell]
            files = [file_of(m, name, path.parent) for name in names if name]
            for file in files:
                if isinstance(file, Path) and not file.is_file():
                    raise ValueError(f"{path} line {record.line}: {m} {file} does not exist")
            inputs[m] = files if len(files) > 1 else files[0] if files else None
        rows.append(inputs | {name: record.values.get(name) or None for name in columns})
    if not rows:
        raise ValueError(f"{path}: has no rows")
    return rows


def _listed(cell: str) -> list[str]:
    """What a cell names: between semicolons, or as a JSON list of names; a list of numbers is one vector."""
    if cell.startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            listed = [name for name in json.loads(cell) if name is not None]
            return listed if listed and all(isinstance(name, str) for name in listed) else [cell]
    return [name.strip() for name in cell.split(";")]


def answer(
    project: Project, rows: Sequence[Mapping[str, Any]], version: str = "champion", best: int = 5
) -> list[dict[str, Any]]:
    """The answers (`training.records.Answer.to_json`) of a version (number or alias), in the order of the rows, by the
    code that was logged with it; each with its `answer_id`, where they are logged.

    Media are given as files, or as their bytes; beside them the columns that `model.prompt` names, as strings. A row
    that cannot be answered has no prediction, and the reason in `error`.

    Raises:
        ValueError: there is no such version, or not one of the rows can be answered.
    """
    import pyarrow as pa

    from training import model_registry
    from training.records import Answer
    from training.score import X_M, answer_rows

    version = model_registry.find_version(project.mlflow_uri, project.name, version)
    check_inputs(project, rows)
    model = model_registry.local_model(project.mlflow_uri, project.name, version, project.folder / "cache")
    given: list[Given] = []
    schema, batches = raw_schema(), raw_rows(rows, project.model.columns)
    if project.answers.log:
        schema, batches = schema.with_metadata({X_M: b"true"}), watched(batches, given)
    answers = answer_rows(model, pa.RecordBatchReader.from_batches(schema, batches)).to_pylist()
    if all(row["error"] for row in answers):
        raise ValueError(refusal(rows, 1, answers[0]["error"]))
    dataset = model_registry.version_tags(project.mlflow_uri, project.name, version).get("dataset_fingerprint")
    origin = {"model_version": version, "dataset_fingerprint": dataset}
    below = project.model.abstain_below
    told = [
        {**Answer.from_row(row).to_json(below, best), **origin, **({"error": row["error"]} if row["error"] else {})}
        for row in answers
    ]
    return log_answers(project, given, told, [row.get("x_m") for row in answers]) if project.answers.log else told


def check_inputs(project: Project, rows: Sequence[Mapping[str, Any]]) -> None:
    """Raises ValueError where a row has a modality that the project's models do not take, or more of it."""
    for m in MODALITIES:
        if m not in project.modalities and any(row.get(m) for row in rows):
            takes = ", ".join(project.modalities)
            raise ValueError(f"{project.name} has no source of {m}, so its models take {takes} only")
        counts, most = [len(given(row, m)) for row in rows], project.align.several.get(m, 1)
        if (count := max(counts, default=0)) > most:
            where = f"row {counts.index(count) + 1}" if len(rows) > 1 else "the row"
            expected = f"{most} at most (align.several)" if most > 1 else "one"
            raise ValueError(f"{where} has {count} of {m}, and {project.name} takes {expected}")


def raw_schema() -> "pa.Schema":
    """Of rows that are asked: as `training.schema.RAW`, without what only samples have."""
    import pyarrow as pa

    names = (*MODALITIES, *(f"{m}_more" for m in MODALITIES), "attributes")
    return pa.schema([RAW.field(name) for name in names])


def raw_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> "Iterator[pa.RecordBatch]":
    """What is given, with media as files or bytes and `columns` of the prompt, as a model reads it (`raw_schema`); a
    portion at a time."""
    import pyarrow as pa

    schema = raw_schema()
    sizes = [sum(_size(value) for m in MODALITIES for value in given(row, m)) for row in rows]
    for part in portions(list(rows), sizes, _ROWS):
        values = {
            m: [[_content(one, schema.field(m).type) for one in given(row, m)] for row in part] for m in MODALITIES
        }
        first = {m: [(some or [None])[0] for some in listed] for m, listed in values.items()}
        more = {f"{m}_more": [some[1:] for some in listed] for m, listed in values.items()}
        named = [as_object({name: row[name] for name in columns if row.get(name)}) for row in part]
        yield pa.record_batch({**first, **more, "attributes": named}, schema)


def _content(value: Any, kind: Any) -> Any:
    """Of a file, a string or bytes, as the column of raw rows has it."""
    import pyarrow as pa

    content = value.read_bytes() if isinstance(value, Path) else value
    is_text = pa.types.is_large_string(kind)
    return content.encode() if isinstance(content, str) and not is_text else content


def _size(value: Any) -> int:
    return value.stat().st_size if isinstance(value, Path) else len(value)


def refusal(rows: Sequence[Mapping[str, Any]], number: int, error: str) -> str:
    """Why a row (from 1) has no answer, with the file at fault.

    Args:
        error: as the model says it, with the modality first where it is about one.
    """
    which, _, words = error.partition(": ")
    modality, *place = which.split(" ")  # of several `image 2 of 3`
    files = given(rows[number - 1], modality)
    file = files[int(place[0]) - 1 if place and place[0].isdigit() else 0] if files else None
    said = f"{modality} {file}: {words}" if isinstance(file, Path) else error
    return said if len(rows) == 1 else f"row {number} cannot be answered: {said}"
