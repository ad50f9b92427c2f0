"""Answers raw rows with a trained model, in a process of its own that runs the code logged with the model.

    python -P -m training.score MODEL ROWS ANSWERS

MODEL is a bundle (config.json, model.safetensors, processor.json, tokenizer) or the folder of a logged model that
holds one. ROWS is Parquet with sample_id (may be absent), text (string), image and speech (binary, as files), of
several in a row the further ones as lists (image_more), attributes (a JSON object of other columns, of which the
model's prompt may name some); ANSWERS becomes Parquet with sample_id, prediction, error, probability, best
(`training.schema.BEST`), parts (`training.schema.PARTS`), in the same order of rows.
Two versions bring two packages called `training`, so they are never loaded in one process: `score_command` says how to
start one.
"""

import argparse
import subprocess
import sys
import tempfile
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from training import children
from training.guard import guarded
from training.media import MediaError
from training.processor import Processor
from training.records import Answer
from training.schema import BEST, PARTS

_BATCH = 64  # rows that are decoded and answered together


X_M = b"x_m"  # in the metadata of ROWS: the answers shall say it, too; code of a version that does not know it does not


def answers_schema(answer: pa.DataType, with_x_m: bool = False) -> pa.Schema:
    """Of ANSWERS; a prediction has the output's type (`training.outputs.base.Output.arrow_type`)."""
    columns = {"sample_id": pa.string(), "prediction": answer, "error": pa.string()}
    columns |= {"probability": pa.float64(), "best": BEST, "parts": PARTS}
    return pa.schema({**columns, **({"x_m": pa.list_(pa.float32())} if with_x_m else {})})


class Answerer:
    """A bundle at work: rows of `Processor.row` to answers."""

    def __init__(self, bundle: Path) -> None:
        """Raises ValueError if the folder holds no model."""
        import torch
        from transformers import AutoTokenizer

        from training.collator import make_collator
        from training.model import FusionModel

        if not (bundle / "config.json").is_file():
            raise ValueError(f"{bundle} holds no model: expected a folder with config.json and model.safetensors")
        self.processor = Processor.from_pretrained(bundle)
        device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        self._model = FusionModel.from_pretrained(bundle).eval().to(device)
        config = self._model.config
        # With its config: the tokenizer would look for one of its own, and warn that this one is not known to it.
        self._tokenizer = AutoTokenizer.from_pretrained(bundle, config=config, trust_remote_code=False)
        self.modalities, self.columns = tuple(config.modalities), config.columns  # those that the model reads
        self.several = config.several
        self.output = self._model.output
        self._collate = make_collator(self._model, self._tokenizer, self.processor.features)

    def read(self, inputs: Mapping[str, Any], columns: Mapping[str, str] | None = None) -> dict[str, Any]:
        """The row of `Processor.row` for text, image and speech as given, or a list of several of a modality, with the
        other columns that the prompt names (`training.data.named_columns`). Raises ValueError that names the
        modality."""
        # In the form that the tables' cells have.
        given = columns or {}
        cells = {name: unicodedata.normalize("NFC", given.get(name) or "").strip() for name in self.columns}
        row = self.processor.row() | {"columns": cells}
        for modality, value in inputs.items():
            values = value if isinstance(value, list) else [value]
            if len(values) > (most := self.several.get(modality, 1)):
                raise ValueError(f"{modality}: {len(values)} are given, and the model takes {most} in a row")
            row[modality], *more = [self._content(modality, values, n) for n in range(len(values))]
            row |= {f"{modality}_more": more} if more else {}
        try:
            self._collate.check_prompts([row])
        except ValueError as error:
            raise ValueError(f"{self._collate.prompt or self.columns[0]}: {error}") from error
        return row

    def _content(self, modality: str, values: Sequence[Any], number: int) -> dict[str, Any]:
        try:
            columns: dict[str, Any] = self.processor.row(**{modality: values[number]})[modality]
        except MediaError as error:
            which = f" {number + 1} of {len(values)}" if len(values) > 1 else ""
            raise ValueError(f"{modality}{which}: {error}") from error
        return columns

    def __call__(self, rows: Sequence[dict[str, Any]]) -> list[Answer]:
        parts = [rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH)]
        return [a for part in parts for a in self._model.scored_answers(self._collate(part), self._tokenizer)]

    def x_m(self, rows: Sequence[dict[str, Any]]) -> list[list[float]]:
        """Where the model places each row: `FusionModel.pooled_x_m`."""
        parts = [rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH)]
        return [place for part in parts for place in self._model.pooled_x_m(self._collate(part)).tolist()]


def bundle_of(model: Path) -> Path:
    """The bundle in the folder of a logged model; a folder that is none is taken as the bundle itself."""
    import yaml

    described = model / "MLmodel"
    if not described.is_file():
        return model
    flavor = yaml.safe_load(described.read_text(encoding="utf-8"))["flavors"]["python_function"]
    return model / flavor["artifacts"]["bundle"]["path"]


def score(model: Path, rows: Path, answers: Path) -> None:
    """Answers a Parquet file, a batch of rows at a time, none larger than a row group.

    A row that this model cannot read (its limits may be others, or it has none of the model's modalities) has no
    prediction, which counts as wrong, and the reason in `error`.
    """
    answerer = Answerer(bundle_of(model))
    file = pq.ParquetFile(rows)
    groups = ([group] for group in range(file.num_row_groups))
    with_x_m = X_M in (file.schema_arrow.metadata or {})
    schema = answers_schema(answerer.output.arrow_type, with_x_m)
    with pq.ParquetWriter(answers, schema) as writer:
        for batch in chain.from_iterable(file.iter_batches(_BATCH, group) for group in groups):
            writer.write_table(pa.Table.from_pylist(answer_batch(answerer, batch.to_pylist(), with_x_m), schema))


def answer_batch(answerer: Answerer, rows: Sequence[Mapping[str, Any]], with_x_m: bool = False) -> list[dict[str, Any]]:
    """Rows of ANSWERS for raw rows."""
    from training.data import named_columns

    results = [{"sample_id": row.get("sample_id"), "prediction": None, "error": None} for row in rows]
    read: dict[int, dict[str, Any]] = {}
    for number, row in enumerate(rows):
        inputs = {m: given for m in answerer.modalities if (given := _given(row, m, answerer.several.get(m, 1)))}
        try:
            if not inputs:
                raise ValueError(f"has nothing that this model reads ({', '.join(answerer.modalities)})")
            read[number] = answerer.read(inputs, named_columns(row.get("attributes"), answerer.columns))
        except ValueError as error:
            results[number]["error"] = str(error)
    for number, answer in zip(read, answerer(list(read.values())), strict=True):
        results[number] |= {"prediction": answer.prediction, "probability": answer.probability}
        results[number] |= {"best": answer.best_rows(), "parts": answer.part_rows()}
    for number, place in zip(read, answerer.x_m(list(read.values())) if with_x_m else (), strict=with_x_m):
        results[number]["x_m"] = place
    return results


def _given(row: Mapping[str, Any], modality: str, most: int) -> list[Any]:
    """What a raw row has of a modality. Of a sample, which a model of fewer may be judged by, no more than the model
    reads: the first ones."""
    given = [value for value in (row.get(modality), *(row.get(f"{modality}_more") or ())) if value is not None]
    return given if row.get("sample_id") is None else given[:most]


def score_command(model: Path, rows: Path, answers: Path) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a process that scores with the code of `model`; with this code for a bare bundle."""
    code = model / "code" if (model / "code").is_dir() else Path(__file__).parent.parent
    # -P: no `training` of the working directory comes before the model's own. -B: nothing is written among artifacts.
    argv = [sys.executable, "-P", "-B", "-m", "training.score", str(model), str(rows), str(answers)]
    return guarded(argv), children.environment(code)


def answer_rows(model: Path, rows: pa.RecordBatchReader) -> pa.Table:
    """The answers (`answers_schema`) of a model to raw rows, from a process of its own; batch by batch, as media are
    large.

    Raises:
        RuntimeError: the process failed; the message carries the end of its output.
    """
    with tempfile.TemporaryDirectory() as temporary:
        inputs, answers = Path(temporary) / "rows.parquet", Path(temporary) / "answers.parquet"
        with pq.ParquetWriter(inputs, rows.schema) as writer:
            for batch in rows:
                writer.write_batch(batch)
        argv, env = score_command(model, inputs, answers)
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"the model in {model} could not answer:\n{done.stderr.strip()[-2000:]}")
        return pq.read_table(answers)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.score", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of a bundle or of a logged model")
    parser.add_argument("rows", type=Path, help="Parquet: sample_id, text, image, speech, attributes")
    parser.add_argument("answers", type=Path, help="Parquet to write: sample_id, prediction, error")
    arguments = parser.parse_args()
    score(arguments.model, arguments.rows, arguments.answers)


if __name__ == "__main__":
    main()
