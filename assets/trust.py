"""How far a model can be trusted, from what it answered to the test rows: whether it is as often right as it says, and
worth as much to one group as to another."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa

from assets import pipeline
from assets.preview import bullets, markdown_table, picture
from assets.settings import Project
from training.records import Answer, Calibration, Fairness, Figure, NoiseCurve, TrainingReport

_NOISE = "noise.json"
TRUST_PICTURES = ("fairness", "calibration", "noise")  # named as what results hold of them


def trust(project: Project, model: TrainingReport, predictions: pa.Table) -> tuple[dict[str, Any], dict[str, Any]]:
    """Writes the pictures into the model's run; returns what results hold, and the asset's metadata of it.

    Args:
        predictions: of the model with all inputs given (`training.schema.predictions_schema`).
    """
    from training.evaluate import calibration, slices
    from training.evaluation_pictures import calibration_picture, fairness_picture, noise_picture
    from training.runs import write_artifact

    output, sensitive = project.make_output(), project.evaluation.sensitive
    test = pipeline.open_lake(project).sql("SELECT * FROM dataset WHERE split = 'test'")
    calibrated = calibration(predictions, output, slices(test, output, sensitive))
    fair = _fairness(project, predictions, test)
    shown: dict[str, Any] = {}
    pictures = {}
    if calibrated:
        pictures["calibration.png"] = calibration_picture(calibrated)
        shown |= {"calibrated": calibration_table(calibrated)}
        shown |= {"curves": picture(pictures["calibration.png"])}
    if fair:
        pictures["fairness.png"] = fairness_picture(fair)
        shown |= {"gaps": bullets([fairness_words(one) for one in fair]), "groups": groups_table(fair)}
        shown |= {"beside_each_other": picture(pictures["fairness.png"])}
    curves = _noise(project, model, predictions) if project.evaluation.noise else []
    if curves:
        pictures["noise.png"] = noise_picture(curves)
        shown |= {"robustness": noise_table(curves), "noise_curves": picture(pictures["noise.png"])}
    if project.evaluation.maps:
        shown |= {"explained": bullets(_explain(project, model, predictions["sample_id"].to_pylist()))}
    for name, png in pictures.items():
        write_artifact(project.mlflow_uri, model.mlflow_run_id, name, png)
    content = {"calibration": [line.to_json() for line in calibrated], "fairness": [one.to_json() for one in fair]}
    content["noise"] = [curve.to_json() for curve in curves]
    return content, content | shown


def _fairness(project: Project, predictions: pa.Table, test: pa.Table) -> list[Fairness]:
    from training.evaluate import NONE, groups
    from training.fairness import fairness

    metric, rows, found = project.make_output().metric(project.promotion.metric), predictions.to_pylist(), []
    labels, answers = [row["label"] for row in rows], [Answer.from_row(row) for row in rows]
    for column in project.evaluation.sensitive:
        of = groups(test, column)
        found.append(fairness(metric, column, [of.get(row["sample_id"], NONE) for row in rows], labels, answers))
    return found


def _noise(project: Project, model: TrainingReport, predictions: pa.Table) -> list[NoiseCurve]:
    """As an evaluation before has measured it, if it did of as many rows."""
    from assets.robustness import noise_curves
    from training.runs import find_json, write_json

    uri, run_id, most = project.mlflow_uri, model.mlflow_run_id, project.evaluation.noise
    metric = project.make_output().metric(project.promotion.metric).name
    known = find_json(uri, run_id, _NOISE)
    if known is None or (known["rows"], known["metric"]) != (most, metric):
        table = predictions.sort_by("sample_id")
        table = table.take(list(range(0, table.num_rows, max(1, -(-table.num_rows // most)))))
        curves = [curve.to_json() for curve in noise_curves(project, str(model.version), table)]
        known = {"rows": most, "metric": metric, "curves": curves}
        write_json(uri, run_id, _NOISE, known)
    return [NoiseCurve.from_json(curve) for curve in known["curves"]]


def noise_table(curves: Sequence[NoiseCurve]) -> dg.MarkdownMetadataValue:
    """What the model is worth at each level of noise, and the area under each curve."""
    rows = []
    for curve in curves:
        levels = [f"none: {_words(curve.figures[0])}"]
        levels += [
            f"{level:g}: {_words(figure)}" for level, figure in zip(curve.levels, curve.figures[1:], strict=True)
        ]
        area = "" if curve.area is None else f"{curve.area:.3f}"
        rows.append({"noise in": curve.modality, "rows": curve.rows, "levels are": curve.noise, "area": area,
                     f"{curve.metric.replace('_', ' ')} by level": "; ".join(levels)})  # fmt: skip
    return markdown_table(pa.Table.from_pylist(rows))


def _explain(project: Project, model: TrainingReport, samples: Sequence[str]) -> list[str]:
    """Pictures of what the answers to some test rows hang on, into the folder `explanations` of the model's run; what
    could not be explained, and why."""
    from assets.explaining import explain_samples
    from training.runs import write_artifacts

    most = project.evaluation.maps
    chosen = sorted(samples)[:: max(1, len(samples) // most)][:most]
    with tempfile.TemporaryDirectory() as folder:
        told = explain_samples(project, str(model.version), chosen, Path(folder) / "explanations")
        write_artifacts(project.mlflow_uri, model.mlflow_run_id, Path(folder))
    kept = [Path(one.picture).name if one.picture else one.error for one in told]
    return [f"{one.sample}: {words}" for one, words in zip(told, kept, strict=True)]


def calibration_table(lines: Sequence[Calibration]) -> dg.MarkdownMetadataValue:
    """The calibration error of all rows and of each slice."""
    rows = []
    for line in lines:
        part, _, _ = line.metric.rpartition(".")
        named = {"output": part} if part else {}
        rows.append({**named, "of": line.slice or "all rows", "rows": line.rows, "ECE": _words(line.error)})
    return markdown_table(pa.Table.from_pylist(rows))


def fairness_words(fair: Fairness) -> str:
    """How far groups lie apart, as a sentence."""
    metric = fair.metric.replace("_", " ")
    if fair.gap.value is None:
        return f"{metric} by {fair.column} is not compared: {fair.note}"
    figures = {one.group: one for one in fair.groups}
    ends = [f"{name} {figures[name].figure.value:.3f} (n = {figures[name].rows:,})" for name in _ends(fair)]
    shown = "which may be chance" if fair.gap.low is None or fair.gap.low <= 0 else "more than chance"
    few = [f"{one.group} (n = {one.rows:,})" for one in fair.groups if not one.counted]
    left = f"; too few to be compared: {', '.join(few)}" if few else ""
    return f"{metric} by {fair.column}: from {ends[0]} to {ends[1]}, a gap of {_words(fair.gap)}, {shown}{left}"


def _ends(fair: Fairness) -> list[str]:
    return [name for name in (fair.largest, fair.least) if name is not None]


def groups_table(fair: Sequence[Fairness]) -> dg.MarkdownMetadataValue:
    """What the model is worth to each group, and how much more than to all others."""
    rows = [
        {
            "column": one.column,
            "group": group.group,
            "rows": group.rows,
            one.metric.replace("_", " "): _words(group.figure),
            "more than to the rest": _words(group.rest) if group.counted else "too few rows",
        }
        for one in fair
        for group in one.groups
    ]
    return markdown_table(pa.Table.from_pylist(rows))


def _words(figure: Figure) -> str:
    """A figure and its 95 % interval."""
    if figure.value is None:
        return ""
    return f"{figure.value:.3f}" + ("" if figure.low is None else f" [{figure.low:.3f}, {figure.high:.3f}]")
