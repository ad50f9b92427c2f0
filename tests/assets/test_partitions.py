"""Partitions by event time: each item in exactly one, and all of them make what a run without them makes."""

import csv
from datetime import UTC, datetime, timedelta

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets import featurizing, pipeline
from assets.asset_checks import check_balance
from assets.partitions import PartitionSettings
from orchestration.inspection import check
from orchestration.project import ProjectError, load
from tests.conftest import write_csv

DAYS = "partitions={by: day, start: 2024-01-02, end: 2024-01-06}"
FIRST = datetime(2024, 1, 1, tzinfo=UTC)


def timed(path):
    """Gives the project's questions and recordings times, of before and after the partitions, too; pictures have
    none. Returns the project file."""
    for name in ("questions", "recordings"):
        table = path.parent / f"{name}.csv"
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
        for n, row in enumerate(rows):
            row["at"] = "" if n % 9 == 8 else (FIRST + timedelta(days=n % 7, hours=n % 24)).isoformat()
        write_csv(table, rows)
        path.write_text(path.read_text().replace(f"table: {name}.csv", f"table: {name}.csv, time: at"))
    return path


def list_items(path, *overrides):
    project = load(path, overrides)
    lake = pipeline.open_lake(project)
    pipeline.write_manifest(lake, project)
    return project, lake


def fill(project, lake, keys, modalities=("text", "image", "speech")):
    """Makes some partitions; returns what was counted of each modality."""
    within = project.partitions.within(keys)
    return {m: featurizing.process_modality(lake, project, m, within) for m in modalities}


@settings(max_examples=50)
@given(st.lists(st.none() | st.datetimes(datetime(2023, 12, 30), datetime(2024, 1, 9), timezones=st.just(UTC))))
def test_each_item_is_in_exactly_one_partition(times):
    items = pa.table({"time": pa.array(times, pa.timestamp("us", "UTC"))})  # DuckDB finds it
    for by, key in (("day", "%Y-%m-%d"), ("hour", "%Y-%m-%d-%H:00")):
        partitions = PartitionSettings(by=by, start="2024-01-02", end="2024-01-06")
        keys = partitions.keys()
        numbers = duckdb.sql(f"SELECT {partitions.number(len(keys))} FROM items").fetchall()
        assert len(numbers) == items.num_rows
        for time, (number,) in zip(times, numbers, strict=True):
            held = min(max(time or FIRST, datetime(2024, 1, 2, tzinfo=UTC)), datetime(2024, 1, 5, 23, tzinfo=UTC))
            assert keys[number] == held.strftime(key if by == "hour" else "%Y-%m-%d")


@pytest.mark.slow
def test_all_partitions_make_what_a_run_without_them_makes(tiny, tmp_path):
    timed(tiny)
    plain, one = list_items(tiny, f"lake={tmp_path / 'plain'}")
    whole = {m: featurizing.process_modality(one, plain, m) for m in plain.modalities}
    pipeline.write_samples(one, plain)
    expected = pipeline.write_dataset(one, plain).fingerprint

    project, lake = list_items(tiny, DAYS)
    made = [fill(project, lake, keys) for keys in (["2024-01-05"], ["2024-01-03", "2024-01-04"])]
    with pytest.raises(ValueError, match=r"neither cleaned nor refused, such as .*: clean them first"):
        pipeline.write_samples(lake, project)
    made.append(fill(project, lake, ["2024-01-02"]))
    for modality in project.modalities:
        for what in ("seen", "processed", "quarantined"):
            assert sum(counts[modality][what] for counts in made) == whole[modality][what], (modality, what)
    assert all(not counts["processed"] for counts in fill(project, lake, project.partitions.keys()).values())
    pipeline.write_samples(lake, project)
    assert check_balance(lake, project).passed
    assert pipeline.write_dataset(lake, project).fingerprint == expected


def test_what_comes_late_and_what_changed_is_in_the_partition_of_its_time(tiny):
    timed(tiny)
    project, lake = list_items(tiny, DAYS)
    fill(project, lake, project.partitions.keys(), ["text"])
    table = tiny.parent / "questions.csv"
    table.write_text(table.read_text().replace("Is it bright? (1)", "Is it bright? (one)"))  # of 2024-01-02
    with table.open("a") as file:
        file.write("late,Is it late?,no,2024-01-04T05:00\n")
    keys = project.partitions.keys()
    told = [dict(check(project, decoded=0, partition=key).run.work) for key in keys]
    project, lake = list_items(tiny, DAYS)
    made = [fill(project, lake, [key], ["text"])["text"] for key in keys]
    assert [counts["processed"] for counts in made] == [1, 0, 1, 0]
    assert [{t: w.contents for t, w in work.items() if "text" in t} for work in told] == [c["computed"] for c in made]
    assert [[*work["clean_text"].why] for work in told if "clean_text" in work] == [["changed"], ["new"]]


def test_what_a_partition_cannot_read_stays_told_while_another_is_made(tiny):
    timed(tiny)
    project, lake = list_items(tiny, DAYS)
    away = [tiny.parent / "recordings" / f"q0{n}.wav" for n in (1, 2)]  # of 2024-01-02 and 2024-01-03
    for file in away:
        file.rename(file.with_suffix(".gone"))
    keys = ["2024-01-02", "2024-01-03", "2024-01-02"]
    unread = "SELECT member, uri FROM quarantine WHERE stage = 'clean' AND fingerprint IS NULL ORDER BY uri"
    for key in keys:
        fill(project, lake, [key], ["speech"])
    assert [row["uri"][-7:] for row in lake.sql(unread).to_pylist()] == ["q01.wav", "q02.wav"]
    away[1].with_suffix(".gone").rename(away[1])
    assert fill(project, lake, ["2024-01-03"], ["speech"])["speech"]["processed"] == 1
    assert [row["uri"][-7:] for row in lake.sql(unread).to_pylist()] == ["q01.wav"]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("{by: week, start: 2024-01-02}", "by"),
        ("{by: day, start: soon}", "start is 'soon', expected a day such as"),
        ("{by: day, start: 2024-01-02T06:00}", "start is '2024-01-02T06:00', expected a day"),
        ("{by: hour, start: 2024-01-02T06:30}", "expected an hour such as"),
        ("{by: day, start: 2024-01-02, end: 2024-01-02}", "after start"),
        ("{by: day, start: 2999-01-02}", "yet to come"),
    ],
)
def test_partitions_that_cannot_be_are_refused(tiny, said, words):
    with pytest.raises(ProjectError, match=words):
        load(timed(tiny), [f"partitions={said}"])


def test_partitions_want_times_and_know_their_keys(tiny):
    with pytest.raises(ProjectError, match=r"partitions is .* expected none, unless a source says a column `time`"):
        load(tiny, [DAYS])
    partitions = load(timed(tiny), [DAYS]).partitions
    assert partitions.keys("2024-01-03") == ["2024-01-03"]
    assert partitions.keys("2024-01-03...2024-01-05") == ["2024-01-03", "2024-01-04", "2024-01-05"]
    for wrong in ("2024-01-06", "2024-01-05...2024-01-03", "today"):
        with pytest.raises(ValueError, match="partition is"):
            partitions.keys(wrong)
    hours = PartitionSettings(by="hour", start="2024-01-02")
    assert hours.keys()[0] == "2024-01-02-00:00" and hours.keys()[-1] >= datetime.now(UTC).strftime("%Y-%m-%d-%H")
