"""Dagster's face of the model side: baselines, model, evaluation and champion of one project."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from assets import pipeline
from assets.catalog import LAUNCHERS
from assets.gate import gate
from assets.preview import accuracy_table, counts_table, picture
from assets.resource import load_settings, resource_key
from assets.settings import Project
from training.spec import JobSpec, RunSpec

OWNERS = ["team:triptych"]


def model_assets(project: Project) -> list[dg.AssetsDefinition]:
    """dataset -> baselines and model -> evaluation -> champion, under the project's key prefix."""
    name, key, needs = project.name, [project.name], {resource_key(project.name)}

    def spec(asset: str, kinds: set[str], description: str) -> dg.AssetSpec:
        return dg.AssetSpec(
            [*key, asset],
            deps=[[*key, "dataset"]],
            description=description,
            group_name=f"{name}_models",
            kinds=kinds,
            owners=OWNERS,
        )

    # One step, since the trainer trains them side by side; either can be asked for alone.
    @dg.multi_asset(
        name=f"{name}__training",
        specs=[
            spec(
                "baselines",
                {"torch", "mlflow"},
                "What a model must beat: each modality alone, and plain concatenation.",
            ),
            spec(
                "model",
                {"torch", "mlflow", "huggingface"},
                "The fused model: trained in a process of its own, logged and registered as a version in MLflow.",
            ),
        ],
        can_subset=True,
        required_resource_keys=needs,
        pool="gpu",
    )
    def training(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult]:
        asked = {asset.path[-1] for asset in context.selected_asset_keys}
        settings = load_settings(context, name)
        runs = [run for run in pipeline.plan(settings) if ("baselines" if run.is_baseline else "model") in asked]
        reports = train(context, settings, runs)
        if "baselines" in asked:
            yield _baselines([report for report in reports if report["version"] is None], [*key, "baselines"])
        if "model" in asked:
            (report,) = (report for report in reports if report["version"] is not None)
            yield _model(report, [*key, "model"])

    @dg.asset(
        key_prefix=key,
        group_name=f"{name}_models",
        kinds={"mlflow"},
        owners=OWNERS,
        deps=[[*key, "model"], [*key, "baselines"]],
        required_resource_keys=needs,
        description="The model beside its baselines on the test snapshot: every subset of the inputs, every slice.",
    )
    def evaluation(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        from training.tracking import find_run, read_artifact, read_json

        settings = load_settings(context, name)
        runs = pipeline.plan(settings)
        rows: list[dict[str, Any]] = []
        pictures = {}
        for run in runs:
            run_id = find_run(settings.mlflow_uri, settings.name, run.fingerprint)
            if run_id is None:
                raise ValueError(f"{run.name} has not been trained on this dataset: materialize it first")
            measured = read_json(settings.mlflow_uri, run_id, "evaluation.json")
            rows += [{"model": run.name, **row} for row in measured["rows"]]
            if not run.is_baseline:
                for title in ("confusion", "learning", "subsets", "examples"):
                    pictures[title] = picture(read_artifact(settings.mlflow_uri, run_id, f"{title}.png"))
        full = {row["model"]: row for row in rows if row["subset"] == row["inputs"] and row["slice"] is None}
        own = full["model"]["accuracy"]
        rivals = [row for row in full.values() if row["model"] != "model" and row["n"]]
        best = max(rivals, key=lambda row: row["accuracy"], default=None)
        beside = f"best baseline {best['model']} {best['accuracy']:.3f}" if best else "no baseline measured"
        return dg.MaterializeResult(
            metadata={
                "summary": f"model {_said(own)}, {beside}",
                "test_accuracy": own,
                "accuracy": accuracy_table([row for row in rows if row["slice"] is None], ("model", "subset")),
                "slices": accuracy_table([r for r in rows if r["model"] == "model" and r["slice"]], ["slice"]),
                **pictures,
            }
        )

    @dg.asset(
        key_prefix=key,
        group_name=f"{name}_models",
        kinds={"mlflow"},
        owners=OWNERS,
        deps=[[*key, "evaluation"]],
        required_resource_keys=needs,
        description="The version that answers: moves only to a model that the gate finds better on the same test rows.",
    )
    def champion(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        decision = gate(context, load_settings(context, name))
        for reason in decision["reasons"]:
            context.log.info(reason)
        verdict = "is champion" if "champion" in decision["aliases"] else "keeps challenger"
        return dg.MaterializeResult(
            metadata={
                "summary": f"version {decision['version']} {verdict}",
                "why": dg.MetadataValue.md("\n".join(f"- {reason}" for reason in decision["reasons"])),
                **decision,
            }
        )

    return [training, evaluation, champion]


def _said(accuracy: float | None) -> str:
    return "not measured (no test row has its inputs)" if accuracy is None else f"{accuracy:.3f}"


def _baselines(reports: list[dict[str, Any]], key: list[str]) -> dg.MaterializeResult:
    accuracy = {report["name"]: report["metrics"]["accuracy"] for report in reports}
    return dg.MaterializeResult(
        asset_key=key,
        metadata={
            "summary": ", ".join(f"{baseline} {_said(value)}" for baseline, value in accuracy.items()),
            "accuracy": counts_table(accuracy, ("baseline", "test accuracy")),
            "runs": {report["name"]: report["mlflow_run_id"] for report in reports},
            "trained": sum(not report["reused"] for report in reports),
            "seconds": sum(sum(report["seconds"].values()) for report in reports if not report["reused"]),
        },
    )


def _model(report: dict[str, Any], key: list[str]) -> dg.MaterializeResult:
    accuracy = report["metrics"]["accuracy"]
    how = "already trained" if report["reused"] else "trained"
    return dg.MaterializeResult(
        asset_key=key,
        metadata={
            "summary": f"version {report['version']} {how}, test accuracy {_said(accuracy)}",
            "test_accuracy": accuracy,
            "subsets": counts_table(report["subsets"], ("inputs given", "test accuracy")),
            "version": int(report["version"]),
            "reused": report["reused"],
            "mlflow_run_id": report["mlflow_run_id"],
            "dataset_fingerprint": report["dataset_fingerprint"],
            "metrics": report["metrics"],
            "subset_accuracy": report["subsets"],
            "seconds": 0.0 if report["reused"] else sum(report["seconds"].values()),
        },
    )


def train(context: dg.AssetExecutionContext, project: Project, runs: list[RunSpec]) -> list[dict[str, Any]]:
    """The reports of the asked-for trainings; only those that MLflow does not know are done, in one child process."""
    from training.tracking import find_report

    known: dict[str, dict[str, Any] | None] = {
        run.name: find_report(project.mlflow_uri, project.name, run.fingerprint) for run in runs
    }
    missing = tuple(run for run in runs if known[run.name] is None)
    if missing:
        lake = pipeline.open_lake(project)
        snapshot = pipeline.present_snapshot(lake)
        spec = JobSpec(
            project=project.name,
            lake=lake.uri,
            storage_options=dict(lake.storage_options),
            dataset=snapshot.fingerprint,
            version=snapshot.version,
            feature_fingerprints=snapshot.features,
            features=project.features,
            limits=project.limits,
            tracking_uri=project.mlflow_uri,
            artifacts=None if project.tracking_uri else str(project.home / "artifacts"),
            cache=str(project.folder / "cache"),
            checkpoints=str(project.folder / "checkpoints"),
            tags={"dagster_run_id": context.run.run_id},
            parallel=project.training.parallel,
            runs=missing,
        )
        for made in LAUNCHERS.make(project.launcher).launch(context, spec.to_json()):
            known[made["name"]] = made
    reports = []
    for run in runs:
        if (report := known[run.name]) is None:
            raise RuntimeError(f"the trainer ended without a report of {run.name}: its output above says why")
        reports.append(report | {"reused": run not in missing})
    return reports
