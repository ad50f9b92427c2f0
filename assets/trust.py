"""How far a model can be trusted, from what it answered to the test rows: whether it is as often right as it says."""

from collections.abc import Sequence
from typing import Any

import dagster as dg
import pyarrow as pa

from assets import pipeline
from assets.preview import markdown_table
from assets.settings import Project
from training.records import Calibration, Figure, TrainingReport

TRUST_PICTURES = ("calibration",)


def trust(project: Project, model: TrainingReport, predictions: pa.Table) -> tuple[dict[str, Any], dict[str, Any]]:
    """Writes the pictures into the model's run; returns what results hold, and the asset's metadata of it.

    Args:
        predictions: of the model with all inputs given (`training.schema.predictions_schema`).
    """
    from training.evaluate import calibration, slices
    from training.evaluation_pictures import calibration_picture
    from training.runs import write_artifact

    output = project.make_output()
    test = pipeline.open_lake(project).sql("SELECT * FROM dataset WHERE split = 'test'")
    calibrated = calibration(predictions, output, slices(test, output))
    if not calibrated:
        return {}, {}
    write_artifact(project.mlflow_uri, model.mlflow_run_id, "calibration.png", calibration_picture(calibrated))
    content = {"calibration": [line.to_json() for line in calibrated]}
    return content, {**content, "calibrated": calibration_table(calibrated)}


def calibration_table(lines: Sequence[Calibration]) -> dg.MarkdownMetadataValue:
    """The calibration error of all rows and of each slice."""
    rows = []
    for line in lines:
        part, _, _ = line.metric.rpartition(".")
        named = {"output": part} if part else {}
        rows.append({**named, "of": line.slice or "all rows", "rows": line.rows, **_words("ECE", line.error)})
    return markdown_table(pa.Table.from_pylist(rows))


def _words(name: str, figure: Figure) -> dict[str, str]:
    interval = "" if figure.low is None else f"{figure.low:.3f} to {figure.high:.3f}"
    return {name: "" if figure.value is None else f"{figure.value:.3f}", "95% interval": interval}
