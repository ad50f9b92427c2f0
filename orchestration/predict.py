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
from training.files import write_bytes
from training.schema import MODALITIES, RAW
from training.views import Places, most, views

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS = 256  # rows that are read at once, if their media are small


def file_of(modality: str, value: str, root: Path = Path()) -> Path | str:
    """What is given of a modality: the file that `value` names, relative to `root`; the value itself of a text, and of
    a list, for features that read vectors."""
    is_list = value.strip().startswith("[") and value.strip().endswith("]")
    return value if is_list or catalog.MODALITIES.load(modality).is_text else root / value


def given(row: Mapping[str, Any], modality: str) -> list[Any]:
    """What a row has of a modality, as a list of any length; of views in their order there."""
    value = row.get(modality)
    if isinstance(value, Mapping):
        return list(value.values())
    return value if isinstance(value, list) else [] if value is None or value == "" else [value]


def one_or_all(values: list[Any]) -> Any:
    """As a row has them: a list only where there are several."""
    return values if len(values) > 1 else values[0]


def by_view(words: Sequence[str], views: Sequence[str], option: str) -> dict[str, str]:
    """View -> what is given of it, each as VIEW=VALUE. Raises ValueError where one is no such view, or stands twice."""
    named: dict[str, str] = {}
    for text in words:
        view, is_said, value = text.partition("=")
        if not is_said or view.strip() not in views:
            raise ValueError(f"{option} {text!r}: expected VIEW=VALUE with a view ({', '.join(views)})")
        if view.strip() in named:
            raise ValueError(f"{option} {text!r}: {view.strip()} is given twice")
        named[view.strip()] = value.strip()
    return {view: value for view, value in named.items() if value}


def named_value(text: str, columns: Sequence[str]) -> tuple[str, str]:
    """Of NAME=VALUE. Raises ValueError where NAME is none of the columns that the prompt names."""
    name, is_said, value = text.partition("=")
    if not is_said or name not in columns:
        there = f"that model.prompt names ({', '.join(columns)})" if columns else ": model.prompt names none"
        raise ValueError(f"--column {text!r}: expected NAME=VALUE with a column {there}")
    return name, value


def rows_of_table(
    path: Path, columns: Sequence[str] = (), several: Mapping[str, Places] | None = None
) -> list[dict[str, Any]]:
    """The rows of a table (`assets.tables`) with columns text, image and speech (`file_of`), and those that the prompt
    names; empty is absent. Where a row may have several of a modality, a cell is `a.jpg;b.jpg` or a list (several texts
    are one); of views
    `front=a.jpg;left=b.jpg` or an object, or a column holds one of them: `image.front`.

    Raises:
        ValueError: it cannot be read, none of the three columns is there, one is misspelt, or a file is not there.
    """
    rows: list[dict[str, Any]] = []
    places = several or {}
    of_views = [f"{m}.{view}" for m in places for view in views(places[m])]
    known = (*MODALITIES, *of_views)
    for record in read_table(path, optional=(*known, *columns)):
        if record.problem:
            raise ValueError(f"{path}: {record.problem}")
        if not rows and (slip := near_miss([name for name in record.values if name not in of_views], MODALITIES)):
            raise ValueError(f"{path}: {slip}")
        if not record.values.keys() & set(known):
            raise ValueError(f"{path}: has columns {', '.join(record.values)}, expected one of {', '.join(known)}")
        try:
            inputs = {m: _in_row(record.values, m, places.get(m, 1), path.parent) for m in MODALITIES}
        except ValueError as error:
            raise ValueError(f"{path} line {record.line}: {error}") from None
        rows.append(inputs | {name: record.values.get(name) or None for name in columns})
    if not rows:
        raise ValueError(f"{path}: has no rows")
    return rows


def _in_row(values: Mapping[str, str | None], modality: str, places: Places, folder: Path) -> Any:
    """What a row of a table names of a modality: one, a list, or by view; None where nothing. Raises ValueError."""
    cell, names = values.get(modality) or "", views(places)
    if names:
        words = [f"{view}={value}" for view in names if (value := values.get(f"{modality}.{view}"))]
        given: dict[Any, str] = by_view([*_of_views(cell, modality), *words], names, modality)
    else:
        given = dict(enumerate(_listed(cell, modality) if most(places) > 1 else [cell]))
    files = {name: file_of(modality, value, folder) for name, value in given.items() if value}
    for file in files.values():
        if isinstance(file, Path) and not file.is_file():
            raise ValueError(f"{modality} {file} does not exist")
    return (files if names else one_or_all(list(files.values()))) if files else None


def _of_views(cell: str, modality: str) -> list[str]:
    """What a cell names, each as VIEW=VALUE: between semicolons (but for texts), or in a JSON object."""
    with contextlib.suppress(ValueError, RecursionError):
        if isinstance(named := json.loads(cell), dict):
            return [f"{view}={value}" for view, value in named.items() if value]
    parts = [cell] if catalog.MODALITIES.load(modality).is_text else cell.split(";")
    return [words for words in parts if words.strip()]


def _listed(cell: str, modality: str) -> list[str]:
    """What a cell names: between semicolons, or as a JSON list of names; a list of numbers is one vector. Several texts
    are a list, since a semicolon may be part of one."""
    if cell.startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            listed = [name for name in json.loads(cell) if name is not None]
            return listed if listed and all(isinstance(name, str) for name in listed) else [cell]
    return [cell] if catalog.MODALITIES.load(modality).is_text else [name.strip() for name in cell.split(";")]


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
    schema, batches = raw_schema(), raw_rows(rows, project.asked_columns)
    if project.answers.log:
        schema, batches = schema.with_metadata({X_M: b"true"}), watched(batches, given)
    answers = answer_rows(model, pa.RecordBatchReader.from_batches(schema, batches)).to_pylist()
    if all(row["error"] for row in answers):
        raise ValueError(refusal(rows, 1, answers[0]["error"]))
    dataset = model_registry.version_tags(project.mlflow_uri, project.name, version).get("dataset_fingerprint")
    origin = {"model_version": version, "dataset_fingerprint": dataset}
    below = project.model.abstain_below
    told = [{**Answer.from_row(row).to_json(below, best), **origin, **_beside(row)} for row in answers]
    return log_answers(project, given, told, [row.get("x_m") for row in answers]) if project.answers.log else told


def _beside(row: Mapping[str, Any]) -> dict[str, Any]:
    """Why a row is not answered; and of a model with adapters of groups whose answered."""
    error = {"error": row["error"]} if row["error"] else {}
    return {**({"adapter": row["adapter"]} if "adapter" in row else {}), **error}


def written(answers: Sequence[Mapping[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """The answers with what was drawn or said as files in a folder, which stand in their place: the number of the row,
    where several answer the name, and the suffix of the format. A file that is there already gives way."""
    from training.media_files import file_of_url, is_media

    folder.mkdir(parents=True, exist_ok=True)

    def kept(value: Any, name: str) -> Any:
        if isinstance(value, Mapping):
            return {part: kept(one, f"{name}.{part}") for part, one in value.items()}
        if not is_media(value):
            return value
        data, suffix = file_of_url(value)
        path = folder / f"{name}{suffix}"
        write_bytes(path, data)
        return str(path)

    told = []
    for number, row in enumerate(answers, 1):
        prediction = kept(row["prediction"], str(number))
        parts = {name: part | {"prediction": prediction[name]} for name, part in row.get("outputs", {}).items()}
        told.append({**row, "prediction": prediction, **({"outputs": parts} if parts else {})})
    return told


def check_inputs(project: Project, rows: Sequence[Mapping[str, Any]]) -> None:
    """Raises ValueError where a row has a modality that the project's models do not take, or more of it."""
    for m in MODALITIES:
        if m not in project.inputs and any(row.get(m) for row in rows):
            why = f"answers with {m}" if m in project.modalities else f"has no source of {m}"
            raise ValueError(f"{project.name} {why}, so its models take {', '.join(project.inputs)} only")
        places = project.align.places.get(m, 1)
        counts, allowed, names = [len(given(row, m)) for row in rows], most(places), views(places)
        if (count := max(counts, default=0)) > allowed:
            where = f"row {counts.index(count) + 1}" if len(rows) > 1 else "the row"
            expected = f"{allowed} at most (align.several)" if allowed > 1 else "one"
            raise ValueError(f"{where} has {count} of {m}, and {project.name} takes {expected}")
        for number, row in enumerate(rows, 1):
            said = row.get(m) if isinstance(row.get(m), Mapping) else None
            if (given(row, m) and (said is None) == bool(names)) or (said and not set(said) <= set(names)):
                where = f"row {number}" if len(rows) > 1 else "the row"
                expected = f"each by its view ({', '.join(names)})" if names else "no views: align.several names none"
                raise ValueError(f"{where}: {project.name} takes of {m} {expected}")


def raw_schema() -> "pa.Schema":
    """Of rows that are asked: as `training.schema.RAW`, without what only samples have."""
    import pyarrow as pa

    names = (*MODALITIES, *(f"{m}_{part}" for part in ("more", "views") for m in MODALITIES), "attributes")
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
        named = {
            m: [list(v) if isinstance(v := row.get(m), Mapping) and v else None for row in part] for m in MODALITIES
        }
        said = {f"{m}_views": cells for m, cells in named.items()}
        others = [as_object({name: row[name] for name in columns if row.get(name)}) for row in part]
        yield pa.record_batch({**first, **more, **said, "attributes": others}, schema)


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
    modality, _, place = which.partition(" ")  # of several `image 2 of 3`, of views `image front`
    row, files = rows[number - 1].get(modality), given(rows[number - 1], modality)
    at = list(row).index(place) if isinstance(row, Mapping) and place in row else 0
    at = int(place.split()[0]) - 1 if isinstance(row, list) and place[:1].isdigit() else at
    file = files[at] if files else None
    said = f"{modality} {file}: {words}" if isinstance(file, Path) else error
    return said if len(rows) == 1 else f"row {number} cannot be answered: {said}"
