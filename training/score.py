"""Answers raw rows with a trained model, in a process of its own that runs the code logged with the model.

    python -P -m training.score MODEL ROWS ANSWERS

MODEL is a bundle (config.json, model.safetensors, processor.json, tokenizer) or the folder of a logged model that
holds one. ROWS is Parquet with sample_id (may be absent), text (string), image and speech (binary, as files), of
several in a row the further ones as lists (image_more) and of which view each is (image_views), attributes (a JSON
object of other columns, of which the model's prompt may name some); ANSWERS becomes Parquet with sample_id, prediction,
error, probability, best (`training.schema.BEST`), parts (`training.schema.PARTS`), in the same order of rows.
Two versions bring two packages called `training`, so they are never loaded in one process: `score_command` says how to
start one.
"""

import argparse
import subprocess
import sys
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from training import children
from training.batches import counted, parts
from training.device import chosen_device
from training.guard import guarded
from training.media import MediaError
from training.processor import Processor
from training.records import Answer
from training.schema import BEST, PARTS
from training.settings import TextCleaning
from training.views import Places, most, placed, views

if TYPE_CHECKING:
    from training.attribution import Explainer

_BATCH = 64  # rows that are decoded and answered together


X_M = b"x_m"  # in the metadata of ROWS: the answers shall say it, too; code of a version that does not know it does not


def answers_schema(answer: pa.DataType, with_x_m: bool = False, with_adapter: bool = False) -> pa.Schema:
    """Of ANSWERS; a prediction has the output's type (`training.outputs.base.Output.arrow_type`). Of a model with
    adapters also whose answered; null: none's."""
    columns = {"sample_id": pa.string(), "prediction": answer, "error": pa.string()}
    columns |= {"probability": pa.float64(), "best": BEST, "parts": PARTS}
    columns |= {"adapter": pa.string()} if with_adapter else {}
    return pa.schema({**columns, **({"x_m": pa.list_(pa.float32())} if with_x_m else {})})


class Answerer:
    """A bundle at work: rows of `Processor.row` to answers."""

    def __init__(self, bundle: Path) -> None:
        """Raises ValueError if the folder holds no model."""
        from transformers import AutoTokenizer

        from training.collator import make_collator
        from training.variants.base import load_bundle

        if not (bundle / "config.json").is_file():
            raise ValueError(f"{bundle} holds no model: expected a folder with config.json and model.safetensors")
        self.processor = Processor.from_pretrained(bundle)
        device = chosen_device()
        self._model = load_bundle(bundle, device)
        config = self._model.config
        # With its config: the tokenizer would look for one of its own, and warn that this one is not known to it.
        self._tokenizer = AutoTokenizer.from_pretrained(bundle, config=config, trust_remote_code=False)
        self.groups = config.groups  # that have an adapter: column and names
        group = [self.groups["column"]] if self.groups else []
        # Those that the model reads.
        self.modalities, self.columns = tuple(config.modalities), tuple(dict.fromkeys([*config.columns, *group]))
        self.several = config.several
        self.output = self._model.output
        options = [kind.options for kind in self.processor.modalities.values()]
        self._cleaning = next((one for one in options if isinstance(one, TextCleaning)), TextCleaning())
        self._collate = make_collator(self._model, self._tokenizer, self.processor.features)

    def read(self, inputs: Mapping[str, Any], columns: Mapping[str, str] | None = None) -> dict[str, Any]:
        """The row of `Processor.row` for text, image and speech as given, or a list of several of a modality, or a
        mapping of its views, with the other columns that the prompt names (`training.data.named_columns`). Raises
        ValueError that names the modality."""
        from training.language import clean_cell

        # In the form that the tables' cells have.
        given = columns or {}
        cells = {name: unicodedata.normalize("NFC", given.get(name) or "").strip() for name in self.columns}
        cells = {name: clean_cell(cell, self._cleaning) for name, cell in cells.items()}
        row = self.processor.row() | {"columns": cells}
        for modality, value in inputs.items():
            names, values = list(value) if isinstance(value, Mapping) else None, listed(value)
            try:
                placed(names, len(values), self.several.get(modality, 1))
            except ValueError as error:
                raise ValueError(f"{modality}: the row {error}") from None
            said = names or [f"{n} of {len(values)}" for n in range(1, len(values) + 1)]
            named = [f"{modality} {which}" if names or len(values) > 1 else modality for which in said]
            row[modality], *more = [self._content(modality, *one) for one in zip(values, named, strict=True)]
            row |= ({f"{modality}_more": more} if more else {}) | ({f"{modality}_views": names} if names else {})
        try:
            self._collate.check_prompts([row])
        except ValueError as error:
            raise ValueError(f"{self._collate.prompt or self.columns[0]}: {error}") from error
        return row

    def _content(self, modality: str, value: Any, name: str) -> dict[str, Any]:
        try:
            columns: dict[str, Any] = self.processor.row(**{modality: value})[modality]
        except MediaError as error:
            raise ValueError(f"{name}: {error}") from error
        return columns

    def adapter(self, row: Mapping[str, Any]) -> str | None:
        """The group whose adapter answers a row that `read` gave; None: the shared model does."""
        name = row["columns"].get(self.groups["column"]) if self.groups else None
        return name if name in self.groups.get("names", ()) else None

    def __call__(self, rows: Sequence[dict[str, Any]]) -> list[Answer]:
        return [a for batch in self._batches(rows) for a in self._model.scored_answers(batch, self._tokenizer)]

    def explainer(self) -> "Explainer":
        """What says why the model answers a row as it does. Raises ValueError: its form has no gradients."""
        from training.attribution import Explainer
        from training.model import FusionModel

        if not isinstance(self._model, FusionModel):
            raise ValueError("this version is a form that cannot be explained: ask the version that it was made from")
        return Explainer(self._model, self._collate, self.processor)

    def x_m(self, rows: Sequence[dict[str, Any]]) -> list[list[float]]:
        """Where the model places each row: `FusionModel.pooled_x_m`."""
        return [place for batch in self._batches(rows) for place in self._model.pooled_x_m(batch).tolist()]

    def _batches(self, rows: Sequence[dict[str, Any]]) -> Iterator[Any]:
        return (self._collate([rows[n] for n in part]) for part in parts(counted(rows, self.modalities), _BATCH))


def listed(value: Any) -> list[Any]:
    """What is given of a modality: one, a list, or a mapping of views."""
    return list(value.values()) if isinstance(value, Mapping) else value if isinstance(value, list) else [value]


def bundle_of(model: Path) -> Path:
    """The bundle in the folder of a logged model; a folder that is none is taken as the bundle itself."""
    import yaml

    described = model / "MLmodel"
    if not described.is_file():
        return model
    flavor = yaml.safe_load(described.read_text(encoding="utf-8"))["flavors"]["python_function"]
    return model / flavor["artifacts"]["bundle"]["path"]


def score(model: Path, asked: Path, answers: Path) -> None:
    """Answers a Parquet file, a batch of rows at a time, none larger than a row group.

    A row that this model cannot read (its limits may be others, or it has none of the model's modalities) has no
    prediction, which counts as wrong, and the reason in `error`.
    """
    answerer = Answerer(bundle_of(model))
    file = pq.ParquetFile(asked)
    groups = ([group] for group in range(file.num_row_groups))
    with_x_m = X_M in (file.schema_arrow.metadata or {})
    schema = answers_schema(answerer.output.arrow_type, with_x_m, bool(answerer.groups))
    with pq.ParquetWriter(answers, schema) as writer:
        for batch in chain.from_iterable(file.iter_batches(_BATCH, group) for group in groups):
            rows = batch.to_pylist()
            counts = [max(len(row.get(f"{m}_more") or ()) + 1 for m in answerer.modalities) for row in rows]
            for part in parts(counts, _BATCH):
                answered = answer_batch(answerer, [rows[n] for n in part], with_x_m)
                writer.write_table(pa.Table.from_pylist(answered, schema))


def answer_batch(answerer: Answerer, rows: Sequence[Mapping[str, Any]], with_x_m: bool = False) -> list[dict[str, Any]]:
    """Rows of ANSWERS for raw rows."""
    from training.data import named_columns

    results = [{"sample_id": row.get("sample_id"), "prediction": None, "error": None} for row in rows]
    read: dict[int, dict[str, Any]] = {}
    for number, row in enumerate(rows):
        inputs = {m: some for m in answerer.modalities if (some := given(row, m, answerer.several.get(m, 1)))}
        try:
            if not inputs:
                raise ValueError(f"has nothing that this model reads ({', '.join(answerer.modalities)})")
            read[number] = answerer.read(inputs, named_columns(row.get("attributes"), answerer.columns))
        except ValueError as error:
            results[number]["error"] = str(error)
    for number, answer in zip(read, answerer(list(read.values())), strict=True):
        results[number] |= {"prediction": answer.prediction, "probability": answer.probability}
        results[number] |= {"best": answer.best_rows(), "parts": answer.part_rows()}
        results[number] |= {"adapter": answerer.adapter(read[number])} if answerer.groups else {}
    for number, place in zip(read, answerer.x_m(list(read.values())) if with_x_m else (), strict=with_x_m):
        results[number]["x_m"] = place
    return results


def given(row: Mapping[str, Any], modality: str, places: Places) -> list[Any] | dict[str, Any]:
    """What a raw row has of a modality, by views where they are said and the model knows any. Of a sample, which a
    model of fewer may be judged by, no more than the model reads: the first ones, or those of its views."""
    values, known = [row.get(modality), *(row.get(f"{modality}_more") or ())], views(places)
    said, is_sample = row.get(f"{modality}_views"), row.get("sample_id") is not None
    if known and said:
        named = {view: value for view, value in zip(said, values, strict=True) if value is not None}
        return {view: value for view, value in named.items() if view in known or not is_sample}
    there = [value for value in values if value is not None]
    return there[: most(places)] if is_sample else there


def score_command(
    model: Path, rows: Path, answers: Path, module: str = "training.score"
) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a process that scores with the code of `model`; with this code for a bare bundle.

    Args:
        module: another one that takes the same arguments.
    """
    code = model / "code" if (model / "code").is_dir() else Path(__file__).parent.parent
    # -P: no `training` of the working directory comes before the model's own. -B: nothing is written among artifacts.
    argv = [sys.executable, "-P", "-B", "-m", module, str(model), str(rows), str(answers)]
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
