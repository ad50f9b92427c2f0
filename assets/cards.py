"""What a model and its data are, for who did not make them, in Markdown: the model card (Mitchell et al. 2019), with
Hugging Face's front matter, and the data card (Gebru et al. 2021). Only what was measured, or said in the project file.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from assets import pipeline
from assets.dataset import split_counts
from assets.lake import Lake
from assets.preview import escaped
from assets.settings import Project
from assets.splits import pointer
from assets.trust import fairness_words
from training.records import EvaluationRow, Fairness, Figure, NoiseCurve, TrainingReport

MODEL_CARD, DATA_CARD = "model_card.md", "data_card.md"  # in the model's MLflow run
_SHOWN = 12


def model_card(
    project: Project, reports: Sequence[TrainingReport], rows: Sequence[EvaluationRow], results: Mapping[str, Any]
) -> str:
    """Args: reports of the model, the first, and of its baselines; `rows` its evaluation, `results` standings.json."""
    model, card, metric = reports[0], project.card, project.make_output().metrics[0]
    head: dict[str, Any] = {"library_name": "transformers", "tags": ["triptych", "multimodal"]}
    head |= {"license": card.license} if card.license else {}
    head |= {"model_name": f"{project.name} version {model.version}", "metrics": [metric.name]}
    whole = [row for row in rows if row.slice is None]
    slices = [row for row in rows if row.slice is not None]
    parts = {
        "Intended use": card.use or "Not said (`card.use`).",
        "Limits": _list([card.limits or "None are said (`card.limits`).", *_measured(slices, metric)]),
        "What it is": f"Answers `{', '.join(project.align.labels) or 'what goes with it'}` (output "
        f"{project.model.output}) from {', '.join(project.inputs)}, any of which may lack; fusion "
        f"`{project.model.fusion}`, language model `{project.model.llm}`. Trained on dataset "
        f"`{model.dataset_fingerprint}` (its data card: `{DATA_CARD}`), MLflow run `{model.mlflow_run_id}`.",
        f"Test {metric.words}": _list(f"{row.subset}: {_words(row.main)} (n = {row.n:,})" for row in whole)
        + "\n\nWith 95 % intervals, by the inputs that are given.",
        "Slices": _list(f"{escaped(row.slice or '')}: {_words(row.main)} (n = {row.n:,})" for row in slices) or "None.",
        "Calibration": _list(_calibration(results)) or "Its answers have no probability.",
        "Fairness": _list(escaped(fairness_words(Fairness.from_json(one))) for one in results.get("fairness", []))
        or "Not measured: `evaluation.sensitive` names no column.",
        "What it was to forget": model.critic.words if model.critic else "Nothing (objective `critic`).",
        "Noise": _list(_noise(results)) or "Not measured (`evaluation.noise`).",
        "Energy": _energy(project, reports),
    }
    text = "\n\n".join(f"## {title}\n\n{words}" for title, words in parts.items())
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n# {project.name}, version {model.version}\n\n{text}\n"


def data_card(project: Project) -> str:
    """Of the present dataset: where its rows are from, what may be done with them, and what they lack."""
    lake, card = pipeline.open_lake(project), project.card
    ids = ", ".join(f"count({m}_id) AS {m}" for m in project.modalities)
    (have,) = lake.sql(f"SELECT count(*) AS rows, {ids} FROM dataset").to_pylist()
    refused = Counter(pipeline.quarantined(lake, project)["reason"].to_pylist())
    counts = split_counts(lake.sql("SELECT split FROM dataset"))
    splits = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    parts = {
        "Sources": _list(f"{source.name}: {source.modality}, used for {source.use}" for source in project.sources),
        "Samples": f"{have['rows']:,} ({splits}); fingerprint `{lake.note('dataset').get('fingerprint')}`.",
        "Licences": _column(lake, card.license_column, "card.license_column"),
        "Consent": _column(lake, card.consent_column, "card.consent_column"),
        "Groups": "\n\n".join(f"{c}:\n\n{_column(lake, c, '')}" for c in project.evaluation.sensitive)
        or "Not said: `evaluation.sensitive` names no column.",
        "What samples lack": _list(f"{m}: {have['rows'] - have[m]:,} of {have['rows']:,}" for m in project.modalities),
        "What was left out": _list(f"{reason}: {count:,}" for reason, count in refused.most_common()) or "Nothing.",
    }
    text = "\n\n".join(f"## {title}\n\n{words}" for title, words in parts.items())
    return f"# Data of {project.name}\n\n{text}\n"


def _list(lines: Any) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _words(figure: Figure) -> str:
    if figure.value is None:
        return "not measured"
    return f"{figure.value:.3f}" + ("" if figure.low is None else f" [{figure.low:.3f}, {figure.high:.3f}]")


def _measured(slices: Sequence[EvaluationRow], metric: Any) -> list[str]:
    """The slice that fares worst, of those with rows enough."""
    from training.evaluate import SLICE_ROWS

    sign = 1 if metric.higher_is_better else -1
    known = [row for row in slices if row.n >= SLICE_ROWS and row.main.value is not None]
    if not known:
        return [f"No slice of the test rows has {SLICE_ROWS} rows: where it is worse than in the mean is not known."]
    worst = min(known, key=lambda row: sign * (row.main.value or 0.0))
    return [
        f"It is worth least where {escaped(worst.slice or '')}: {metric.words} {_words(worst.main)} (n = {worst.n:,})."
    ]


def _calibration(results: Mapping[str, Any]) -> list[str]:
    lines = [line for line in results.get("calibration", []) if line["slice"] is None]
    return [f"expected calibration error ({line['metric']}): {_words(Figure(**line['error']))}" for line in lines]


def _noise(results: Mapping[str, Any]) -> list[str]:
    found = []
    for curve in map(NoiseCurve.from_json, results.get("noise", [])):
        area = "not known" if curve.area is None else f"{curve.area:.3f}"
        last = f"{_words(curve.figures[0])} without, {_words(curve.figures[-1])} with the most"
        found.append(f"{curve.modality} ({curve.noise}): {last}; area {area} (n = {curve.rows:,})")
    return found


def _energy(project: Project, reports: Sequence[TrainingReport]) -> str:
    """How long it took, and what that comes to by a power that is said; nothing measures it."""
    model, beside = (sum(sum(report.seconds.values()) for report in some) for some in (reports[:1], reports[1:]))
    hours = model / 3600, beside / 3600
    told = f"Training, evaluating and logging the model took {hours[0]:.3f} hours, its baselines {hours[1]:.3f}"
    if project.card.watts is None:
        return f"{told}. What that took in energy is not known: `card.watts` says no power."
    energy = sum(hours) * project.card.watts / 1000
    return (
        f"{told}; at {project.card.watts:g} watts (`card.watts`) that is {energy:.4f} kWh: time on the clock by that "
        "power, not measured; trainings side by side are each counted whole."
    )


def _column(lake: Lake, column: str | None, key: str) -> str:
    """How many samples have which value of a column."""
    if column is None:
        return f"Not said: `{key}` names no column."
    value = "coalesce(nullif(json_extract_string(attributes, $column), ''), '(none)')"
    query = f"SELECT {value} AS value, count(*) AS n FROM dataset GROUP BY 1 ORDER BY n DESC, value"
    counts = lake.sql(query, {"column": pointer(column)}).to_pylist()
    listed = [f"{escaped(row['value'])}: {row['n']:,}" for row in counts[:_SHOWN]]
    more = [f"{len(counts) - _SHOWN:,} others"] if len(counts) > _SHOWN else []
    return _list(listed + more)
