"""The model beside its baselines on the test rows, as their trainings recorded them: one reading for the run's output,
Dagster, the report and the gate."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from assets import links, pipeline
from assets.cards import DATA_CARD, MODEL_CARD, data_card, model_card
from assets.lake import Lake
from assets.preview import evaluation_table, markdown_table, picture
from assets.settings import Project
from assets.trust import trust
from training.fusion_check import FusionCheck, fusion_check
from training.metrics import Metric
from training.outputs.base import Output
from training.records import Answer, Coverage, EvaluationRow, Standing, TrainingReport
from training.schema import MAJORITY, subset_name
from training.spec import RunSpec, shorter_training

STANDINGS = "standings.json"  # in the model's MLflow run
_THRESHOLDS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)  # of a probability
_PICTURES = ("confusion", "learning", "subsets", "examples")


def recorded_predictions(project: Project, run_id: str, subset: str, file: str = "predictions.parquet") -> pa.Table:
    """What a run answered on its test set, with the inputs of `subset`."""
    from training.evaluate import as_answers
    from training.runs import read_artifact

    table = pq.read_table(pa.BufferReader(read_artifact(project.mlflow_uri, run_id, file)))
    table = as_answers(table, project.make_output())
    return table.filter(pc.equal(table["subset"], subset))


def recorded(project: Project, training: str, subset: str, file: str = "predictions.parquet") -> pa.Table:
    """As `recorded_predictions`, of the training with that fingerprint."""
    from training.runs import find_run

    run_id = find_run(project.mlflow_uri, project.name, training)
    if run_id is None:
        raise ValueError(f"{subset} has not been trained on the present dataset: materialize baselines and model first")
    return recorded_predictions(project, run_id, subset, file)


def majority_answer(project: Project, training: str) -> Any:
    """The one answer that is best whatever the inputs, as a training recorded it of its training rows."""
    return recorded(project, training, MAJORITY, f"{MAJORITY}.parquet")["prediction"][0].as_py()


def fusion_of(project: Project, training: str) -> FusionCheck | None:
    """Whether the model of a training listens to what was fused; None: not measured."""
    from training.runs import find_report

    report = find_report(project.mlflow_uri, project.name, training)
    metric = project.make_output().metrics[0].name
    return None if report is None else fusion_check(report.metrics, metric, project.promotion.confidence)


def check_fusion(lake: Lake, project: Project) -> dg.AssetCheckResult:
    """The model answers worse with the soft tokens of another row, so what was fused matters; else a warning, or what
    ends the run, as `promotion.unused_fusion` says."""
    checked = fusion_of(project, pipeline.plan(project)[0].fingerprint)
    if checked is None:
        return dg.AssetCheckResult(passed=True, metadata={"note": "not measured: nothing is fused but the prompt"})
    block = project.promotion.unused_fusion == "block"
    severity = dg.AssetCheckSeverity.ERROR if block else dg.AssetCheckSeverity.WARN
    return dg.AssetCheckResult(passed=checked.passed, severity=severity, description=checked.words)


def evaluate(project: Project) -> dg.MaterializeResult:
    """The figures of the model and its baselines side by side, and the model's pictures, from their MLflow runs.

    Raises:
        ValueError: one of them has not been trained on the present dataset.
    """
    from training.runs import find_report, read_artifact, read_json, write_artifact, write_json

    runs, uri, full = pipeline.plan(project), project.mlflow_uri, subset_name(project.inputs)
    reports: dict[str, TrainingReport] = {}
    rows: list[tuple[str, EvaluationRow]] = []
    for run in runs:
        if (report := find_report(uri, project.name, run.fingerprint)) is None:
            raise ValueError(f"{run.name} has not been trained on this dataset: materialize it first")
        reports[run.name] = report
        entries = read_json(uri, report.mlflow_run_id, "evaluation.json")["rows"]
        rows += [(run.name, EvaluationRow.from_json(entry)) for entry in entries]
    model, metric = reports["model"], project.make_output().metric(project.promotion.metric)
    beside, shorter = _standings(project, runs, reports), shorter_training(runs)
    answered, below = _coverage(project, model, metric), project.model.abstain_below
    content: dict[str, Any] = {
        "metric": metric.name,
        "standings": [standing.to_json() for standing in beside],
        "note": shorter,
    }
    content |= {"coverage": [line.to_json() for line in answered], "abstain_below": below}
    content["outputs"] = outputs_beside(model, project.make_output())
    trusted, shown = trust(project, model, recorded_predictions(project, model.mlflow_run_id, full))
    content |= trusted
    noted = [shorter] if shorter else []
    asked = [line for line in answered if below and line.least == below]
    write_json(uri, model.mlflow_run_id, STANDINGS, content)
    own = [row for name, row in rows if name == "model"]
    card = model_card(project, list(reports.values()), own, content)
    for file, words in ((MODEL_CARD, card), (DATA_CARD, data_card(project))):
        write_artifact(uri, model.mlflow_run_id, file, words.encode())
    whole = [({"model": name, "subset": row.subset}, row) for name, row in rows if row.slice is None]
    parts = [({"slice": row.slice}, row) for name, row in rows if name == "model" and row.slice is not None]
    return dg.MaterializeResult(
        metadata={
            "summary": "; ".join([standings_words(beside, metric), *coverage_words(asked), *noted]),
            "mlflow": dg.MetadataValue.url(links.mlflow_run(project, model.mlflow_run_id)),
            "beside": standings_table(beside, metric),
            **(
                {"each": outputs_table(content["outputs"]), "outputs": content["outputs"]} if content["outputs"] else {}
            ),
            "inputs": evaluation_table(whole),
            "slices": evaluation_table(parts),
            "no_slices": _no_slices(project),
            **({"answered": coverage_table(answered), "coverage": content["coverage"]} if answered else {}),
            **shown,
            **{title: picture(read_artifact(uri, model.mlflow_run_id, f"{title}.png")) for title in _PICTURES},
            "standings": content["standings"],
            **numbers(model),
            **{f"{metric.name}/baseline/{standing.name}": round(standing.all.b, 4) for standing in beside},
        }
    )


def _coverage(project: Project, model: TrainingReport, metric: Metric) -> list[Coverage]:
    """Of the answers with all inputs given, where they have probabilities, which a model of before has not; where
    several answer, of each by the first of its metrics."""
    from training.evaluate import coverage

    table = recorded_predictions(project, model.mlflow_run_id, subset_name(project.inputs))
    output = project.make_output()
    if table["probability"].null_count == table.num_rows:
        return []
    labels, answers = table["label"].to_pylist(), [Answer.from_row(row) for row in table.to_pylist()]
    sure = {name for name, member in output.members.items() if member.has_probabilities}
    metrics = [headline for headline in output.headlines if headline.part in sure] or [metric]
    thresholds = sorted({*_THRESHOLDS, project.model.abstain_below})
    return [line for metric in metrics for line in coverage(metric, labels, answers, thresholds)]


def outputs_beside(report: TrainingReport, output: Output) -> list[dict[str, Any]]:
    """Where several answer at once: each one's first metric, its interval and rows, and what the majority answer has
    there."""
    figures, found = report.metrics, []
    for metric in output.headlines:
        if metric.part is not None and metric.name in figures:  # some may have no row
            row = {"output": metric.part, "metric": metric.name, "n": int(figures[f"{metric.part}.n"] or 0)}
            row |= {"value": figures[metric.name], "majority": figures.get(f"majority_{metric.name}")}
            found.append(row | {end: figures[f"{metric.name}_{end}"] for end in ("low", "high")})
    return found


def outputs_table(beside: Sequence[dict[str, Any]]) -> dg.MarkdownMetadataValue:
    rows = []
    for row in beside:
        told = {name: "" if row[name] is None else f"{row[name]:.3f}" for name in ("value", "majority", "low", "high")}
        named = {"output": row["output"], "by": row["metric"].removeprefix(f"{row['output']}.").replace("_", " ")}
        interval = f"{told['low']}–{told['high']}" if told["low"] else ""
        rows.append({**named, "rows": row["n"], "model": told["value"], "95% interval": interval,
                     "majority answer": told["majority"]})  # fmt: skip
    return markdown_table(pa.Table.from_pylist(rows))


def coverage_words(asked: Sequence[Coverage]) -> list[str]:
    """What `model.abstain_below` makes of the test rows."""
    said = []
    for line in asked:
        worth = "" if line.value is None else f", {line.metric.replace('_', ' ')} {line.value:.3f} there"
        least = f"with a probability of at least {line.least:g} (model.abstain_below)"
        said.append(f"it answers {line.rows:,} of {line.of:,} rows {least}{worth}")
    return said


def coverage_table(answered: Sequence[Coverage]) -> dg.MarkdownMetadataValue:
    """What would be answered, and how well, if less probable answers were withheld."""
    rows = [
        {
            "answers with a probability of at least": f"{line.least:g}",
            "rows": line.rows,
            "share": f"{line.share:.3f}",
            "by": line.metric.replace("_", " "),
            "figure": "" if line.value is None else f"{line.value:.3f}",
        }
        for line in answered
    ]
    return markdown_table(pa.Table.from_pylist(rows))


def _no_slices(project: Project) -> str:
    """The columns that are left out of the slices, and why."""
    from training.evaluate import telling_columns

    test = pipeline.open_lake(project).sql("SELECT * FROM dataset WHERE split = 'test'")
    told = ", ".join(telling_columns(test, project.make_output()))
    return f"{told} (who knows these knows the label, or nearly)" if told else "none"


def _standings(project: Project, runs: Sequence[RunSpec], reports: dict[str, TrainingReport]) -> list[Standing]:
    """The model beside the majority answer and each baseline, by the gate's metric."""
    from training.comparison import standings

    tables = {r.name: recorded_predictions(project, reports[r.name].mlflow_run_id, subset_name(r.keep)) for r in runs}
    majority = majority_answer(project, runs[0].fingerprint)
    rule = replace(project.promotion, margin=0.0)
    return standings(tables.pop(runs[0].name), tables, majority, rule, project.make_output())


def numbers(report: TrainingReport) -> dict[str, float]:
    """A training's figures as flat metadata, which the web UI plots over time; as many digits as a person reads."""
    main = next(name for name in report.metrics if name != "n")
    values = {f"test_{main}": report.metrics[main], **report.metrics}
    for subset, value in report.subsets.items():
        values |= {f"{main}/{subset}": value, f"n/{subset}": report.rows[subset]}
        values[f"filled_{main}/{subset}"] = report.filled[subset]
    return {name: round(value, 4) for name, value in values.items() if value is not None}


def standings_words(beside: Sequence[Standing], metric: Metric) -> str:
    """The model, its best baseline and the majority answer, on the same rows."""
    from training.comparison import best

    majority, *baselines = beside
    strongest, rows = best(baselines), majority.all.rows
    beaten = "no baseline measured" if strongest is None else f"best baseline {strongest.name} {strongest.all.b:.3f}"
    sentence = (
        f"model {majority.all.a:.3f}, {beaten}, majority answer {majority.all.b:.3f} ({metric.words}, same {rows:,} "
        "test rows)"
    )
    if strongest is not None and (own := strongest.answered) is not None and own.rows < rows:
        sentence += f"; {strongest.name} on its own {own.rows:,} rows {own.b:.3f}, the model there {own.a:.3f}"
    return sentence


def standings_table(beside: Sequence[Standing], metric: Metric) -> dg.MarkdownMetadataValue:
    from training.bootstrap import p_value

    rows = []
    for standing in beside:
        own, every = standing.answered, standing.all
        row = {
            "beside the model": standing.name,
            f"{metric.words} on all {every.rows:,} rows": f"{every.b:.3f}",
            "model": f"{every.a:.3f}",
            "p": p_value(every.p),
            "rows it answers": 0 if own is None else own.rows,
            "on those": "" if own is None else f"{own.b:.3f}",
            "model on those": "" if own is None else f"{own.a:.3f}",
        }
        rows.append(row)
    return markdown_table(pa.Table.from_pylist(rows))
