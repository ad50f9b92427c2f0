"""What predictions are worth: the output's metrics for every subset of the inputs and every slice of the rows.

A prediction for a subset is made with the other modalities hidden, by a model that was given nothing else of the row.
A subset is measured on the rows that have at least one of its inputs, and says how many they are; and, to be compared
with other subsets, on all rows (`filled`), where the others get the answer that is best whatever the inputs.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from training.label_metrics import CalibrationError
from training.metrics import Metric, natural
from training.outputs.base import Look, Output
from training.records import Answer, Answered, Calibration, Coverage, EvaluationRow, Figure
from training.schema import ADDS, MODALITIES, predictions_schema, subset_name, subsets
from training.shapley import Contributions, shapley_values

SLICE_VALUES = 12  # a column with more values than that is no slice
SLICE_ROWS = 20  # what a slice of fewer comes to is chance
NONE = "(none)"
_TELLING = 0.05  # share of the most frequent label's errors


def slices(dataset: pa.Table, output: Output, sensitive: Sequence[str] = ()) -> dict[str, dict[str, str]]:
    """Columns that part the rows (training.schema.DATASET) into few kinds: column -> sample id -> value.

    Every attribute with 2 to 12 values, `given`: the modalities that a sample has, and `X_views`: its views of X. Not
    the `telling_columns`: where a column says the label, each of its slices is a label; but those that are `sensitive`.
    """
    columns, telling = _columns(dataset), telling_columns(dataset, output)
    told = {name: groups(dataset, name) for name in sensitive}
    told = {name: values for name, values in told.items() if _few(values)}
    return told | {name: values for name, values in columns.items() if name not in {*telling, *sensitive}}


def groups(dataset: pa.Table, column: str) -> dict[str, str]:
    """Sample id -> what a column says, of all samples; "(none)" where it says nothing."""
    rows = dataset.select(["sample_id", "attributes"]).to_pylist()
    said = {row["sample_id"]: json.loads(row["attributes"] or "{}").get(column) for row in rows}
    return {sample: NONE if value in (None, "") else str(value) for sample, value in said.items()}


def telling_columns(dataset: pa.Table, output: Output) -> list[str]:
    """Columns that would be slices and give a label away, or nearly: who knows them guesses the label with at most a
    twentieth of the errors that the most frequent label makes."""
    samples = dataset["sample_id"].to_pylist()
    answered = [
        {sample: label for sample, label in zip(samples, labels, strict=True) if label is not None}
        for _, labels in output.columns(dataset["label"].to_pylist()).values()
    ]
    columns = _columns(dataset).items()
    return sorted(name for name, values in columns if any(_tells(values, labels) for labels in answered))


def _tells(values: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    by_value: dict[str, Counter[str]] = {}
    for sample in values.keys() & labels.keys():
        by_value.setdefault(values[sample], Counter())[labels[sample]] += 1
    counts = list(by_value.values())
    everything = sum(counts, Counter())
    missed = sum(count.total() - max(count.values()) for count in counts)
    return missed <= _TELLING * (everything.total() - max(everything.values(), default=0)) and len(everything) > 1


def _columns(dataset: pa.Table) -> dict[str, dict[str, str]]:
    columns: dict[str, dict[str, str]] = {}
    for row in dataset.to_pylist():
        present = [m for m in MODALITIES if row[f"{m}_id"] is not None]
        views = {f"{m}_views": "+".join(said) for m in MODALITIES if (said := row.get(f"{m}_views"))}
        for column, value in {**json.loads(row["attributes"] or "{}"), "given": subset_name(present), **views}.items():
            columns.setdefault(column, {})[row["sample_id"]] = str(value)
    return {column: values for column, values in columns.items() if _few(values) and column != "split"}


def _few(values: Mapping[str, str]) -> bool:
    return 2 <= len(set(values.values())) <= SLICE_VALUES


def measure(
    predictions: pa.Table,
    inputs: Sequence[str],
    output: Output,
    columns: Mapping[str, Mapping[str, str]] | None = None,
    labels: Mapping[str, Any] | None = None,
    majority: Any = None,
    seed: int = 0,
) -> list[EvaluationRow]:
    """One row of figures per subset of the inputs, and per slice with all inputs given.

    Args:
        predictions: `training.schema.predictions_schema`.
        inputs: the modalities that the model takes; each of their subsets gets a row, n = 0 where nothing was asked.
        columns: of `slices`.
        labels: of all rows, by sample id, in the output's type; without them nothing is filled.
        majority: what rows without any input of a subset are answered with (`Output.constant`).
        seed: of the bootstrap.

    Raises:
        ValueError: a subset of other modalities, a sample twice in a subset, or a label that is null.
    """
    full = subset_name(inputs)
    parts = _by_subset(predictions, [subset_name(chosen) for chosen in subsets(inputs)])

    def row(subset: str, part: Sequence[Mapping[str, Any]], slice: str | None = None) -> EvaluationRow:
        figures = output.figures([r["label"] for r in part], list(map(Answer.from_row, part)), seed)
        return EvaluationRow(inputs=full, subset=subset, slice=slice, n=len(part), metrics=figures)

    # Once, since each slice asks for them by every subset.
    answers = {subset: {sample: Answer.from_row(r) for sample, r in part.items()} for subset, part in parts.items()}

    def told(given: Mapping[str, Answer], samples: Iterable[str]) -> list[Answer]:
        return [given[sample] if sample in given else Answer(majority) for sample in samples]

    def filled(subset: str) -> Figure:
        everyone = labels or {}
        return output.metrics[0].figure(list(everyone.values()), told(answers[subset], everyone), seed)

    def contributions(samples: Sequence[str]) -> dict[str, float]:
        if not labels:
            return {}
        wanted = [labels[sample] for sample in samples]
        sets = {frozenset(subset.split("+")): given for subset, given in answers.items()} | {frozenset[str](): {}}
        values = {subset: output.metrics[0].value(wanted, told(given, samples)) for subset, given in sets.items()}
        known = {subset: value for subset, value in values.items() if value is not None}
        return shapley_values(known) if len(known) == 2 ** len(inputs) else {}

    rows = [replace(row(subset, list(part.values())), filled=filled(subset)) for subset, part in parts.items()]
    rows[-1] = replace(rows[-1], contributions=contributions(list(labels or {})))
    for column, values in (columns or {}).items():
        for value in sorted(set(values.values()), key=natural):
            if part := [r for sample, r in parts[full].items() if values.get(sample) == value]:
                added = contributions([r["sample_id"] for r in part])
                rows.append(replace(row(full, part, f"{column}={value}"), contributions=added))
    return rows


def _by_subset(predictions: pa.Table, names: Sequence[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """Subset -> sample id -> row of the predictions, each checked."""
    parts: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in names}
    for row in predictions.to_pylist():
        subset, sample = row["subset"], row["sample_id"]
        if subset not in parts:
            raise ValueError(f"sample {sample!r} was predicted from {subset!r}, expected one of {', '.join(parts)}")
        if sample in parts[subset]:
            raise ValueError(f"sample {sample!r} was predicted twice from {subset!r}: keep one prediction")
        if row["label"] is None:
            raise ValueError(f"sample {sample!r} has no label: only labelled rows can be measured")
        parts[subset][sample] = row
    return parts


def answers_by_sample(predictions: pa.Table) -> dict[str, Answer]:
    """The answers of predictions by sample id. Raises ValueError: a sample twice."""
    rows = predictions.to_pylist()
    by_sample = {row["sample_id"]: Answer.from_row(row) for row in rows}
    if len(by_sample) < len(rows):
        raise ValueError(f"{len(rows)} predictions of {len(by_sample)} samples: expected one for each")
    return by_sample


def mean_score(metric: Metric, labels: Sequence[Any], answers: Sequence[Any]) -> float:
    """The metric over all rows; 0 where there are none."""
    return metric.value(labels, answers) or 0.0


def coverage(
    metric: Metric, labels: Sequence[Any], answers: Sequence[Answer], thresholds: Sequence[float]
) -> list[Coverage]:
    """What is answered, and what that is worth, where answers below each of the probabilities are withheld; of several
    answers, those that the metric is of."""
    found, rows = [], metric.rows(labels)
    chances = [answer.probability for answer in metric.mine(labels, answers)[1]]
    for least in thresholds:
        # Without a probability nothing is withheld, as when answers are given (`Answer.to_json`).
        kept = [n for n, chance in zip(rows, chances, strict=True) if chance is None or chance >= least]
        value = metric.value([labels[n] for n in kept], [answers[n] for n in kept])
        found.append(Coverage(metric=metric.name, least=least, rows=len(kept), of=len(rows), value=value))
    return found


def calibration(
    predictions: pa.Table, output: Output, columns: Mapping[str, Mapping[str, str]] | None = None, seed: int = 0
) -> list[Calibration]:
    """Of each answer that says how sure it is: on all rows, and in each slice.

    Args:
        predictions: `training.schema.predictions_schema`, with the same inputs given in all rows.
        columns: of `slices`.
        seed: of the bootstrap.
    """
    rows = predictions.to_pylist()
    parts = {None: range(len(rows)), **rows_by_slice([row["sample_id"] for row in rows], columns or {})}
    found = []
    for metric, error in ((m, m.over) for m in output.metrics if isinstance(m.over, CalibrationError)):
        for name, numbers in parts.items():
            labels, answers = [rows[n]["label"] for n in numbers], [Answer.from_row(rows[n]) for n in numbers]
            if count := len(metric.rows(labels)):
                figure, bins = metric.figure(labels, answers, seed), error.curve(*metric.mine(labels, answers))
                found.append(Calibration(metric=metric.name, slice=name, rows=count, error=figure, bins=bins))
    return found


def rows_by_slice(samples: Sequence[str], columns: Mapping[str, Mapping[str, str]]) -> dict[str | None, list[int]]:
    """Slice, as "column=value" -> the numbers of its rows; without those that have none."""
    parts: dict[str | None, list[int]] = {}
    for column, values in columns.items():
        for value in sorted(set(values.values()), key=natural):
            if rows := [n for n, sample in enumerate(samples) if values.get(sample) == value]:
                parts[f"{column}={value}"] = rows
    return parts


def predictions_table(
    answered: Sequence[Answered], output: Output, contributions: Contributions | None = None
) -> pa.Table:
    """What was answered and judged (`Output.judged`) as `training.schema.predictions_schema`.

    Args:
        contributions: of the inputs to the answers with all of them (`training.shapley.answer_contributions`).
    """
    full = max((row.subset for row in answered), key=lambda subset: subset.count("+"), default="")
    added = [(contributions or {}).get(row.sample, {}) if row.subset == full else {} for row in answered]
    columns = {
        "sample_id": [row.sample for row in answered],
        "subset": [row.subset for row in answered],
        "label": [row.label for row in answered],
        "prediction": [row.answer.prediction for row in answered],
        "probability": [row.answer.probability for row in answered],
        "best": [row.answer.best_rows() for row in answered],
        "parts": [row.answer.part_rows() for row in answered],
        **{f"{modality}_adds": [values.get(modality) for values in added] for modality in MODALITIES},
    }
    return pa.table(columns, predictions_schema(output.judged_type))


def judged_answers(asked: pa.Table, answers: pa.Table, output: Output, look: Look | None = None) -> pa.Table:
    """The predictions (`training.schema.predictions_schema`) of a model that was asked anew, perhaps with another
    output, and answered in the order of the rows.

    Args:
        asked: sample_id, subset, label (a string) of each row.
        answers: `training.score.answers_schema`, of another output's type where another one answered.
        look: see `Output.judged`.
    """
    said = answers.set_column(
        answers.column_names.index("prediction"),
        "prediction",
        _typed(answers["prediction"], output.arrow_type, output, output.has_labels),
    )
    rows = zip(asked.to_pylist(), said.to_pylist(), strict=True)
    answered = [
        Answered(row["sample_id"], row["subset"], output.read(row["label"]), Answer.from_row(answer))
        for row, answer in rows
    ]
    return predictions_table(output.judged(answered, look), output)


def as_answers(table: pa.Table, output: Output) -> pa.Table:
    """Recorded predictions (`training.schema.predictions_schema`) with label and prediction of the output's type.

    Where another output answered, its answers are read as this one reads labels; what it cannot read is no answer.
    """
    schema, kind = predictions_schema(output.judged_type), output.judged_type
    for name in {"probability", "best", "parts", *ADDS} - set(table.column_names):  # an older model's
        table = table.append_column(name, pa.nulls(table.num_rows, schema.field(name).type))
    for name in ("label", "prediction"):
        values = _typed(table[name], kind, output, kind == output.arrow_type)
        table = table.set_column(table.column_names.index(name), name, values)
    return table.select(schema.names).cast(schema)


def _typed(values: pa.ChunkedArray, kind: pa.DataType, output: Output, readable: bool) -> Any:
    """Values of another type as the output reads labels, if it reads such."""
    if values.type == kind:
        return values
    return pa.array([_read(value, output) if readable else None for value in values.to_pylist()], kind)


def _read(value: Any, output: Output) -> Any:
    try:
        return None if value is None else output.read(value if isinstance(value, str) else json.dumps(value))
    except ValueError:
        return None
