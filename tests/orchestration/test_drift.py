"""`drift`: the log of answers beside what the version did in its test."""

import dagster as dg
import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

from orchestration import drift as module
from orchestration.cli import main
from orchestration.definitions import project_definitions
from orchestration.drift import drift
from orchestration.project import ProjectError, load
from orchestration.serving.answer_log import answer_row
from tests.orchestration.test_alerts import hook  # noqa: F401
from tests.orchestration.test_housekeeping import run_data_side
from tests.orchestration.test_trace import train
from training.mlflow_store import client
from training.schema import ANSWERS, MODALITIES


def log(lake, version, places, answer):
    rows = []
    for n, place in enumerate(places):
        given = [(modality, f"{answer} {n} {modality}".encode()) for modality in MODALITIES]
        told = {"model_version": str(version.version), "prediction": answer, "probability": 0.5, "x_m": place.tolist()}
        rows += [answer_row(given, told, MODALITIES, ())] * (1 + n % 2)  # some are asked twice
    lake.append("answers", [pa.Table.from_pylist(rows, ANSWERS)])


@pytest.mark.usefixtures("hook")
def test_what_is_asked_and_answered_otherwise_is_told_once(tiny, monkeypatch, hook):  # noqa: F811
    monkeypatch.setattr(module, "LEAST", 8)  # the test rows are twelve
    with tiny.open("a") as file:
        file.write(f"answers: {{log: true}}\nalerts: {{webhook: '{hook.url}', on: [drift]}}\n")
    project = load(tiny)
    lake, _ = run_data_side(project)
    version, placed = train(project, lake)
    store = client(project.mlflow_uri)
    store.set_registered_model_alias(project.name, "champion", version.version)
    with pytest.raises(ValueError, match="no answer of version 1 of tiny is logged"):
        drift(project)
    tests = lake.sql("SELECT sample_id FROM dataset WHERE split = 'test'")["sample_id"].to_pylist()
    random = np.random.default_rng(1)
    near = [placed[name] + 0.01 * random.normal(size=8) for name in tests]
    log(lake, version, near, "yes")
    (sensor,) = (s for s in project_definitions(project).sensors if s.name == "tiny_drift")
    with dg.DagsterInstance.ephemeral() as instance:
        context = dg.build_sensor_context(instance=instance)
        found = drift(project)
        assert (found.answers, found.rows, found.differs) == (len(tests), len(tests), [])
        assert {"places", "answers"} <= set(found.found)
        assert sensor(context).skip_message == "differs: nothing" and not hook.got
        log(lake, version, [np.full(8, 3.0) + 0.01 * random.normal(size=8) for _ in range(40)], "no")
        found = drift(project)
        assert found.differs[-2:] == ["places", "answers"] and found.answers == len(tests) + 40
        assert sensor(context).skip_message == sensor(context).skip_message
    ((_, told),) = hook.got
    assert told["event"] == "drift" and "where the model places them" in told["message"]
    assert "/models/tiny/versions/1" in told["url"]
    opening = f"tiny: the champion meets other data than in its test\n{found.answers} answers of version 1"
    assert told["text"].startswith(opening)
    said = CliRunner().invoke(main, ["drift", str(tiny)]).output.splitlines()
    assert said[0].startswith(f"{found.answers} answers of version 1 since ")
    assert [line.split()[0] for line in said[1:]][-2:] == ["differs", "differs"]


def test_without_a_log_nothing_can_be_told(tiny):
    with pytest.raises(ProjectError, match=r"alerts.on is .*drift.*, expected others than drift, unless answers.log"):
        load(tiny, ["alerts={webhook: 'https://x.test', on: [drift]}"])
