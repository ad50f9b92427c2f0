"""What starts a project's job without a person: its schedule, and a sensor that sees new or changed files."""

from typing import Any

import dagster as dg

from assets.settings import Project
from assets.sources.base import signature_of
from assets.tables import table_entries
from orchestration.project import ProjectError, load

SENSOR_SECONDS = 30


def automation(project: Project, job: Any) -> tuple[list[dg.ScheduleDefinition], list[dg.SensorDefinition]]:
    """The schedules and sensors of a project; both can be switched on and off in the web UI."""
    check_schedule(project)
    schedules = []
    if project.schedule:
        schedules.append(
            dg.ScheduleDefinition(
                name=f"{project.name}_schedule",
                job=job,
                cron_schedule=project.schedule,
                default_status=dg.DefaultScheduleStatus.RUNNING,
                description=f"As {project.path.name} says, in UTC.",
            )
        )
    path = project.path

    @dg.sensor(
        name=f"{project.name}_files",
        job=job,
        minimum_interval_seconds=SENSOR_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING if project.watch else dg.DefaultSensorStatus.STOPPED,
        description="Starts a run when the files of a source change, once they have stopped changing.",
    )
    def files(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        # The cursor holds what the last run was for, and what was seen at the last look: a run starts when a change
        # has stood still from one look to the next, so that a copy under way is not taken half.
        done, _, last = (context.cursor or "").partition(" ")
        now = signature(load(path))
        if done and now not in (done, last):
            context.update_cursor(f"{done} {now}")
            return dg.SkipReason("files are changing; waiting until they stand still")
        context.update_cursor(f"{now} {now}")
        if not done:
            return dg.SkipReason("first look; a run starts when something changes from now on")
        if now == done:
            return dg.SkipReason("nothing has changed")
        # Without a run key: Dagster would ignore a change that brings back what was there before.
        return dg.RunRequest()

    return schedules, [files]


def check_schedule(project: Project) -> None:
    """Raises ProjectError if the schedule is not one that Dagster knows."""
    try:
        dg.ScheduleDefinition(name="tried", job_name=project.name, cron_schedule=project.schedule or "@daily")
    except dg.DagsterInvalidDefinitionError:
        raise ProjectError(
            f"{project.path}: schedule is {project.schedule!r}, expected cron such as '0 3 * * *'"
        ) from None


def signature(project: Project) -> str:
    """Changes when a source's files or tables change in name, size or time; nothing is opened but archives' lists."""
    links = [] if project.align.table is None else table_entries(project.align.table, project.root, project.align)
    facts = [f"{entry.size} {entry.version}" for entry in links]
    for settings in project.sources:
        source = settings.make(project.root)
        if not settings.optional or source.exists():
            facts.append(f"{settings.name} {source.signature()}")
    return signature_of(facts)
