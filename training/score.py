"""Answers raw rows with a trained model, in a process of its own that runs the code logged with the model.

    python -P -m training.score MODEL ROWS ANSWERS

MODEL is a bundle (config.json, model.safetensors, processor.json, tokenizer) or the folder of a logged model that
holds one. ROWS is Parquet with sample_id, label (may be null), text (string), image and speech (binary, as files);
ANSWERS becomes Parquet with sample_id, label, prediction. Two versions bring two packages called `training`, so they
are never loaded in one process: `score_command` says how to start one.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from training.media import MediaError
from training.processor import Processor
from training.schema import MODALITIES

ANSWERS = pa.schema([("sample_id", pa.string()), ("label", pa.string()), ("prediction", pa.string())])
_BATCH = 64  # rows that are decoded and answered together


class Answerer:
    """A bundle at work: rows of `Processor.row` to answers."""

    def __init__(self, bundle: Path) -> None:
        """Raises ValueError if the folder holds no model."""
        from training.data import Collator
        from training.model import FusionModel

        if not (bundle / "config.json").is_file():
            raise ValueError(f"{bundle} holds no model: expected a folder with config.json and model.safetensors")
        self.processor = Processor.from_pretrained(bundle)
        self.model = FusionModel.from_pretrained(bundle).eval()
        self._collate = Collator(self.model.config)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those that the model was built for; others it cannot take."""
        return tuple(self.model.config.modalities)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        answers: list[str] = []
        for start in range(0, len(rows), _BATCH):
            batch = self._collate(list(rows[start : start + _BATCH]))
            answers += self.model.answer({name: value.to(self.model.device) for name, value in batch.items()})
        return answers


def bundle_of(model: Path) -> Path:
    """The bundle in the folder of a logged model; a folder that is none is taken as the bundle itself."""
    import yaml

    described = model / "MLmodel"
    if not described.is_file():
        return model
    flavor = yaml.safe_load(described.read_text(encoding="utf-8"))["flavors"]["python_function"]
    return model / flavor["artifacts"]["bundle"]["path"]


def score(model: Path, rows: Path, answers: Path) -> None:
    """Answers a Parquet file, a batch of rows at a time.

    A row that this model's processor cannot read (its limits may be others) is answered with null, which counts as
    wrong, and named on stderr; so is a row that has none of the model's modalities.
    """
    answerer = Answerer(bundle_of(model))
    with pq.ParquetWriter(answers, ANSWERS) as writer:
        for batch in pq.ParquetFile(rows).iter_batches(batch_size=_BATCH):
            given = batch.to_pylist()
            read = dict(_readable(given, answerer))
            found = dict(zip(read, answerer(list(read.values())), strict=True)) if read else {}
            columns = {name: [row.get(name) for row in given] for name in ("sample_id", "label")}
            columns["prediction"] = [found.get(number) for number in range(len(given))]
            writer.write_table(pa.table(columns, schema=ANSWERS))


def _readable(rows: Sequence[Mapping[str, Any]], answerer: Answerer) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, row in enumerate(rows):
        inputs = {m: row[m] for m in answerer.modalities if row.get(m) is not None}
        if not inputs:
            print(f"sample {row.get('sample_id')} has no {' or '.join(answerer.modalities)}", file=sys.stderr)
            continue
        try:
            yield number, answerer.processor.row(**inputs)
        except MediaError as error:
            print(f"sample {row.get('sample_id')} cannot be read: {error}", file=sys.stderr)


def score_command(model: Path, rows: Path, answers: Path) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a process that scores with the code of `model`; with this code for a bare bundle."""
    code = model / "code" if (model / "code").is_dir() else Path(__file__).parent.parent
    # -P: no `training` of the working directory comes before the model's own.
    argv = [sys.executable, "-P", "-m", "training.score", str(model), str(rows), str(answers)]
    return argv, os.environ | {"PYTHONPATH": str(code.resolve()), "TOKENIZERS_PARALLELISM": "false"}


def answer_rows(model: Path, rows: pa.Table) -> pa.Table:
    """The answers (ANSWERS) of a model to raw rows, given in a process of its own.

    Raises:
        RuntimeError: the process failed; the message carries the end of its output.
    """
    with tempfile.TemporaryDirectory() as temporary:
        given, answers = Path(temporary) / "rows.parquet", Path(temporary) / "answers.parquet"
        pq.write_table(rows, given)
        argv, env = score_command(model, given, answers)
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"the model in {model} could not answer:\n{done.stderr.strip()[-2000:]}")
        return pq.read_table(answers)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.score", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of a bundle or of a logged model")
    parser.add_argument("rows", type=Path, help="Parquet: sample_id, label, text, image, speech")
    parser.add_argument("answers", type=Path, help="Parquet to write: sample_id, label, prediction")
    given = parser.parse_args()
    score(given.model, given.rows, given.answers)


if __name__ == "__main__":
    main()
