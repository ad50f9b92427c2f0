"""The blocking checks in real Dagster runs: each fault is planted, the run fails, and nothing downstream is made.

The planted faults are those a person can bring (tables written by other tools, a photo under two names, a split column
that tears groups apart) and, where only a mistake in our own code could make them, such a mistake.
"""

import csv
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import dagster as dg
import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import write_deltalake

from assets import pipeline
from assets.alignment import Alignment, align
from assets.lake import Lake
from assets.sources import Scan, scan
from orchestration.project import load
from orchestration.run import RunFailed, open_instance, run_job

MODALITIES = ("text", "image", "speech")
DATA = ["manifest", *(f"clean_{m}" for m in MODALITIES), *(f"{m}_features" for m in MODALITIES), "samples", "dataset"]
CHECKS = {f"{table}_schema" for table in DATA} | {"every_item_listed", "no_item_lost", "no_leakage", "null_rates"}


class Ran(NamedTuple):
    """What a run left on the instance."""

    failed: str | None  # the error that a person sees
    made: list[str]  # assets, in order
    checks: dict[str, bool]
    details: dict[str, dict[str, Any]]  # check -> metadata


def run(path: Path, names: str, *overrides: str) -> Ran:
    """A run of the project's job, cut to some assets, on an instance of its own."""
    with dg.DagsterInstance.ephemeral() as instance:
        failed = None
        try:
            run_job(load(path, overrides), instance, names, overrides)
        except RunFailed as error:
            failed = str(error)
        (ran,) = instance.get_runs()
        assert (ran.status == dg.DagsterRunStatus.SUCCESS) == (failed is None)
        events = [entry.dagster_event for entry in instance.all_logs(ran.run_id) if entry.dagster_event]
    made = [e.asset_key.path[-1] for e in events if e.event_type == dg.DagsterEventType.ASSET_MATERIALIZATION]
    results = [e.asset_check_evaluation_data for e in events if "CHECK_EVALUATION" in e.event_type_value]
    results = [e for e in results if isinstance(e, dg.AssetCheckEvaluation)]
    details = {e.check_name: {k: v.value for k, v in e.metadata.items()} for e in results}
    return Ran(failed, made, {e.check_name: e.passed for e in results}, details)


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory, make_project: Callable[..., Path]) -> Iterator[tuple[Path, Path]]:
    """A project and its lake after a good run."""
    folder = tmp_path_factory.mktemp("once")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIPTYCH_HOME", str(folder / "home"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        path = make_project(folder / "project")
        ran = run(path, "+dataset")
        assert ran.failed is None
        assert sorted(ran.made) == sorted(DATA)
        assert ran.checks == dict.fromkeys(CHECKS, True)
        yield path, Path(load(path).lake_uri)


def test_x(once): pass
