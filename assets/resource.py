"""How an asset gets the settings of its project: one Dagster resource a project, so that a run can override them."""

from typing import Any, cast

from assets.settings import Project
from training.mlflow_store import check_artifacts

TUNING = "tuning"  # the asset that is a search for settings
SILO = "silo"  # the asset that takes part in the training of a model by several silos
OF_MLFLOW = ("baselines", "model", "evaluation", "champion", "variants", TUNING, SILO)  # assets that need its server


def resource_key(project: str) -> str:
    """Projects share one code location, so each has a resource of its own."""
    return f"{project}_project"


def load_settings(context: Any, project: str) -> Project:
    """The project file as this run sees it: read now, with the run's overrides."""
    return cast(Project, getattr(context.resources, resource_key(project)).load())


def check_stores(context: Any, project: Project) -> None:
    """What the last steps of a run need, before the first one is worked through: whoever has started it.

    Raises:
        ValueError: it is not there.
    """
    selected = context.run.asset_selection  # none: all
    if not selected or any(key.path[-1] in OF_MLFLOW for key in selected):
        check_artifacts(project.artifacts_uri)
