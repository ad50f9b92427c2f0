"""Partitions as Dagster runs them: a single one, a range, all, and what automation asks for."""

import dagster as dg
import pytest

from orchestration.automation import partition_tags
from orchestration.definitions import project_definitions
from orchestration.forecast import UNCHANGED
from orchestration.inspection import check
from orchestration.project import load
from orchestration.run import RunFailed, open_instance, run_job, summary
from tests.assets.test_partitions import DAYS, timed

CLEAN = [dg.AssetKey(["tiny", f"clean_{m}"]) for m in ("text", "image", "speech")]


def made(instance, key):
    """Partitions that have been materialized."""
    return sorted(instance.get_materialized_partitions(key))


@pytest.mark.slow
def test_a_run_makes_the_partitions_that_are_asked_for_or_all(tiny):
    timed(tiny).write_text(tiny.read_text() + DAYS.replace("=", ": ") + "\n")
    project = load(tiny)
    wanted = "2024-01-03...2024-01-04"
    told = check(project, decoded=5, partition=wanted)
    assert (told.run.samples, told.run.dataset, told.run.trainings, told.problem) == (UNCHANGED, UNCHANGED, {}, None)
    with pytest.raises(ValueError, match="partition is '2023-01-01', expected one of 2024-01-02 to 2024-01-05"):
        check(project, partition="2023-01-01")
    with open_instance(project.home) as instance:
        first = summary(project, run_job(project, instance, partition=wanted))
        assert first.computed == {table: work.contents for table, work in told.run.work.items()}
        assert not check(project, decoded=0, partition=wanted).run.work
        assert 0 < first.items.processed < 100 and first.dataset.fingerprint is None
        for key in CLEAN:
            assert made(instance, key) == ["2024-01-03", "2024-01-04"]
        event = instance.get_latest_materialization_event(CLEAN[0])
        assert event is not None and event.asset_materialization.metadata["items"].value > 0
        with pytest.raises(RunFailed, match="neither cleaned nor refused"):
            run_job(project, instance, "samples")
        second = summary(project, run_job(project, instance, "+dataset"))
        assert first.items.processed + second.items.processed == 155 and second.dataset.fingerprint
        for key in CLEAN:
            assert made(instance, key) == ["2024-01-02", "2024-01-03", "2024-01-04", "2024-01-05"]
        with pytest.raises(ValueError, match="partition is '2023-01-01', expected one of 2024-01-02 to 2024-01-05"):
            run_job(project, instance, partition="2023-01-01")


def test_all_partitions_are_asked_for_once_the_manifest_is_new(tiny):
    timed(tiny).write_text(tiny.read_text() + DAYS.replace("=", ": ") + "\nautomation: {all: eager}\n")
    project = load(tiny)
    found, instance = project_definitions(project), dg.DagsterInstance.ephemeral()
    graph = found.resolve_asset_graph()
    assert {key for key in graph.materializable_asset_keys if graph.get(key).partitions_def} == {
        *CLEAN,
        *(dg.AssetKey(["tiny", f"{m}_features"]) for m in ("text", "image", "speech")),
    }
    cursor = dg.evaluate_automation_conditions(found, instance).cursor
    job = found.resolve_job_def("tiny")
    assert job.execute_in_process(instance=instance, asset_selection=[dg.AssetKey(["tiny", "manifest"])]).success
    evaluated = dg.evaluate_automation_conditions(found, instance, cursor=cursor)
    assert {key: evaluated.get_num_requested(key) for key in CLEAN} == dict.fromkeys(CLEAN, 4)
    context = dg.build_schedule_context(instance)
    (asked,) = found.resolve_schedule_def("tiny_schedule").evaluate_tick(context).run_requests
    assert {**asked.tags}.items() >= partition_tags(project).items()
    assert partition_tags(project)["dagster/asset_partition_range_end"] == "2024-01-05"
    with pytest.raises(ValueError, match="says no partitions"):
        partition_tags(load(tiny, ["partitions=null"]), "2024-01-02")
