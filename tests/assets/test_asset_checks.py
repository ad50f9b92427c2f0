"""The blocking checks in real Dagster runs: each fault is planted, the run fails, and nothing downstream is made.

The planted faults are those a person can bring (tables written by other tools, a photo under two names, a split column
that tears groups apart) and, where only a mistake in our own code could make them, such a mistake.
"""

import csv
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import dagster as dg
import duckdb
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from assets import pipeline
from assets.alignment import align_items
from assets.dataset import dataset_sql
from assets.lake import Lake
from assets.scan import scan_into
from orchestration.project import load
from orchestration.run import RunFailed, run_job

MODALITIES = ("text", "image", "speech")
DATA = ["manifest", *(f"clean_{m}" for m in MODALITIES), *(f"{m}_features" for m in MODALITIES), "samples", "dataset"]
CHECKS = {f"{table}_schema" for table in DATA}
CHECKS |= {"every_item_listed", "no_item_lost", "no_leakage", "one_label_each", "null_rates"}


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
    results = [e.event_specific_data for e in events if e.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION]
    details = {e.check_name: {k: v.value for k, v in e.metadata.items()} for e in results}
    return Ran(failed, made, {e.check_name: e.passed for e in results}, details)


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory, make_project: Callable[..., Path]) -> Iterator[tuple[Path, Path]]:
    """A project and its lake after a good run."""
    folder = tmp_path_factory.mktemp("once")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIPTYCH_HOME", str(folder / "home"))
        path = make_project(folder / "project")
        ran = run(path, "+dataset")
        assert ran.failed is None
        assert sorted(ran.made) == sorted(DATA)
        assert ran.checks == dict.fromkeys(CHECKS, True)
        yield path, Path(load(path).lake_uri)


@pytest.fixture
def done(once: tuple[Path, Path], tmp_path: Path, home: Path) -> Path:
    """The same project with a lake of its own, so that a test may spoil it; returns the project's file."""
    path, lake = once
    shutil.copytree(lake, home / "projects" / "tiny" / "lake")
    shutil.copytree(path.parent, tmp_path / "project")
    return tmp_path / "project" / path.name


def lake_of(path: Path) -> Lake:
    return pipeline.open_lake(load(path))


def assert_blocked(ran: Ran, check: str, downstream: str) -> None:
    """Only this check failed, the run says so, and the asset after it was not made."""
    assert [name for name, passed in ran.checks.items() if not passed] == [check]
    assert ran.failed is not None and check in ran.failed
    assert "\n" not in ran.failed and "dagster." not in ran.failed, "a line that a person can read"
    assert downstream not in ran.made


RETYPED = {
    "manifest": ("size", pa.string(), "clean_text"),
    "clean_text": ("language", pa.binary(), "samples"),
    "clean_image": ("width", pa.int32(), "samples"),
    "clean_speech": ("seconds", pa.float32(), "samples"),
    "text_features": ("input_ids_shape", pa.list_(pa.int64()), "dataset"),
    "image_features": ("pixels_shape", pa.list_(pa.int64()), "dataset"),
    "speech_features": ("log_mel_shape", pa.list_(pa.int16()), "dataset"),
    "samples": ("time", pa.string(), "dataset"),
    "dataset": ("label", pa.binary(), "baselines"),
}


def rewrite(lake: Lake, name: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """As another tool would write the table: from DuckDB's types, in place of ours."""
    rows = change(lake.sql(f"SELECT * FROM {name}"))
    write_deltalake(lake.table_uri(name), rows, mode="overwrite", schema_mode="overwrite")


@pytest.mark.parametrize(
    "table", [pytest.param(table, marks=pytest.mark.slow) if n % 4 else table for n, table in enumerate(DATA)]
)
def test_a_table_with_another_column_type_blocks(done, table):
    column, kind, downstream = RETYPED[table]

    def retype(rows: pa.Table) -> pa.Table:
        return rows.set_column(rows.column_names.index(column), column, rows[column].cast(kind))

    rewrite(lake_of(done), table, retype)
    ran = run(done, f"{table},{downstream}")
    assert_blocked(ran, f"{table}_schema", downstream)
    found = ran.details[f"{table}_schema"]
    assert found["found"][column] != found["declared"][column]


@pytest.mark.parametrize(
    "change", [lambda rows: rows.drop(["format"]), lambda rows: rows.append_column("note", rows["format"])]
)
def test_a_column_less_or_more_blocks(done, change):
    rewrite(lake_of(done), "clean_image", change)
    assert_blocked(run(done, "clean_image,samples"), "clean_image_schema", "samples")


def test_tables_written_by_another_tool_with_the_same_columns_pass(done):
    for table in DATA:
        rewrite(lake_of(done), table, lambda rows: rows)
    ran = run(done, "+dataset")
    assert ran.failed is None
    assert ran.checks == dict.fromkeys(CHECKS, True)


def test_an_item_that_the_scan_loses_blocks(done, monkeypatch):
    def forgetful(connection: duckdb.DuckDBPyConnection, *given: Any) -> tuple[int, int]:
        found = scan_into(connection, *given)
        if given[0].name == "photos":
            one = "(SELECT min(item_id) FROM rows_now WHERE source = 'photos')"
            connection.execute(f"DELETE FROM rows_now WHERE item_id = {one}")
        return found

    monkeypatch.setattr(pipeline, "scan_into", forgetful)
    ran = run(done, "manifest,clean_text")
    assert_blocked(ran, "every_item_listed", "clean_text")
    assert ran.details["every_item_listed"] == {"seen": 157, "listed": 154, "refused": 2}


def lose_one(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("DELETE FROM samples WHERE sample_id = (SELECT min(sample_id) FROM samples)")


def list_one_twice(connection: duckdb.DuckDBPyConnection) -> None:
    row = "'align' AS stage, 'unmatched' AS outcome, 'no_key' AS reason, min(text_item) AS item_id, 'text' AS modality"
    connection.execute(f"INSERT INTO unmatched BY NAME SELECT {row} FROM samples")


@pytest.mark.parametrize(("mistake", "count"), [(lose_one, "text_lost"), (list_one_twice, "text_twice")])
def test_an_item_with_no_outcome_or_two_blocks(done, monkeypatch, mistake, count):
    def mistaken(connection: duckdb.DuckDBPyConnection, *given: Any) -> Any:
        said = align_items(connection, *given)
        mistake(connection)
        return said

    monkeypatch.setattr(pipeline, "align_items", mistaken)
    ran = run(done, "samples,dataset")
    assert_blocked(ran, "no_item_lost", "dataset")
    assert ran.details["no_item_lost"][count] == 1
    assert len(ran.details["no_item_lost"]["examples"]) >= 1


def change_recordings(path: Path, change: Callable[[int, dict[str, str]], dict[str, str]]) -> None:
    table = path.parent / "recordings.csv"
    with table.open(newline="") as file:
        rows = [change(number, row) for number, row in enumerate(csv.DictReader(file))]
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(row for row in rows if row)


@pytest.mark.slow
def test_a_split_column_that_tears_a_group_apart_blocks(done):
    parts = ("train", "validation", "test")
    change_recordings(done, lambda n, row: row | {"part": parts[int(row["id"][1:]) % 3]})
    ran = run(done, "manifest,clean_speech,samples,dataset", "align.split={column: part}")
    assert_blocked(ran, "no_leakage", "dataset")
    assert "speaker" in ran.details["no_leakage"]["values"]

    change_recordings(done, lambda n, row: row | {"part": parts[int(row["id"][1:]) // 3 % 3]})
    mended = run(done, "manifest,clean_speech,samples,dataset", "align.split={column: part}")
    assert mended.failed is None, "whole groups in one part each are what the column is for"


def test_one_photo_under_two_names_on_two_sides_blocks(done):
    query = "SELECT min(sample_id) AS s FROM samples WHERE split = $split AND image_id IS NOT NULL"
    lake = lake_of(done)
    one, other = (lake.sql(query, {"split": split})["s"][0].as_py() for split in ("train", "test"))
    photos = done.parent / "photos"
    shutil.copy2(photos / f"{one}.png", photos / f"{other}.png")
    ran = run(done, "manifest,clean_image,samples,dataset")
    assert_blocked(ran, "no_leakage", "dataset")
    assert ran.details["no_leakage"]["leaks"] == 1


@pytest.mark.slow
def test_one_photo_under_many_names_blocks_without_groups_unless_it_is_allowed(done):
    photos = sorted((done.parent / "photos").glob("*.png"))
    for photo in photos[1:]:
        shutil.copy2(photos[0], photo)
    names, free = "manifest,clean_image,samples,dataset", "align.group=[]"
    ran = run(done, names, free)
    assert_blocked(ran, "no_leakage", "dataset")
    assert "set align.group: [image_id] to keep equal ones on one side, or align.allow_shared" in ran.failed
    assert run(done, names, free, "align.allow_shared=image").failed is None


def test_one_input_with_two_labels_warns(done):
    table = done.parent / "questions.csv"
    asked = {"Is it bright? (9),yes": "Is it?,yes", "Is it high? (19),no": "Is it?,no"}  # both without any medium
    for before, after in asked.items():
        assert before in table.read_text()
        table.write_text(table.read_text().replace(before, after))
    ran = run(done, "manifest,clean_text,samples,dataset")
    assert ran.failed is None, "that a text repeats blocks nothing beside media"
    assert [name for name, passed in ran.checks.items() if not passed] == ["one_label_each"]


@pytest.mark.slow
def test_a_modality_that_hardly_any_sample_has_blocks(done):
    change_recordings(done, lambda n, row: row if n < 2 else {})
    ran = run(done, "manifest,clean_speech,samples,dataset,baselines")
    assert_blocked(ran, "null_rates", "baselines")
    assert ran.details["null_rates"]["mostly_missing"] == ["speech"]
    # The other recordings, which no row names any more, are samples without a label: they do not count.
    assert ran.details["null_rates"]["missing_speech"] == pytest.approx(58 / 60)


@pytest.mark.slow
def test_a_modality_of_which_nothing_can_be_read_blocks(done):
    ran = run(done, "clean_image,samples,dataset,baselines", "limits.max_pixels=100")
    assert_blocked(ran, "null_rates", "baselines")
    assert ran.details["null_rates"]["mostly_missing"] == ["image"]
    assert "(47 too_large, 1 corrupt, such as " in ran.failed, "why is said, and not only that"
    allowed = run(done, "clean_image,samples,dataset", "limits.max_pixels=100", "align.max_missing=1")
    assert allowed.failed is None


def test_a_training_row_without_a_label_blocks(done, monkeypatch):
    planted = dataset_sql().replace(" label,", " CASE WHEN sample_id <> 'q00' THEN label END AS label,")
    monkeypatch.setattr(pipeline, "dataset_sql", lambda: planted)
    shutil.rmtree(lake_of(done).table_uri("dataset"))  # it would not be written again
    ran = run(done, "dataset,baselines")
    assert_blocked(ran, "null_rates", "baselines")
    assert ran.details["null_rates"]["unlabelled"] == 1
