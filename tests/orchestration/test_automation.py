"""Automation conditions, freshness and retries as the project file says them, on Dagster's own evaluation."""

import dagster as dg
import pytest

from orchestration.definitions import project_definitions
from orchestration.project import ProjectError, load

SETTINGS = [
    "automation={all: eager, manifest: '0 3 * * *', champion: missing}",
    "freshness={fail_after: 26 h, warn_after: 25h}",
    "retries={steps: 2, delay: 1 s, runs: 3}",
]


def test_assets_carry_what_the_file_says(tiny):
    found = project_definitions(load(tiny, SETTINGS))
    graph = found.resolve_asset_graph()
    nodes = {key.path[-1]: graph.get(key) for key in graph.materializable_asset_keys}
    said = {name: node.automation_condition.get_label() for name, node in nodes.items()}
    assert said == dict.fromkeys(nodes, "eager") | {"manifest": "0 3 * * *", "champion": "missing"}
    fresh = {name: node.freshness_policy for name, node in nodes.items() if node.freshness_policy}
    assert set(fresh) == {"samples", "model"}
    windows = {(p.fail_window.to_timedelta(), p.warn_window.to_timedelta()) for p in fresh.values()}
    assert [[window.total_seconds() / 3600 for window in pair] for pair in windows] == [[26, 25]]
    assert found.resolve_sensor_def("tiny_automation").default_status == dg.DefaultSensorStatus.RUNNING
    assert found.resolve_job_def("tiny").tags["dagster/max_retries"] == "3"
    policies = {d.op.name: d.op.retry_policy for d in found.assets if isinstance(d, dg.AssetsDefinition)}
    assert {name for name, policy in policies.items() if policy} == {
        *("tiny__manifest", "tiny__text", "tiny__image", "tiny__speech")
    }
    plain = project_definitions(load(tiny)).resolve_asset_graph()
    assert all(plain.get(key).automation_condition is None for key in plain.materializable_asset_keys)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("automation={all: sometimes}", "automation.all is 'sometimes', expected eager, missing or cron"),
        ("automation={smaples: eager}", "automation.smaples names no asset; there are all, "),
    ],
)
def test_a_condition_that_there_is_not_is_an_error(tiny, setting, words):
    with pytest.raises(ProjectError, match=words):
        project_definitions(load(tiny, [setting]))


def test_eager_assets_follow_once_the_blocking_checks_have_passed(tiny):
    tiny.write_text(tiny.read_text() + "automation: {all: eager}\n")
    found = project_definitions(load(tiny))
    instance = dg.DagsterInstance.ephemeral()

    def asked(cursor):
        evaluated = dg.evaluate_automation_conditions(found, instance, cursor=cursor)
        keys = found.resolve_asset_graph().materializable_asset_keys
        return evaluated.cursor, {key.path[-1] for key in keys if evaluated.get_num_requested(key)}

    cursor, wanted = asked(None)
    assert wanted == set()
    job = found.resolve_job_def("tiny")
    assert job.execute_in_process(instance=instance, asset_selection=[dg.AssetKey(["tiny", "manifest"])]).success
    cursor, wanted = asked(cursor)
    assert wanted >= {f"clean_{m}" for m in ("text", "image", "speech")}


def test_a_step_whose_network_fails_is_tried_again(tiny, tmp_path):
    tiny.write_text(tiny.read_text() + "retries: {steps: 1, delay: 0}\n")
    moved = tiny.parent / "photos"
    found, instance = project_definitions(load(tiny)), dg.DagsterInstance.ephemeral()
    moved.rename(tmp_path / "away")
    job = found.resolve_job_def("tiny")
    key = [dg.AssetKey(["tiny", "manifest"])]
    result = job.execute_in_process(instance=instance, asset_selection=key, raise_on_error=False)
    events = [event.event_type_value for event in result.all_events]
    assert not result.success and events.count("STEP_UP_FOR_RETRY") == 1
