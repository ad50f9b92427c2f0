"""Dagster's face of the model side: baselines, model, evaluation and champion of one project."""

import sys
from collections.abc import Iterator, Sequence
from functools import partial

import dagster as dg

from assets import pipeline
from assets.catalog import LAUNCHERS
from assets.gate import gate
from assets.preview import counts_table, evaluation_table, picture
from assets.resource import load_settings, resource_key
from assets.settings import Project
from training.catalog import OUTPUTS
from training.metrics import Metric
from training.records import EvaluationRow, TrainingReport
from training.spec import JobSpec, RunSpec

OWNERS = ["team:triptych"]
_PICTURES = ("confusion", "learning", "subsets", "examples")


def model_assets(project: Project) -> list[dg.AssetsDefinition]:
    """dataset -> baselines and model -> evaluation -> champion, under the project's key prefix."""
    name, key = project.name, [project.name]
    asset = partial(
        dg.asset,
        key_prefix=key,
        group_name=f"{name}_models",
        kinds={"mlflow"},
        owners=OWNERS,
        required_resource_keys={resource_key(name)},
    )

    @asset(
        deps=[[*key, "model"], [*key, "baselines"]],
        description="The model beside its baselines on the test snapshot: every subset of the inputs, every slice.",
    )
    def evaluation(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        return evaluate(load_settings(context, name))

    @asset(
        deps=[[*key, "evaluation"]],
        description="The version that answers: moves only to a model that the gate finds better on the same test rows.",
    )
    def champion(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        verdict = gate(context, load_settings(context, name))
        for reason in verdict.reasons:
            context.log.info(reason)
        outcome = "is champion" if "champion" in verdict.aliases else "keeps challenger"
        return dg.MaterializeResult(
            metadata={
                "summary": f"version {verdict.version} {outcome}",
                "why": dg.MetadataValue.md("\n".join(f"- {reason}" for reason in verdict.reasons)),
                **verdict.to_json(),
            }
        )

    return [training_asset(name), evaluation, champion]


def training_asset(name: str) -> dg.AssetsDefinition:
    """baselines and model of the project: one step, since they train side by side; either can be asked for alone."""
    key = [name]

    def spec(asset: str, kinds: set[str], description: str) -> dg.AssetSpec:
        return dg.AssetSpec(
            [*key, asset],
            deps=[[*key, "dataset"]],
            description=description,
            group_name=f"{name}_models",
            kinds=kinds,
            owners=OWNERS,
        )

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
        required_resource_keys={resource_key(name)},
        pool="gpu",
    )
    def training(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult]:
        selected = {asset.path[-1] for asset in context.selected_asset_keys}
        settings = load_settings(context, name)
        runs = [run for run in pipeline.plan(settings) if ("baselines" if run.is_baseline else "model") in selected]
        reports, metric = train(context, settings, runs), _metric(settings)
        trained = {report.name for report, is_new in reports if is_new}
        if "baselines" in selected:
            baselines = [report for report, _ in reports if report.version is None]
            yield _baselines(baselines, trained, metric, [*key, "baselines"])
        if "model" in selected:
            (report,) = (report for report, _ in reports if report.version is not None)
            yield _model(report, report.name not in trained, metric, [*key, "model"])

    return training


def evaluate(project: Project) -> dg.MaterializeResult:
    """The figures of the model and its baselines side by side, and the model's pictures, from their MLflow runs.

    Raises:
        ValueError: one of them has not been trained on the present dataset.
    """
    from training.tracking import find_run, read_artifact, read_json

    rows: list[tuple[str, EvaluationRow]] = []
    pictures = {}
    for run in pipeline.plan(project):
        run_id = find_run(project.mlflow_uri, project.name, run.fingerprint)
        if run_id is None:
            raise ValueError(f"{run.name} has not been trained on this dataset: materialize it first")
        entries = read_json(project.mlflow_uri, run_id, "evaluation.json")["rows"]
        rows += [(run.name, EvaluationRow.from_json(entry)) for entry in entries]
        if not run.is_baseline:
            for title in _PICTURES:
                pictures[title] = picture(read_artifact(project.mlflow_uri, run_id, f"{title}.png"))
    metric = _metric(project)
    values = {model: row.main.value for model, row in rows if row.is_full}
    whole = [({"model": model, "subset": row.subset}, row) for model, row in rows if row.slice is None]
    parts = [({"slice": row.slice}, row) for model, row in rows if model == "model" and row.slice is not None]
    return dg.MaterializeResult(
        metadata={
            "summary": f"model {_words(values['model'])}, {_best_baseline(values, metric)}",
            f"test_{metric.name}": values["model"],
            metric.name: evaluation_table(whole),
            "slices": evaluation_table(parts),
            "no_slices": _no_slices(project),
            **pictures,
        }
    )


def _no_slices(project: Project) -> str:
    """The columns that are left out of the slices, and why."""
    from training.evaluate import telling_columns

    test = pipeline.open_lake(project).sql("SELECT * FROM dataset WHERE split = 'test'")
    told = ", ".join(telling_columns(test))
    return f"{told} (who knows these knows the label, or nearly)" if told else "none"


def _metric(project: Project) -> Metric:
    """The one that people are shown."""
    return OUTPUTS.make(project.model.output, {}).metric()


def _best_baseline(values: dict[str, float | None], metric: Metric) -> str:
    measured = {model: value for model, value in values.items() if model != "model" and value is not None}
    if not measured:
        return "no baseline measured"
    best = (max if metric.higher_is_better else min)(measured, key=measured.__getitem__)
    return f"best baseline {best} {measured[best]:.3f}"


def _words(value: float | None) -> str:
    return "not measured (no test row has its inputs)" if value is None else f"{value:.3f}"


def _baselines(
    reports: Sequence[TrainingReport], trained: set[str], metric: Metric, key: list[str]
) -> dg.MaterializeResult:
    """Args: `trained` names those that were trained in this run."""
    values = {report.name: report.metrics[metric.name] for report in reports}
    name = metric.name.replace("_", " ")
    return dg.MaterializeResult(
        asset_key=key,
        metadata={
            "summary": ", ".join(f"{baseline} {_words(value)}" for baseline, value in values.items()),
            metric.name: counts_table(values, ("baseline", f"test {name}")),
            "runs": {report.name: report.mlflow_run_id for report in reports},
            "trained": sum(report.name in trained for report in reports),
            "seconds": sum(sum(report.seconds.values()) for report in reports if report.name in trained),
        },
    )


def _model(report: TrainingReport, reused: bool, metric: Metric, key: list[str]) -> dg.MaterializeResult:
    assert report.version is not None
    value, name = report.metrics[metric.name], metric.name.replace("_", " ")
    how = "already trained" if reused else "trained"
    return dg.MaterializeResult(
        asset_key=key,
        metadata={
            "summary": f"version {report.version} {how}, test {name} {_words(value)}",
            f"test_{metric.name}": value,
            "subsets": counts_table(report.subsets, ("inputs given", f"test {name}")),
            "version": int(report.version),
            "reused": reused,
            "mlflow_run_id": report.mlflow_run_id,
            "dataset_fingerprint": report.dataset_fingerprint,
            "metrics": dict(report.metrics),
            "metric": metric.name,
            "subset_metrics": dict(report.subsets),  # that metric of each
            "seconds": 0.0 if reused else sum(report.seconds.values()),
        },
    )


def train(
    context: dg.AssetExecutionContext, project: Project, runs: list[RunSpec]
) -> list[tuple[TrainingReport, bool]]:
    """The report of each training, and whether it was done now: only those that MLflow does not know are, in one child
    process."""
    from training.tracking import find_report

    reports = {run.name: find_report(project.mlflow_uri, project.name, run.fingerprint) for run in runs}
    missing = tuple(run for run in runs if reports[run.name] is None)
    if missing:
        launcher = LAUNCHERS.make(project.launcher)
        for values in launcher.launch(context, _job(context, project, missing).to_json()):
            report = TrainingReport.from_json(values)
            reports[report.name] = report
    trained = []
    for run in runs:
        if (report_of_run := reports[run.name]) is None:
            raise RuntimeError(f"the trainer ended without a report of {run.name}: its output above says why")
        trained.append((report_of_run, run in missing))
    return trained


def _job(context: dg.AssetExecutionContext, project: Project, runs: tuple[RunSpec, ...]) -> JobSpec:
    """What the trainer is asked to do: these runs on the present snapshot."""
    lake = pipeline.open_lake(project)
    snapshot = pipeline.present_snapshot(lake)
    return JobSpec(
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
        own_code=str(project.root) if str(project.root) in sys.path else "",  # where own kinds lie, if it has some
        runs=runs,
    )
