"""The code location: every registered project's assets, checks, job and schedule, made when Dagster asks for them.

``dagster dev -w workspace.yaml`` or ``triptych ui`` loads it; importing this module does nothing. `load_definitions`
brings one project into a code location of your own.
"""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import dagster as dg
from dagster._core.storage.tags import MAX_RETRIES_TAG
from filelock import FileLock
from pydantic import PrivateAttr

from assets.asset_checks import asset_checks
from assets.data_assets import data_assets, source_assets
from assets.federation import silo_asset
from assets.model_assets import model_assets
from assets.preference import preference_asset
from assets.resource import SILO, TUNING, resource_key
from assets.settings import Project
from assets.tuning import tuning_asset
from orchestration.automation import automation, with_conditions
from orchestration.console import lines
from orchestration.processes import cancel_when_interrupted, hold, wait_for_project, wait_quietly
from orchestration.project import home, load
from orchestration.registration import registered
from training.credentials import mask


class ProjectResource(dg.ConfigurableResource):
    """The project file and what this run overrides of it."""

    file: str
    overrides: list[str] = []  # noqa: RUF012 - pydantic copies it
    _lock: FileLock | None = PrivateAttr(None)  # of the project, as long as the run is at work

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Says that the run is in this process, also of one that the web UI or a schedule started."""
        wait_quietly()
        project = self.load()
        if context.instance is not None and context.run is not None:
            hold(context.instance, context.run.run_id)
            self._lock = wait_for_project(project, context.instance, context.run.run_id)
        checkpoints = project.folder / "checkpoints"
        if any(path.is_dir() for path in checkpoints.glob("*")):  # a training did not end; else MLflow is not asked
            from training.runs import end_dead_runs

            end_dead_runs(project.mlflow_uri, project.name, checkpoints)

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        if self._lock is not None:
            self._lock.release()

    def load(self) -> Project:
        return load(self.file, self.overrides)


def project_definitions(project: Project) -> dg.Definitions:
    """One project: its assets under its own key prefix, their checks, its job and its schedule."""
    job = partial(
        dg.define_asset_job,
        executor_def=dg.in_process_executor,  # steps share what they import; the trainer is a child anyway
        tags={MAX_RETRIES_TAG: str(project.retries.runs)} if project.retries.runs else None,  # from the failed step on
    )
    everything = dg.AssetSelection.key_prefixes(project.name)
    made, what = [*data_assets(project), *model_assets(project)], f"Everything from {project.path.name} to the champion"
    made += [preference_asset(project)] if project.preference is not None else []
    apart = {}  # many trainings, or one that others begin: which a schedule does not mean
    if project.tuning is not None:
        apart[TUNING] = tuning_asset(project), "A search for settings."
    if project.federation is not None and project.federation.coordinator is not None:
        apart[SILO] = silo_asset(project), "Takes part in the training of a model by several silos."
    main: dg.AssetSelection = everything
    without = f", without {' and '.join(apart)}" if apart else ""
    for asset, _ in apart.values():
        main = main - dg.AssetSelection.assets(asset)
    jobs = [job(project.name, selection=main, description=f"{what}{without}.")]
    for asset_name, (asset, description) in apart.items():
        made.append(asset)
        selection = dg.AssetSelection.assets(asset).upstream() & everything
        jobs.append(job(job_apart(project, asset_name), selection=selection, description=description))
    schedules, sensors = automation(project, jobs[0])
    return dg.Definitions(
        assets=[*source_assets(project), *with_conditions(project, made)],
        asset_checks=asset_checks(project),
        jobs=jobs,
        schedules=schedules,
        sensors=sensors,
        loggers={"lines": lines},
        resources={resource_key(project.name): ProjectResource.configure_at_launch(file=str(project.path))},
    )


def job_apart(project: Project, asset: str) -> str:
    """The name of the job that makes an asset which the project's own leaves out: TUNING or SILO."""
    return f"{project.name}_{asset}"


def load_definitions(file: Path | str, overrides: Sequence[str] = ()) -> dg.Definitions:
    """One project, to be merged with other definitions; it brings no executor, and its job keeps its own.

        from orchestration.definitions import load_definitions
        defs = dg.Definitions.merge(load_definitions("shop/project.yaml"), dg.Definitions(assets=[...], executor=...))

    Raises:
        ProjectError: the file cannot be read as a project; the message names the key.
    """
    return project_definitions(load(file, overrides))


@dg.definitions
def definitions() -> dg.Definitions:
    """All registered projects; one whose file is broken is left out with a warning, so the others stay usable."""
    cancel_when_interrupted()
    projects = []
    for name, path in registered(home()).items():
        try:
            projects.append(project_definitions(load(path)))
        except Exception as error:  # ProjectError, or what a project's own code raised
            what = mask(f"{type(error).__name__}: {error}")
            logging.getLogger("triptych").warning("project %s is left out: %s", name, what)
    return dg.Definitions.merge(*projects, dg.Definitions(executor=dg.in_process_executor))
