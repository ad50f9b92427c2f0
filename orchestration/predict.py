"""Asks the champion: rows of text, image and speech to answers that name model version and dataset."""

import base64
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


def encode(row: Mapping[str, Any]) -> dict[str, str | None]:
    """A row as the served model takes it: three optional strings, media as base64."""
    media = {m: base64.b64encode(Path(row[m]).read_bytes()).decode() if row.get(m) else None for m in MODALITIES[1:]}
    return {"text": row.get("text"), **media}


def answer(project: Project, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The champion's answers, in the order of the rows.

    Raises:
        ValueError: the project has no champion yet.
    """
    import pandas as pd

    from training.tracking import load_champion

    model = load_champion(project.mlflow_uri, project.name)
    table = pd.DataFrame([encode(row) for row in rows], columns=list(MODALITIES), dtype=object)
    return model.predict(table).to_dict("records")
