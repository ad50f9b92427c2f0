"""What starts a project's job, or makes single assets, without a person: its schedule, a sensor that sees new or
changed files, and conditions of assets. And how fresh assets have to be."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import dagster as dg
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

from assets.operation_settings import FreshnessSettings
from assets.resource import SILO, TUNING
from assets.settings import Project
from assets.sources.base import signature_of
from assets.tables import table_entries
from orchestration.alerts import alert_sensors
from orchestration.project import ProjectError, load
from training.validation import check

SENSOR_SECONDS = 30
ALL = "all"  # assets, in `automation`; but for a search for settings, which takes many trainings
FRESH = ("samples", "model")  # what `freshness` is said of


def automation(project: Project, job: Any) -> tuple[list[dg.ScheduleDefinition], list[dg.SensorDefinition]]:
    """The schedules and sensors of a project; both can be switched on and off in the web UI."""
    check_schedule(project)
    sensors: list[dg.SensorDefinition] = alert_sensors(project)
    if project.automation:
        sensors.append(
            dg.AutomationConditionSensorDefinition(
                name=f"{project.name}_automation",
                target=dg.AssetSelection.key_prefixes(project.name),
                default_status=dg.DefaultSensorStatus.RUNNING,
                description="Makes assets as `automation` of the project file says.",
            )
        )
    schedules = []
    if project.schedule:
        schedules.append(
            dg.ScheduleDefinition(
                name=f"{project.name}_schedule",
                job=job,
                cron_schedule=project.schedule,
                execution_fn=lambda _: dg.RunRequest(tags=partition_tags(project)),
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
        return dg.RunRequest(tags=partition_tags(project))

    return schedules, [files, *sensors]


def partition_tags(project: Project, wanted: str | None = None) -> dict[str, str]:
    """What makes a run one of partitions: of all, or of a key, or of FIRST...LAST; nothing where there are none.

    Raises:
        ValueError: there is no such partition.
    """
    if not (keys := partition_keys(project, wanted)):
        return {}
    return {ASSET_PARTITION_RANGE_START_TAG: keys[0], ASSET_PARTITION_RANGE_END_TAG: keys[-1]}


def partition_keys(project: Project, wanted: str | None = None) -> list[str]:
    """All, or those of a key, or of FIRST...LAST; none where there are none. Raises ValueError, as `partition_tags`."""
    if project.partitions is None:
        check(wanted is None, "partition", wanted, f"nothing: {project.path} says no partitions")
        return []
    return project.partitions.keys(wanted)


def with_conditions(project: Project, assets: Sequence[dg.AssetsDefinition]) -> Sequence[dg.AssetsDefinition]:
    """The assets with the freshness policies and automation conditions that the project file asks for.

    Raises:
        ProjectError: it names an asset that there is not, or no condition.
    """
    fresh = None if project.freshness is None else _policy(project.freshness)
    conditions = {name: _condition(project, name, words) for name, words in project.automation.items()}
    names = {key.path[-1] for made in assets for key in made.keys}
    for name in conditions:
        if name not in (*names, ALL):
            there = ", ".join(sorted(names))
            raise ProjectError(f"{project.path}: automation.{name} names no asset; there are {ALL}, {there}")

    def adorned(spec: dg.AssetSpec) -> dg.AssetSpec:
        name = spec.key.path[-1]
        condition = conditions.get(name, None if name in (TUNING, SILO) else conditions.get(ALL))
        spec = spec if condition is None else spec.replace_attributes(automation_condition=condition)
        is_fresh = fresh is not None and name in FRESH
        return spec.replace_attributes(freshness_policy=fresh) if is_fresh else spec

    return dg.map_asset_specs(adorned, assets)


def _policy(freshness: FreshnessSettings) -> dg.FreshnessPolicy:
    warn = None if freshness.warn_after is None else timedelta(seconds=freshness.warn_after)
    return dg.FreshnessPolicy.time_window(timedelta(seconds=freshness.fail_after), warn)


def _condition(project: Project, name: str, words: str) -> dg.AutomationCondition:
    if words == "eager":
        condition = dg.AutomationCondition.eager()
    elif words == "missing":
        condition = dg.AutomationCondition.on_missing()
    elif _is_cron(words):
        condition = dg.AutomationCondition.on_cron(words)
    else:
        raise ProjectError(
            f"{project.path}: automation.{name} is {words!r}, expected eager, missing or cron such as '0 3 * * *'"
        )
    # Of partitions Dagster's own would make the last one only, and what comes late would lie.
    condition = condition.without(dg.AutomationCondition.in_latest_time_window())
    # Dagster's own would go on while a blocking check of what the asset is made of has failed, and wait for the
    # sources, which it does not make.
    both = condition & dg.AutomationCondition.all_deps_blocking_checks_passed()
    return both.ignore(dg.AssetSelection.key_prefixes([project.name, "sources"])).with_label(words)


def _is_cron(words: str) -> bool:
    try:
        dg.ScheduleDefinition(name="tried", job_name="tried", cron_schedule=words)
    except dg.DagsterInvalidDefinitionError:
        return False
    return True


def check_schedule(project: Project) -> None:
    """Raises ProjectError if the schedule is not one that Dagster knows."""
    if project.schedule and not _is_cron(project.schedule):
        raise ProjectError(f"{project.path}: schedule is {project.schedule!r}, expected cron such as '0 3 * * *'")


def signature(project: Project) -> str:
    """Changes when a source's files or tables change in name, size or time; nothing is opened but archives' lists."""
    links = [] if project.align.table is None else table_entries(project.align.table, project.root, project.align)
    facts = [f"{entry.size} {entry.version}" for entry in links]
    for settings in project.sources:
        source = settings.make(project.root)
        if not settings.optional or source.exists():
            facts.append(f"{settings.name} {source.signature()}")
    return signature_of(facts)
