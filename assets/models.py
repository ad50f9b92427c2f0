"""Dagster's face of the model side: baselines, model, evaluation and champion of one project."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from assets import pipeline
from assets.launcher import SubprocessLauncher
from assets.preview import counts_table, picture
from assets.resource import load_settings, resource_key
from assets.settings import Project
from training.job import experiment_runs, training_spec

OWNERS = ["team:triptych"]


def model_assets(project: Project) -> list[dg.AssetsDefinition]:
    """dataset -> baselines and model -> evaluation -> champion, under the project's key prefix."""
    name, key, needs = project.name, [project.name], {resource_key(project.name)}

    @dg.asset(
        key_prefix=key,
        group_name="models",
        kinds={"torch", "mlflow"},
        owners=OWNERS,
        deps=[[*key, "dataset"]],
        required_resource_keys=needs,
        pool="gpu",
        description="What a model must beat: each modality alone, and plain concatenation.",
    )
    def baselines(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        settings = load_settings(context, name)
        reports = train(context, settings, "baselines")
        accuracy = {report["name"]: report["metrics"]["accuracy"] for report in reports}
        return dg.MaterializeResult(
            metadata={
                "accuracy": counts_table(accuracy, ("baseline", "test accuracy")),
                "runs": {report["name"]: report["mlflow_run_id"] for report in reports},
                "trained": sum(not report["reused"] for report in reports),
            }
        )

    @dg.asset(
        key_prefix=key,
        group_name="models",
        kinds={"torch", "mlflow", "huggingface"},
        owners=OWNERS,
        deps=[[*key, "dataset"]],
        required_resource_keys=needs,
        pool="gpu",
        description="The fused model: trained in a process of its own, logged and registered as a version in MLflow.",
    )
    def model(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        settings = load_settings(context, name)
        (report,) = train(context, settings, "model")
        return dg.MaterializeResult(
            metadata={
                "version": int(report["version"]),
                "reused": report["reused"],
                "mlflow_run_id": report["mlflow_run_id"],
                "dataset_fingerprint": report["dataset_fingerprint"],
                "test": counts_table(report["metrics"], ("metric", "value")),
                "subsets": counts_table(report["subsets"], ("inputs", "test accuracy")),
            }
        )

    return [baselines, model]
