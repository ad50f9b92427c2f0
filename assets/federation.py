"""A silo's part in the training of a model as an asset: dataset -> silo, beside the trainings."""

from collections.abc import Sequence

import dagster as dg

from assets import links, pipeline
from assets.catalog import LAUNCHERS
from assets.model_assets import job_spec, trainer_asset
from assets.resource import SILO, load_settings
from assets.settings import Project
from training.records import SiloReport


def silo_asset(project: Project) -> dg.AssetsDefinition:
    """Of a project whose file names a coordinator; in a job of its own, since it lasts as long as the others want."""
    name = project.name

    @trainer_asset(
        project,
        name=SILO,
        deps=["dataset"],
        description="Trains a model together with other silos, whose rows are never seen here, nor these there.",
        kinds={"torch"},
    )
    def silo(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        settings = load_settings(context, name)
        run, *_ = pipeline.plan(settings)
        (values,) = LAUNCHERS.make(settings.launcher).launch(context, job_spec(context, settings, (run,)).to_json())
        report = SiloReport(**values)
        spent = "" if report.epsilon is None else f", epsilon {report.epsilon:.2f} spent"
        return dg.MaterializeResult(
            metadata={
                "summary": f"{report.rounds} rounds on {report.rows:,} training rows{spent}; {report.ended}",
                "mlflow": dg.MetadataValue.url(links.mlflow_run(settings, report.mlflow_run_id)),
                **{key: value for key, value in report.to_json().items() if value is not None},
            }
        )

    return silo


def check_silo(project: Project) -> None:
    """Raises ValueError where something is not installed, or not set, that this silo or coordinator needs."""
    from training.federation.private import check_opacus
    from training.federation.wire import secret

    federation = project.federation
    if federation is not None and (federation.coordinator or federation.listen):
        secret()
        if federation.privacy is not None and federation.coordinator:
            check_opacus()


def silo_tokens(project: Project) -> Sequence[tuple[str, str]]:
    """Each silo with the token that it needs, of the secret in the environment.

    Raises:
        ValueError: there is none, or the project has no silos.
    """
    from training.federation.wire import secret, token_of

    if project.federation is None:
        raise ValueError(f"{project.path} has no section `federation`")
    own = secret()
    return [(name, token_of(own, name)) for name in project.federation.silos]
