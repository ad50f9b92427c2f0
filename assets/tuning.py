"""The search for better settings of model and training as an asset: dataset -> tuning, beside the trainings."""

from typing import Any

import dagster as dg
import pyarrow as pa

from assets import links, pipeline
from assets.catalog import LAUNCHERS
from assets.model_assets import job_spec, needed_by_trainings, trainer_asset
from assets.preview import counts_table, markdown_table, picture
from assets.resource import TUNING, load_settings
from assets.settings import Project
from training.records import TuningReport
from training.tuning_settings import as_overrides, as_yaml


def tuning_asset(project: Project) -> dg.AssetsDefinition:
    """Of a project whose file has `tuning`; in a job of its own, since it takes many trainings."""
    name = project.name

    @trainer_asset(
        project,
        name=TUNING,
        deps=needed_by_trainings(project),
        description="A search for better settings with Optuna: each trial a training, judged on the validation rows.",
        kinds={"torch", "mlflow", "optuna"},
    )
    def tuning(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        from training.runs import read_artifact

        settings = load_settings(context, name)
        model, asked = pipeline.tuning(settings)
        before = find_search(settings)
        if is_new := before is None or not asked.settings.is_spent(len(before.trials), before.seconds):
            lake = pipeline.open_lake(settings)
            codecs, start = tuple(pipeline.codecs(lake, settings)), pipeline.pretraining(lake, settings)
            spec = job_spec(context, settings, (model,), codecs, start, asked)
            (values,) = LAUNCHERS.make(settings.launcher).launch(context, spec.to_json())
            report = TuningReport.from_json(values)
        else:
            report = before
        image = picture(read_artifact(settings.mlflow_uri, report.mlflow_run_id, "tuning.png"))
        return dg.MaterializeResult(
            metadata={
                "summary": report.words + ("" if is_new else ", already searched"),
                "mlflow": dg.MetadataValue.url(links.mlflow_run(settings, report.mlflow_run_id)),
                "settings": dg.MetadataValue.md(f"```yaml\n{as_yaml(report.settings)}```"),
                "overrides": as_overrides(report.settings),
                "importance": counts_table(report.importance, ("setting", "share")),
                "trials": trials_table(report),
                "picture": image,
                "metric": report.metric,
                "value": report.best_trial.value,
                "reused": not is_new,
            }
        )

    return tuning


def find_search(project: Project) -> TuningReport | None:
    """What the search that the settings ask for has come to; None where it has not come to an end."""
    from training.runs import find_tuning

    _, asked = pipeline.tuning(project)
    return find_tuning(project.mlflow_uri, project.name, asked.fingerprint)


def trials_table(report: TuningReport) -> dg.MarkdownMetadataValue:
    """The trials, the best first; those that have no value last."""
    rows: list[dict[str, Any]] = [
        {
            "trial": trial.number,
            "state": trial.state,
            report.metric: trial.value,
            **trial.values,
            "seconds": trial.seconds,
            "": trial.said,
        }
        for trial in report.ranked
    ]
    named = dict.fromkeys(name for row in rows for name in row)
    return markdown_table(pa.table({name: pa.array([_cell(row.get(name)) for row in rows]) for name in named}))


def _cell(value: Any) -> str:
    """Columns may hold numbers beside words."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
