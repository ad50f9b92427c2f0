"""Asks the champion: rows of text, image and speech to answers that name model version and dataset."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from assets.settings import Project
from training.schema import MODALITIES


def rows_of_table(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV with columns text, image and speech (file names relative to it; empty is absent).

    Raises:
        ValueError: none of the three columns is there, or a file is not.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        present = [m for m in MODALITIES if m in (reader.fieldnames or ())]
        if not present:
            raise ValueError(f"{path}: has columns {reader.fieldnames}, expected at least one of text, image, speech")
        rows = []
        for row in reader:
            given: dict[str, Any] = {m: row[m] or None for m in present}
            for m in ("image", "speech"):
                if given.get(m):
                    given[m] = path.parent / given[m]
                    if not given[m].is_file():
                        raise ValueError(f"{path}, line {reader.line_num}: {m} {given[m]} does not exist")
            rows.append(given)
    if not rows:
        raise ValueError(f"{path}: has no rows")
    return rows


def answer(project: Project, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The champion's answers, in the order of the rows, by the code that was logged with it.

    Raises:
        ValueError: the project has no champion yet, or an input cannot be read.
    """
    import pyarrow as pa

    from training import registry
    from training.score import answer_rows

    version = registry.alias(project.mlflow_uri, project.name, "champion")
    if version is None:
        raise ValueError(f"{project.name} has no champion yet: `triptych run` trains one")
    columns: dict[str, list[Any]] = {"text": [row.get("text") for row in rows]}
    for m in MODALITIES[1:]:
        columns[m] = [Path(row[m]).read_bytes() if row.get(m) else None for row in rows]
    schema = pa.schema([("text", pa.large_string()), ("image", pa.large_binary()), ("speech", pa.large_binary())])
    model = registry.fetch_model(project.mlflow_uri, project.name, version)
    answers = answer_rows(model, pa.table(columns, schema)).to_pylist()
    for number, row in enumerate(answers, 1):
        if row["error"]:
            raise ValueError(f"row {number} cannot be answered: {row['error']}")
    dataset = registry.version_tags(project.mlflow_uri, project.name, version).get("dataset_fingerprint")
    return [
        {"prediction": row["prediction"], "model_version": version, "dataset_fingerprint": dataset} for row in answers
    ]
