"""What a training came to, as MLflow keeps it: the answers to the test rows, what they are worth, and pictures."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from training import reporting, tracking
from training.data import SampleDataset
from training.evaluate import mean_score, measure, slices, subsets
from training.fusion_check import shuffled_figures
from training.metrics import Metric, confusion
from training.records import EvaluationRow
from training.schema import MAJORITY, MODALITIES, predictions_schema, subset_name
from training.spec import RunSpec
from training.train import Trained, TrainingTask, predict, scored_answers

_EXAMPLES = 12  # test samples in the picture


def evaluate(
    run: RunSpec, task: TrainingTask, trained: Trained, rows: SampleDataset, test: pa.Table, folder: Path
) -> tuple[dict[str, float | None], list[EvaluationRow]]:
    """Answers the test rows and logs what they are worth, with the pictures; returns the figures with all inputs given,
    and those of each subset of them.

    Args:
        rows, test: the test rows, and as they stand in `dataset`.
    """
    output, metric = trained.model.output, trained.model.output.metrics[0]
    labels = {row["sample_id"]: output.read(row["label"]) for row in test.to_pylist() if row["label"] is not None}
    usual = output.constant([output.read(label) for label in task.train.labels if label is not None])
    predictions = predict_subsets(task, trained, rows, run.keep)
    measured = measure(predictions, run.keep, output, slices(test, output), labels, usual)
    subsets = [row for row in measured if row.slice is None]
    metrics = headline(measured)
    majority = mean_score(metric, list(labels.values()), [usual] * len(labels))
    if not run.is_baseline:
        answered = predictions.filter(pc.equal(predictions["subset"], subset_name(run.keep)))
        whole = list(labels.values())
        metrics |= {f"majority_{m.name}": m.value(whole, [usual] * len(whole)) for m in output.headlines}
        metrics |= {f"majority_{metric.name}": majority} | _shuffled(task, trained, rows, answered)
    folder.mkdir()
    pq.write_table(predictions, folder / "predictions.parquet")
    one = pa.Table.from_pylist([{"subset": MAJORITY, "prediction": usual}], predictions.schema)
    pq.write_table(one, folder / f"{MAJORITY}.parquet")
    evaluation = {"rows": [row.to_json() for row in measured], "history": trained.history}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    _pictures(folder, trained.history, measured, predictions, rows, metric)
    (folder / "subsets.png").write_bytes(reporting.subsets_picture(measured, majority))
    tracking.log_results(folder, metrics, subsets)
    return metrics, subsets


def _shuffled(task: TrainingTask, trained: Trained, rows: SampleDataset, answered: pa.Table) -> dict[str, float | None]:
    """What becomes of the answers with the soft tokens of another row: no better than chance, if the fusion makes them.

    Nothing where there is no other row, or where all that is fused is read as the prompt, too.
    """
    model, metric = trained.model, trained.model.output.metrics[0]
    labels, answers = (answered[name].to_pylist() for name in ("label", "prediction"))
    if len(labels) < 2 or set(model.config.modalities) == {model.prompt}:
        return {}
    asked = rows.take(pc.index_in(answered["sample_id"], rows.index["sample_id"]).to_pylist())
    others = predict(model, task.tokenizer, asked, task.features, shuffle_seed=0)
    return shuffled_figures(metric, labels, answers, others)


def headline(rows: list[EvaluationRow]) -> dict[str, float | None]:
    """The figures with all inputs given; None where no test row has any of them."""
    return next(row for row in rows if row.is_full).figures()


def predict_subsets(task: TrainingTask, trained: Trained, rows: SampleDataset, inputs: Sequence[str]) -> pa.Table:
    """Predictions for every subset of the inputs, on the rows that have at least one of its inputs."""
    model, output = trained.model, trained.model.output
    schema = predictions_schema(output.arrow_type)
    present = {m: rows.index[f"{m}_id"].is_valid() for m in MODALITIES}
    tables = []
    for subset in subsets(inputs):
        any_of_them = functools.reduce(pc.or_, (present[modality] for modality in subset))
        chosen = rows.take(pc.indices_nonzero(any_of_them).to_pylist())
        asked = model, task.tokenizer, chosen, task.features, frozenset(subset)
        answers = scored_answers(*asked) if len(chosen) else []
        columns = {
            "sample_id": chosen.index["sample_id"].to_pylist(),
            "subset": [subset_name(subset)] * len(chosen),
            "label": [None if label is None else output.read(label) for label in chosen.labels],
            "prediction": [answer.prediction for answer in answers],
            "probability": [answer.probability for answer in answers],
            "best": [answer.best_rows() for answer in answers],
            "parts": [answer.part_rows() for answer in answers],
        }
        tables.append(pa.table(columns, schema))
    return pa.concat_tables(tables)


def _pictures(
    folder: Path,
    history: list[dict[str, float]],
    rows: list[EvaluationRow],
    predictions: pa.Table,
    test: SampleDataset,
    metric: Metric,
) -> None:
    answered = predictions.filter(pc.equal(predictions["subset"], rows[0].inputs)).to_pylist()
    told = [_in_words(row["label"], row["prediction"]) for row in answered]
    labels, answers = ([words for row in told for words in row[side]] for side in (0, 1))
    (folder / "confusion.png").write_bytes(reporting.confusion_picture(*confusion(labels, answers)))
    (folder / "learning.png").write_bytes(reporting.learning_picture(history, metric.name))
    lines = [(", ".join(label), None if None in answer else ", ".join(answer)) for label, answer in told]
    words = {row["sample_id"]: line for row, line in zip(answered, lines, strict=True)}
    chosen = [test[number] for number in range(0, len(test), max(1, len(test) // _EXAMPLES))][:_EXAMPLES]
    shown = [row | {"label": words[row["sample_id"]][0]} for row in chosen if row["sample_id"] in words]
    picture = reporting.examples_picture(shown, [words[row["sample_id"]][1] for row in shown], test.modalities)
    (folder / "examples.png").write_bytes(picture)


def _in_words(label: Any, prediction: Any) -> tuple[list[str], list[Any]]:
    """Label and answer, None where there is none; of several, each that has a label, with its name."""
    if not isinstance(label, dict):
        return [str(label)], [None if prediction is None else str(prediction)]
    named, said = {name: value for name, value in label.items() if value is not None}, prediction or {}
    return [f"{name}: {value}" for name, value in named.items()], [f"{name}: {said.get(name)}" for name in named]
