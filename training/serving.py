"""The served model: MLflow's pyfunc, as models-from-code. Logged by `training.model_registry.log_model`.

    curl http://127.0.0.1:5001/invocations -H 'Content-Type: application/json' \
      -d '{"dataframe_records": [{"text": "what do you see?", "image": "<base64>"}, {"speech": "<base64>"}]}'

Input (`dataframe_records` or `dataframe_split`): optional string columns text, image, speech; media are files as base64
(standard or URL-safe, or a data: URL); of a modality that the model reads as vectors, a JSON list of numbers or of such
lists; where it takes several in a row (`align.several`), a JSON array of such strings, or of views an object of them by
name; and the columns that its prompt names. Null, NaN, "" and a missing column mean: not given. Output: prediction,
model_version (null where the model was not fetched as a version), dataset_fingerprint; probability (that the prediction
is right; null where the output has none), abstained (true: the probability is below `abstain_below`, and the prediction
null), best (the most probable answers, each with its probability); of a model with adapters of groups, adapter (the
group whose it was; null: the shared model answered); of a model that gives several answers at once also
outputs, where each has these four of its own. What cannot be understood is INVALID_PARAMETER_VALUE, HTTP status 400,
and names row (from 0) and column. `model_config` (a server takes it from the environment's SERVING_MODEL_CONFIG, as
JSON) bounds a request: max_rows, max_bytes, max_pixels, max_seconds, max_characters; the limits of the model's
processor hold as well. `abstain_below` and `best`, how many, are there, too.
"""

import base64
import binascii
import contextlib
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import yaml
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel

from training.catalog import MODALITIES as MODALITY_KINDS
from training.processor import Processor
from training.records import ANSWERS
from training.schema import MODALITIES
from training.score import Answerer
from training.settings import MediaLimits
from training.views import Places, most, views

# What a request may ask for unless model_config says otherwise. A service answers strangers: less than a training set.
REQUEST_LIMITS = {"max_rows": 256, "max_bytes": 16 * 2**20, "max_pixels": 25_000_000, "max_seconds": 120.0,
                  "max_characters": 20_000}  # fmt: skip
OUTPUTS = ("prediction", "model_version", "dataset_fingerprint", "probability", "abstained", "best")


class ServedModel(PythonModel):
    def load_context(self, context: Any) -> None:
        bundle = Path(context.artifacts["bundle"])
        config = REQUEST_LIMITS | ANSWERS | dict(context.model_config or {})
        self.answerer = Answerer(bundle)
        processor = self.answerer.processor
        processor.limits = stricter(processor.limits, config)
        self.max_rows = int(config["max_rows"])
        self.abstain_below, self.best = float(config["abstain_below"]), int(config["best"])
        self.dataset_fingerprint = config.get("dataset_fingerprint")
        self.version = registered_version(bundle)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        if len(model_input) > self.max_rows:
            raise _invalid(f"{len(model_input)} rows are over the limit of {self.max_rows} (max_rows): send fewer")
        # MLflow drops what the signature does not know; without any column it forgets how many rows there were.
        given = [name for name in (*MODALITIES, *self.answerer.columns) if name in model_input.columns]
        if not set(given).intersection(MODALITIES):
            raise _invalid(f"no column is one of {', '.join(MODALITIES)}: give at least one")
        records = zip(*(model_input[m].tolist() for m in given), strict=True)
        rows = [self.read(dict(zip(given, record, strict=True)), number) for number, record in enumerate(records)]
        several = ["outputs"] if self.answerer.output.members else []
        adapter = ["adapter"] if self.answerer.groups else []
        return pd.DataFrame(self.answer(rows), columns=[*OUTPUTS, *adapter, *several])

    # What a server uses (`orchestration.serving`, which is another version's: it stays): what it tells people, the
    # two steps of `predict`, by which it answers many requests together, and what it logs beside the answers.

    def about(self) -> dict[str, Any]:
        """Version, dataset, inputs (how their files are chosen, of a text its type; how many a row takes, and their
        views), the other columns that it reads and the limits of one row."""
        kinds = {name: self.answerer.processor.modalities[name] for name in self.answerer.modalities}
        return {
            "version": self.version,
            "dataset_fingerprint": self.dataset_fingerprint,
            "inputs": {
                name: {
                    "type": kind.media_type,
                    "suffixes": kind.file_suffixes,
                    "most": most(self.answerer.several.get(name, 1)),
                    "views": list(views(self.answerer.several.get(name, 1))),
                }
                for name, kind in kinds.items()
            },
            "columns": list(self.answerer.columns),
            "limits": dataclasses.asdict(self.answerer.processor.limits),
        }

    def read(self, record: Mapping[str, Any], number: int) -> dict[str, Any]:
        """The tensors of one row; `number` is its own within the request. Threads may share it. Raises
        MlflowException."""
        answerer = self.answerer
        inputs = read_inputs(record, number, answerer.modalities, answerer.processor, answerer.several)
        columns = read_columns(record, number, self.answerer.columns, self.answerer.processor.limits.max_characters)
        try:
            return self.answerer.read(inputs, columns)
        except ValueError as error:
            raise _invalid(f"row {number}, column {error}") from error

    def answer(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """OUTPUTS of each row that `read` gave, and `outputs` where several answer."""
        origin = {"model_version": self.version, "dataset_fingerprint": self.dataset_fingerprint}
        told = [{**answer.to_json(self.abstain_below, self.best), **origin} for answer in self.answerer(rows)]
        if self.answerer.groups:
            told = [one | {"adapter": self.answerer.adapter(row)} for one, row in zip(told, rows, strict=True)]
        return told

    def x_m(self, rows: list[dict[str, Any]]) -> list[list[float]]:
        """Where the model places each row that `read` gave, for a log of answers."""
        return self.answerer.x_m(rows)


def stricter(limits: MediaLimits, config: Mapping[str, Any]) -> MediaLimits:
    """The smaller of each limit."""
    names = [field.name for field in dataclasses.fields(limits)]
    return dataclasses.replace(limits, **{n: min(getattr(limits, n), config[n]) for n in names if n in config})


def registered_version(bundle: Path) -> str | None:
    """The version under which MLflow fetched the model that holds `bundle`; None if it was not by a version."""
    for folder in bundle.parents:
        if (folder / "MLmodel").is_file():
            meta = folder / "registered_model_meta"
            return str(yaml.safe_load(meta.read_text())["model_version"]) if meta.is_file() else None
    return None


def read_inputs(
    record: Mapping[str, Any],
    number: int,
    modalities: tuple[str, ...],
    processor: Processor,
    several: Mapping[str, Places] | None = None,
) -> dict[str, Any]:
    """What a row gives of each modality, a list, or a mapping of its views: texts and vectors as they are, media as the
    bytes of the file.

    Args:
        several: those of which the model takes several (`training.views`).

    Raises:
        MlflowException: it cannot be read; the message names row and column.
    """
    inputs: dict[str, Any] = {}
    given: dict[Any, Any]
    for modality in MODALITIES:
        if not (given := _strings(record, number, modality, modality in (several or {}))):
            continue
        if modality not in modalities:
            raise _invalid(f"row {number}, column {modality}: this model takes {', '.join(modalities)} only")
        try:
            if not processor.modalities[modality].as_string:
                given = {name: media_bytes(value, processor.limits.max_bytes) for name, value in given.items()}
            inputs[modality] = given if isinstance(next(iter(given)), str) else list(given.values())
        except ValueError as error:
            raise _invalid(f"row {number}, column {modality}: {error}") from error
    if not inputs:
        raise _invalid(f"row {number} is empty: give at least one of {', '.join(modalities)}")
    return inputs


def read_columns(record: Mapping[str, Any], number: int, columns: Sequence[str], most: int) -> dict[str, str]:
    """What a row gives of these columns, "" where nothing. Raises MlflowException: one has over `most` characters."""
    values = {name: _string(record, number, name) for name in columns}
    for name, value in values.items():
        if len(value) > most:
            words = f"has {len(value)} characters, and the limit is {most} (max_characters)"
            raise _invalid(f"row {number}, column {name}: {words}")
    return values


def _strings(record: Mapping[str, Any], number: int, modality: str, is_several: bool) -> dict[int | str, str]:
    """What a row gives of a modality: a string, a list of them, by number, or an object, by view; as JSON, too, since a
    column of MLflow's holds strings alone. A text is that unless there may be several."""
    value: Any = record.get(modality)
    said: Any = value
    if MODALITY_KINDS.load(modality).is_text and not is_several:
        said = None
    elif isinstance(value, str) and value[:1] in ("[", "{"):
        with contextlib.suppress(ValueError, RecursionError):
            said = json.loads(value)
    named: dict[Any, Any] = said if isinstance(said, dict) else dict(enumerate(said)) if isinstance(said, list) else {}
    if not (named and all(isinstance(one, str | None) for one in named.values())):
        named = {0: value}
    return {name: string for name, one in named.items() if (string := _string({modality: one}, number, modality))}


def _string(record: Mapping[str, Any], number: int, column: str) -> str:
    value = record.get(column)
    if value is None or value != value:  # NaN is not itself
        return ""
    if not isinstance(value, str):
        raise _invalid(f"row {number}, column {column}: is {type(value).__name__}, expected a string")
    return value


def media_bytes(value: str, most: int) -> bytes:
    """The file that base64 or a base64 data: URL stands for. Raises ValueError: not base64, or over `most` bytes."""
    if value[:5].lower() == "data:":
        head, comma, value = value.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise ValueError("a data: URL must be base64, as in data:image/png;base64,...")
    if len(value) * 3 // 4 > most * 1.1:  # line breaks are no content
        raise ValueError(f"about {len(value) * 3 // 4} bytes are over the limit of {most} (max_bytes)")
    with contextlib.suppress(ValueError):
        return base64.b64decode(value, validate=True)
    value = re.sub(r"\s", "", value).rstrip("=").translate(str.maketrans("-_", "+/"))
    try:
        return base64.b64decode(value + "=" * (-len(value) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"is not base64 ({error}): encode the bytes of the file") from error


def _invalid(message: str) -> MlflowException:
    return MlflowException.invalid_parameter_value(message)


if __name__ != "training.serving":  # MLflow runs this file under a name of its own; an import does nothing
    mlflow.models.set_model(ServedModel())
