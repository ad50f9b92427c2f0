"""Explains a model's answers to raw rows, in a process of its own that runs the code logged with the model.

    python -P -m training.explain MODEL ROWS FOLDER

MODEL and ROWS are those of `training.score`. FOLDER gets a picture N.png of each row, from 0 on, and explained.json: a
list with sample_id, prediction, probability, picture, how (modality -> the method), and error, where there is none.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from training.score import Answerer, bundle_of, given, listed


def explain(model: Path, asked: Path, folder: Path) -> None:
    answerer = Answerer(bundle_of(model))
    rows = (row for batch in pq.ParquetFile(asked).iter_batches(1) for row in batch.to_pylist())
    told = []
    for number, row in enumerate(rows):
        try:
            told.append(_explained(answerer, row, folder / f"{number}.png"))
        except ValueError as error:
            told.append({"sample_id": row.get("sample_id"), "error": str(error)})
    (folder / "explained.json").write_text(json.dumps(told))


def _explained(answerer: Answerer, row: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Raises ValueError: it cannot be read, or answers of this kind are not explained."""
    from training.data import named_columns
    from training.evaluation_pictures import attribution_picture

    inputs = {m: some for m in answerer.modalities if (some := given(row, m, answerer.several.get(m, 1)))}
    if not inputs:
        raise ValueError(f"has nothing that this model reads ({', '.join(answerer.modalities)})")
    read = answerer.read(inputs, named_columns(row.get("attributes"), answerer.columns))
    (answer,) = answerer([read])
    if not isinstance(answer.prediction, str):
        raise ValueError("the model does not answer with one class or text: other answers are not explained")
    first = {m: listed(value)[0] for m, value in inputs.items()}
    data = {m: value.encode() if isinstance(value, str) else value for m, value in first.items()}
    contents = {m: answerer.processor.decode(m, value) for m, value in data.items()}
    maps = answerer.explainer()(read, contents, answer.prediction)
    if not maps:
        raise ValueError(f"nothing of {', '.join(inputs)} can be pointed at: these features are vectors")
    sure = "" if answer.probability is None else f" (probability {answer.probability:.2f})"
    label = "" if row.get("label") is None else f"; label: {row['label']}"
    path.write_bytes(attribution_picture(maps, f"{answer.prediction}{sure}{label}"))
    how = {one.modality: one.how for one in maps}
    answered = {"prediction": answer.prediction, "probability": answer.probability}
    return {"sample_id": row.get("sample_id"), **answered, "picture": path.name, "how": how, "error": None}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.explain", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of a bundle or of a logged model")
    parser.add_argument("rows", type=Path, help="Parquet: sample_id, text, image, speech, attributes")
    parser.add_argument("folder", type=Path, help="of the pictures to write, which is there")
    arguments = parser.parse_args()
    explain(arguments.model, arguments.rows, arguments.folder)


if __name__ == "__main__":
    main()
