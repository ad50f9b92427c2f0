"""A model that uses only which inputs a row has, and the figures that tell it: x-rays of which some lack a note.

    python -m benchmarks.missing_notes [--data FOLDER]

FOLDER holds `medical` (xrays.tar, records.csv): of the x-rays without a note nearly all show the finding, so who sees
only whether there is a note can rank rows. `blind` is trained and asked on rows whose x-rays are all one and whose
notes are all one; `seeing` on the rows as they are. Both are fused models from scratch, trained by `training.train.fit`
on half of the patients, and asked about the others. A JSON line for each figure of `training.evaluate`: AUROC with its
95 % interval, of all inputs, of each subset of them that a model is shown, and of the slices of rows that have the same
inputs. What only a pattern of inputs tells is 0.5 wherever all rows are given the same, however well all together look.
--quick trains for a fraction of an epoch.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from transformers.utils import logging

from benchmarks import measure
from benchmarks.digits3 import prepare
from training import evaluate
from training.cache import FeatureCache, needed_columns
from training.data import SampleDataset
from training.evaluate import predictions_table
from training.features import FeatureSettings
from training.results import answers
from training.schema import subset_name, subsets
from training.settings import ModelSettings, TrainingSettings
from training.train import TrainingTask, fit, make_tokenizer
from training.validation import from_dict

MODALITIES = ("text", "image")
PROJECT = """
name: medical
sources:
  - {{name: xrays, modality: image, files: "{data}/xrays.tar", table: "{data}/records.csv", key: filename,
     file: filename}}
  - {{name: notes, modality: text, table: "{data}/records.csv", column: clinical_notes, key: filename}}
align: {{label: covid, group: patientid}}
features: {{image: {{size: 32, color: grey}}, text: {{max_tokens: 64}}}}
model:
  encoders: {{text: small_transformer}}
  output: {{kind: class, weights: balanced}}
  layers: 1
  tokens: 2
training: {{epochs: 15, batch_size: 32, learning_rate: 1.0e-3, evaluations: 0}}
"""


def blinded(index: pa.Table) -> pa.Table:
    """The rows with one x-ray and one note for all that have any."""
    for modality in MODALITIES:
        column = f"{modality}_id"
        ids = index[column].to_pylist()
        one = next(content for content in ids if content is not None)
        alike = pa.array([content and one for content in ids], pa.string())
        index = index.set_column(index.column_names.index(column), column, alike)
    return index


def halves(index: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Rows to train on and to ask, no patient among both."""
    patients = np.array([json.loads(row)["patientid"] for row in index["attributes"].to_pylist()])
    order = np.random.default_rng(0).permutation(np.unique(patients))
    asked = np.isin(patients, order[::2])
    return index.filter(pa.array(~asked)), index.filter(pa.array(asked))


def figures(folder: Path, index: pa.Table, quick: bool) -> Iterator[dict[str, object]]:
    """A line of each subset and slice."""
    settings = json.loads((folder / "settings.json").read_text())
    features = from_dict(FeatureSettings, settings["features"])
    model, training = (from_dict(k, settings[n]) for k, n in ((ModelSettings, "model"), (TrainingSettings, "training")))
    caches = {m: FeatureCache(folder, m, f, needed_columns(m, features)) for m, f in settings["fingerprints"].items()}
    train, test = (SampleDataset(part, caches) for part in halves(index))
    task = TrainingTask(
        model=model,
        training=replace(training, epochs=0.2) if quick else training,
        features=features,
        train=train,
        validation=train.take([]),
        tokenizer=make_tokenizer(train, model, training),
    )
    with tempfile.TemporaryDirectory() as checkpoints:
        trained = fit(task, Path(checkpoints))
    output = trained.model.output
    predictions = predictions_table(answers(trained.model, task, test, subsets(MODALITIES)), output)
    given = {
        row["sample_id"]: subset_name([m for m in MODALITIES if row[f"{m}_id"] is not None])
        for row in test.index.to_pylist()
    }
    for row in evaluate.measure(predictions, MODALITIES, output, {"given": given}):
        auroc = row.metrics["auroc"]
        told = {"ours": auroc.value, "low": auroc.low, "high": auroc.high}
        yield {"what": row.slice or row.subset, "unit": "auroc", **told, "rows": row.n}


def main() -> None:
    arguments = measure.parser(__doc__).parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "features")
        prepare(folder, PROJECT.format(data=(arguments.data / "medical").resolve()))
        index = pq.read_table(folder / "index.parquet")
        index = index.filter(pc.is_valid(index["label"]))
        for name, rows in (("blind", blinded(index)), ("seeing", index)):
            for line in figures(folder, rows, arguments.quick):
                print(json.dumps({"benchmark": "missing_notes", "model": name} | line), flush=True)


if __name__ == "__main__":
    main()
