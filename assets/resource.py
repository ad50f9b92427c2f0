"""How an asset gets the settings of its project: one Dagster resource a project, so that a run can override them."""

from typing import Any, cast

from assets.settings import Project


def resource_key(project: str) -> str:
    """Projects share one code location, so each has a resource of its own."""
    return f"{project}_project"


def load_settings(context: Any, project: str) -> Project:
    """The project file as this run sees it: read now, with the run's overrides."""
    return cast(Project, getattr(context.resources, resource_key(project)).load())
