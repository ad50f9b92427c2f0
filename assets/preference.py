"""The champion learns from feedback, as an asset: champion -> preference, judged by the same gate."""

import hashlib

import dagster as dg
import pyarrow as pa

from assets import links, pipeline
from assets.catalog import LAUNCHERS
from assets.feedback import Pairs, collect_pairs
from assets.gate import gate
from assets.lake import Lake
from assets.model_assets import job_spec, trainer_asset
from assets.preview import bullets
from assets.resource import load_settings
from assets.settings import Project
from training.records import TrainingReport
from training.spec import PREFERENCE, PreferenceSpec, RunSpec, plan_preference


def preference_asset(project: Project) -> dg.AssetsDefinition:
    """Of a project whose file has `preference`."""
    name = project.name

    @trainer_asset(
        project,
        name=PREFERENCE,
        deps=["champion"],
        description="The champion, after it has learned from what people say of answers; judged as any model.",
        kinds={"torch", "mlflow"},
    )
    def preference(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        from training.model_registry import describe_verdict
        from training.preference_run import REPORT
        from training.runs import find_report, read_json

        settings = load_settings(context, name)
        pairs = collect_pairs(pipeline.open_lake(settings), settings)
        told = {"pairs": pairs.rows.num_rows, "left_out": dict(pairs.left_out)}
        if isinstance(plan := planned(settings, pairs), str):
            return dg.MaterializeResult(metadata={"summary": plan, **told})
        run, spec = plan
        report = find_report(settings.mlflow_uri, name, run.fingerprint)
        if is_new := report is None:
            job = job_spec(context, settings, (run,), preference=spec)
            (values,) = LAUNCHERS.make(settings.launcher).launch(context, job.to_json())
            report = TrainingReport.from_json(values)
        assert report is not None and report.version is not None
        verdict = gate(context, settings, (run, report.version))
        for reason in verdict.reasons:
            context.log.info(reason)
        is_champion = "champion" in verdict.aliases
        describe_verdict(settings.mlflow_uri, name, report.version, verdict.reasons, is_champion)
        said = read_json(settings.mlflow_uri, report.mlflow_run_id, REPORT)
        held = f"{said['held_before']:,} of {said['pairs']:,} preferences held before, {said['held']:,} now"
        outcome = "is champion" if is_champion else "keeps challenger"
        how = "learned from feedback" if is_new else "has learned from feedback already"
        return dg.MaterializeResult(
            metadata={
                "summary": f"version {report.version} {how} ({held}) and {outcome}; {pairs.words}",
                "mlflow": dg.MetadataValue.url(links.mlflow_run(settings, report.mlflow_run_id)),
                "why": bullets(verdict.reasons),
                "reused": not is_new,
                "reference": spec.reference,
                "held_before": said["held_before"],
                "held": said["held"],
                **told,
                **verdict.to_json(),
            }
        )

    return preference


def planned(project: Project, pairs: Pairs) -> tuple[RunSpec, PreferenceSpec] | str:
    """What learns from the pairs: the champion, or the version that it came from where it has learned from feedback
    already, so that all there is is learned at once. A sentence that says why, where nothing does."""
    from training import model_registry

    assert project.preference is not None
    uri, name, least = project.mlflow_uri, project.name, project.preference.least
    if (champion := model_registry.alias(uri, name, "champion")) is None:
        return "there is no champion yet that could learn"
    if pairs.rows.num_rows < least:
        return f"{pairs.words}; at least {least} are learned from (preference.least)"
    tags, lake = model_registry.version_tags(uri, name, champion), pipeline.open_lake(project)
    if before := tags.get("preference_of"):
        if before not in [str(version["version"]) for version in model_registry.versions(uri, name)]:
            return f"the champion, version {champion}, has learned from feedback, and the version before it is gone"
        champion, tags = before, model_registry.version_tags(uri, name, before)
    if of := tags.get("variant_of"):
        return f"the champion, version {champion}, is itself a variant of version {of}"
    if tags.get("dataset_fingerprint") != pipeline.present_snapshot(lake).fingerprint:
        return f"the champion, version {champion}, was trained on another dataset than the present one"
    model, digest = pipeline.plan(project)[0], _put(lake, pairs.rows)
    training, version = tags.get("training_fingerprint", ""), lake.require("preferences")
    return plan_preference(project.preference, model, champion, training, digest, version)


def _put(lake: Lake, rows: pa.Table) -> str:
    """Writes the pairs, unless they are there; returns what names them."""
    rows = rows.sort_by("answer_id")
    digest = hashlib.sha256(repr(rows.to_pylist()).encode()).hexdigest()[:16]
    if lake.note("preferences").get("fingerprint") != digest:
        lake.replace("preferences", rows, note={"fingerprint": digest})
    return digest
