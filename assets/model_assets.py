"""Dagster's face of the model side: baselines, model, evaluation and champion of one project."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib import metadata
from typing import Any

import dagster as dg

from assets import links, pipeline
from assets.catalog import LAUNCHERS
from assets.data_assets import GPU_POOL
from assets.evaluation import evaluate, numbers
from assets.gate import gate
from assets.preview import bullets, counts_table, picture
from assets.resource import load_settings, resource_key
from assets.settings import Project
from training.metrics import Metric
from training.mlflow_store import kept_elsewhere
from training.records import CodecReport, PretrainingReport, TrainingReport, VariantReport, Verdict
from training.spec import (
    PREFERENCE,
    CodecSpec,
    JobSpec,
    PreferenceSpec,
    PretrainingSpec,
    RunSpec,
    TuningSpec,
    VariantSpec,
    shorter_training,
)


def model_assets(project: Project) -> list[dg.AssetsDefinition]:
    """dataset -> baselines and model -> evaluation -> champion, under the project's key prefix."""
    name, key = project.name, [project.name]
    asset = partial(
        dg.asset,
        key_prefix=key,
        group_name=f"{name}_models",
        kinds={"mlflow"},
        owners=list(project.owners),
        code_version=metadata.version("triptych"),
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
        from training.model_registry import describe_verdict

        project = load_settings(context, name)
        verdict = gate(context, project)
        for reason in verdict.reasons:
            context.log.info(reason)
        is_champion = "champion" in verdict.aliases
        outcome = "is champion" if is_champion else "keeps challenger"
        version = str(verdict.version)
        describe_verdict(project.mlflow_uri, name, version, verdict.reasons, is_champion)
        return dg.MaterializeResult(
            metadata={
                "summary": f"version {verdict.version} {outcome}",
                "mlflow": dg.MetadataValue.url(links.mlflow_version(project, version)),
                "why": bullets(verdict.reasons),
                **_differences(verdict),
                **verdict.to_json(),
            }
        )

    made = [codec_asset(project, modality) for modality in project.make_output().answers_with]
    made += [pretraining_asset(project)] if project.pretraining is not None else []
    forms = [variants_asset(project)] if project.variants else []
    return [*made, training_asset(project), evaluation, champion, *forms]


def trainer_asset(project: Project, name: str, deps: Sequence[str], description: str, kinds: set[str]) -> Any:
    """`dagster.asset` for what a trainer makes, beside baselines and model. Args: `deps` are assets of the project."""
    key = [project.name]
    return dg.asset(
        name=name,
        key_prefix=key,
        deps=[[*key, other] for other in deps],
        description=description,
        group_name=f"{project.name}_models",
        kinds=kinds,
        owners=list(project.owners),
        code_version=metadata.version("triptych"),
        required_resource_keys={resource_key(project.name)},
        pool=GPU_POOL,
    )


def variants_asset(project: Project) -> dg.AssetsDefinition:
    """The champion in smaller or faster forms, each judged and registered."""
    name = project.name

    @trainer_asset(
        project,
        name="variants",
        deps=["champion" if project.preference is None else PREFERENCE],
        description="The champion in smaller or faster forms: size, speed and answers of each, and whether it passes.",
        kinds={"torch", "mlflow"},
    )
    def variants(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        from assets.variants import check_variants, judge, materialized, planned
        from training.variant_making import find_variant

        settings = load_settings(context, name)
        check_variants(settings)
        specs, why = planned(settings)
        if not specs:
            return dg.MaterializeResult(metadata={"summary": why})
        reports = {spec.name: find_variant(settings.mlflow_uri, name, spec.fingerprint) for spec in specs}
        if missing := tuple(spec for spec in specs if reports[spec.name] is None):
            job = job_spec(context, settings, (), variants=missing)
            for values in LAUNCHERS.make(settings.launcher).launch(context, job.to_json()):
                reports[values["name"]] = VariantReport(**values)
        known = {spec: report for spec, report in reports.items() if report is not None}
        lines = judge(settings, specs, known)
        for line in lines[1:]:
            context.log.info(line.why)
        return materialized(settings, lines, len(missing))

    return variants


def codec_asset(project: Project, modality: str) -> dg.AssetsDefinition:
    """What makes few codes of the contents that a model answers with, and contents of codes again."""
    name = project.name

    @trainer_asset(
        project,
        name=f"{modality}_codec",
        deps=["dataset"],
        description=f"Turns {modality} into codes that the language model writes, and back.",
        kinds={"torch", "mlflow", modality},
    )
    def codec(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        from training.codec_training import find_codec
        from training.runs import read_artifact

        settings = load_settings(context, name)
        (wanted,) = (c for c in pipeline.codecs(pipeline.open_lake(settings), settings) if c.modality == modality)
        report = find_codec(settings.mlflow_uri, name, wanted.fingerprint)
        if is_new := report is None:
            launcher = LAUNCHERS.make(settings.launcher)
            (values,) = launcher.launch(context, job_spec(context, settings, (), (wanted,)).to_json())
            report = CodecReport(**values)
        assert report is not None
        told = "trained" if is_new else "already trained"
        return dg.MaterializeResult(
            metadata={
                "summary": f"{told} on {report.contents:,}: {report.length:.0f} of {report.codes:,} codes each, "
                f"likeness {report.likeness:.3f} of what becomes of test contents",
                "mlflow": dg.MetadataValue.url(links.mlflow_run(settings, report.mlflow_run_id)),
                "picture": picture(read_artifact(settings.mlflow_uri, report.mlflow_run_id, "reconstructions.png")),
                "reused": not is_new,
                **report.to_json(),
            }
        )

    return codec


def pretraining_asset(project: Project) -> dg.AssetsDefinition:
    """What the encoders of all models start from."""
    name = project.name

    @trainer_asset(
        project,
        name="pretraining",
        deps=["dataset"],
        description="The encoders learn from rows without labels: to tell what is hidden, and what belongs together.",
        kinds={"torch", "mlflow"},
    )
    def pretraining(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        from training.pretraining_run import find_pretraining

        settings = load_settings(context, name)
        wanted = pipeline.pretraining(pipeline.open_lake(settings), settings)
        assert wanted is not None
        report = find_pretraining(settings.mlflow_uri, name, wanted.fingerprint)
        if is_new := report is None:
            launcher = LAUNCHERS.make(settings.launcher)
            (values,) = launcher.launch(context, job_spec(context, settings, (), pretraining=wanted).to_json())
            report = PretrainingReport(**values)
        assert report is not None
        told = "trained" if is_new else "already trained"
        left = f", {report.left_out:,} more left out" if report.left_out else ""
        losses = {loss: f"{report.before[loss]:.3f} -> {value:.3f}" for loss, value in report.after.items()}
        return dg.MaterializeResult(
            metadata={
                "summary": f"{told} on {report.rows:,} rows ({report.unlabelled:,} without a label{left}); validation "
                f"losses {', '.join(f'{loss} {words}' for loss, words in losses.items()) or 'unknown: no such rows'}",
                "mlflow": dg.MetadataValue.url(links.mlflow_run(settings, report.mlflow_run_id)),
                "losses": counts_table(losses, ("what was asked", "validation loss before and after")),
                "reused": not is_new,
                **report.to_json(),
            }
        )

    return pretraining


def needed_by_trainings(project: Project) -> list[str]:
    """The assets that they read."""
    pretraining = ["pretraining"] if project.pretraining is not None else []
    return ["dataset", *(f"{m}_codec" for m in project.make_output().answers_with), *pretraining]


def training_asset(project: Project) -> dg.AssetsDefinition:
    """baselines and model of the project: one step, since they train side by side; either can be asked for alone."""
    name, key = project.name, [project.name]

    def spec(asset: str, kinds: set[str], description: str) -> dg.AssetSpec:
        return dg.AssetSpec(
            [*key, asset],
            deps=[[*key, other] for other in needed_by_trainings(project)],
            description=description,
            group_name=f"{name}_models",
            kinds=kinds,
            owners=list(project.owners),
            code_version=metadata.version("triptych"),
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
        pool=GPU_POOL,
    )
    def training(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult]:
        selected = {asset.path[-1] for asset in context.selected_asset_keys}
        settings = load_settings(context, name)
        if elsewhere := kept_elsewhere(settings.mlflow_uri, name, settings.artifacts and settings.artifacts_uri):
            context.log.warning(elsewhere)
        plan = pipeline.plan(settings)
        runs = [run for run in plan if ("baselines" if run.is_baseline else "model") in selected]
        reports, metric = train(context, settings, runs), settings.make_output().metric()
        trained = {report.name for report, is_new in reports if is_new}
        if "baselines" in selected:
            baselines = [report for report, _ in reports if report.name != "model"]
            pages = {report.name: links.mlflow_run(settings, report.mlflow_run_id) for report in baselines}
            yield _baselines(baselines, trained, metric, [*key, "baselines"], pages, _noted(plan))
        if "model" in selected:
            (report,) = (report for report, _ in reports if report.name == "model")
            page = links.mlflow_run(settings, report.mlflow_run_id)
            yield _model(report, report.name not in trained, metric, [*key, "model"], page)

    return training


def _differences(verdict: Verdict) -> dict[str, float]:
    """What the gate measured, as flat metadata, which the web UI plots over time."""
    values: dict[str, float] = {"test_n": verdict.standings[0].all.rows} if verdict.standings else {}
    for standing in verdict.standings:
        figures = {"score": standing.all.b, "difference": standing.all.difference, "p": standing.all.p}
        values |= {f"{name}/{standing.name}": round(value, 4) for name, value in figures.items()}
    return values


def _noted(plan: Sequence[RunSpec]) -> str:
    """What has to be said wherever figures of baselines stand beside the model's."""
    shorter = shorter_training(plan)
    return f"; {shorter}" if shorter else ""


def _baselines(
    reports: Sequence[TrainingReport],
    trained: set[str],
    metric: Metric,
    key: list[str],
    pages: Mapping[str, str],
    noted: str,
) -> dg.MaterializeResult:
    """Args: `trained` names those that were trained in this run; `pages` are theirs in MLflow."""
    figures = {f"{name}/{report.name}": report.metrics[name] for report in reports for name in (metric.name, "n")}
    return dg.MaterializeResult(
        asset_key=key,
        metadata={
            "summary": _baselines_words(reports, metric) + noted,
            "mlflow": dg.MetadataValue.md(" · ".join(f"[{name}]({page})" for name, page in pages.items())),
            "baselines": counts_table(_filled(reports), ("baseline", f"test {metric.words}, all rows")),
            **{name: value for name, value in figures.items() if value is not None},
            "runs": {report.name: report.mlflow_run_id for report in reports},
            "trained": sum(report.name in trained for report in reports),
            "seconds": sum(sum(report.seconds.values()) for report in reports if report.name in trained),
        },
    )


def _filled(reports: Sequence[TrainingReport]) -> dict[str, float | None]:
    """Baseline -> its figure on all test rows, the majority answer where it has no input."""
    return {report.name: report.filled[max(report.filled, key=len)] for report in reports}


def _baselines_words(reports: Sequence[TrainingReport], metric: Metric) -> str:
    """All on the same rows; those that cannot answer them all on their own rows, too."""
    if not reports:
        return "none"
    everyone = reports[0].test_rows
    words = [f"{name} {value:.3f}" for name, value in _filled(reports).items() if value is not None]
    own = []
    for report in reports:
        value, n = report.metrics[metric.name], int(report.metrics["n"] or 0)
        if n < everyone:
            own.append(f"{report.name} {_words(value)}" + (f" on its own {n:,}" if n else ""))
    return f"{', '.join(words)} on the same {everyone:,} test rows" + (f" ({', '.join(own)})" if own else "")


def _words(value: float | None) -> str:
    return "not measured (no test row has its inputs)" if value is None else f"{value:.3f}"


def _model(report: TrainingReport, reused: bool, metric: Metric, key: list[str], page: str) -> dg.MaterializeResult:
    assert report.version is not None
    n, value = report.metrics["n"], report.metrics[metric.name]
    how = "already trained" if reused else "trained"
    return dg.MaterializeResult(
        asset_key=key,
        metadata={
            "summary": f"version {report.version} {how}, test {metric.words} {_words(value)} (n = {n:,})"
            + (f"; {report.critic.words}" if report.critic else ""),
            "mlflow": dg.MetadataValue.url(page),
            "subsets": counts_table(report.subsets, ("inputs given", f"test {metric.words}")),
            "version": int(report.version),
            "reused": reused,
            "mlflow_run_id": report.mlflow_run_id,
            "dataset_fingerprint": report.dataset_fingerprint,
            "metrics": dict(report.metrics),
            "metric": metric.name,
            "subset_metrics": dict(report.subsets),  # that metric of each
            "subset_rows": dict(report.rows),
            "subset_filled": dict(report.filled),
            "seconds": 0.0 if reused else sum(report.seconds.values()),
            **({"critic": report.critic.to_json()} if report.critic else {}),
            **numbers(report),
        },
    )


def train(
    context: dg.AssetExecutionContext, project: Project, runs: list[RunSpec]
) -> list[tuple[TrainingReport, bool]]:
    """The report of each training, and whether it was done now: only those that MLflow does not know are, in one child
    process."""
    from training.runs import find_report

    reports = {run.name: find_report(project.mlflow_uri, project.name, run.fingerprint) for run in runs}
    missing = tuple(run for run in runs if reports[run.name] is None)
    if missing:
        lake, launcher = pipeline.open_lake(project), LAUNCHERS.make(project.launcher)
        codecs = tuple(pipeline.codecs(lake, project))
        pretraining = pipeline.pretraining(lake, project)
        for values in launcher.launch(context, job_spec(context, project, missing, codecs, pretraining).to_json()):
            report = TrainingReport.from_json(values)
            reports[report.name] = report
    trained = []
    for run in runs:
        if (report_of_run := reports[run.name]) is None:
            raise RuntimeError(f"the trainer ended without a report of {run.name}: its output above says why")
        trained.append((report_of_run, run in missing))
    return trained


def job_spec(
    context: dg.AssetExecutionContext,
    project: Project,
    runs: tuple[RunSpec, ...],
    codecs: tuple[CodecSpec, ...] = (),
    pretraining: PretrainingSpec | None = None,
    tuning: TuningSpec | None = None,
    variants: tuple[VariantSpec, ...] = (),
    preference: PreferenceSpec | None = None,
) -> JobSpec:
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
        augmented_fingerprints=pipeline.augmented_features(project),
        features=project.features,
        limits=project.limits,
        tracking_uri=project.mlflow_uri,
        artifacts=project.artifacts_uri,
        cache=str(project.folder / "cache"),
        checkpoints=str(project.folder / "checkpoints"),
        tags={"dagster_run_id": context.run.run_id, "dagster_url": links.dagster_run(project, context.run.run_id)},
        answers=", ".join(project.align.labels)
        or ("label" if project.make_output().has_labels else "what goes with it"),
        own_code=str(project.root) if str(project.root) in sys.path else "",  # where own kinds lie, if it has some
        codecs=codecs,
        pretraining=pretraining,
        preference=preference,
        tuning=tuning,
        variants=variants,
        runs=runs,
    )
