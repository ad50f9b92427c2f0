"""The tables as they were: what a dataset was made of can be asked after later runs, gc and erasures."""

from datetime import UTC, datetime

import pyarrow as pa
import pytest

from assets.lake import Lake
from assets.snapshots import Recorded, as_of, recorded, view
from orchestration.erasure import _holding, erase
from orchestration.housekeeping import collect
from orchestration.project import load
from tests.orchestration.test_housekeeping import lake_files, register_model, rows, run_data_side, take_away
from training.schema import MODALITIES, TABLES

COUNTED = (
    "manifest",
    "quarantine",
    "clean_image",
    "clean_text",
    "image_features",
    "measurements",
    "samples",
    "dataset",
)
MEASURED = ["filters.image={kind: sharpness, least: 0}"]


def said(lake, *tables):
    """All rows of tables, in no order."""
    return {name: sorted(map(repr, lake.sql(f"SELECT * FROM {name}").to_pylist())) for name in tables or COUNTED}


def test_a_snapshot_is_read_as_it_was_after_other_settings_other_files_and_gc(tiny):
    lake, _ = run_data_side(load(tiny, MEASURED))
    first, before = lake.note("dataset")["fingerprint"], said(lake)
    assert all(before[name] for name in COUNTED)
    register_model(load(tiny), lake)
    run_data_side(load(tiny, ["features.image.size=20"]))
    between = lake.note("dataset")["fingerprint"]
    for key in ("q01", "q02"):
        take_away(tiny, key)
    project = load(tiny)
    run_data_side(project)
    now = said(lake)
    alike = [name for name in COUNTED if now[name] == before[name]]
    assert alike == ["clean_image", "clean_text", "measurements"], "keyed by content, and nothing is gone yet"
    assert said(as_of(lake, first)) == before
    assert rows(as_of(lake, between), "image_features") == 47
    removed = collect(project, dry_run=False).removed
    assert removed["image_features"] == 47, "of a snapshot that nobody refers to"
    assert said(as_of(lake, first)) == before, "gc leaves what a registered version was trained on"
    assert list(recorded(lake)) == [lake.note("dataset")["fingerprint"], first]
    with pytest.raises(ValueError, match=f"no snapshot {between}; there are .*{first} "):
        as_of(lake, between)
    with pytest.raises(AssertionError, match="read only"):
        as_of(lake, first).delete("samples", "true")


def test_what_is_told_of_contents_is_told_of_those_that_a_snapshot_lists(tmp_path):
    lake = Lake(str(tmp_path / "lake"))

    def add(name, *rows):
        lake.append(name, [pa.Table.from_pylist(list(rows))])

    add("manifest", {"modality": "image", "sha256": "a"}, {"modality": "image", "sha256": "b"})
    add("quarantine", {"fingerprint": "limits"})
    for one in "abc":
        add("clean_image", {"parent_id": one, "id": one, "fingerprint": "clean"})
        add("signatures", {"id": one, "fingerprint": "signed"}, {"id": one, "fingerprint": "other"})
        add("embeddings", {"id": one, "fingerprint": "model"})
    add("near_duplicates", {"first": "a", "second": "b"}, {"first": "b", "second": "c"})
    add("steps", *({"fingerprint": key} for key in ("clean", "signed", "limits", "other")))
    steps = {"clean_image": ("clean",), "measurements": ("signed",)}
    then = view(lake, Recorded("first", datetime.now(UTC), {"manifest": 0, "quarantine": 0}, steps))
    assert then.sql("SELECT id FROM signatures ORDER BY id")["id"].to_pylist() == ["a", "b"]
    assert then.sql("SELECT id FROM embeddings ORDER BY id")["id"].to_pylist() == ["a", "b"]
    assert then.sql("SELECT second FROM near_duplicates")["second"].to_pylist() == ["b"]
    assert set(then.sql("SELECT fingerprint FROM steps")["fingerprint"].to_pylist()) == {"clean", "signed", "limits"}


@pytest.mark.slow
def test_as_many_other_snapshots_are_kept_as_the_project_file_says(tiny):
    found = []
    for size in (16, 18, 20):
        project = load(tiny, [f"features.image.size={size}", "keep_snapshots=1"])
        lake, _ = run_data_side(project)
        found.append(lake.note("dataset")["fingerprint"])
    collect(project, dry_run=False)
    assert list(recorded(lake)) == found[:0:-1]
    assert [rows(as_of(lake, one), "image_features") for one in found[1:]] == [47, 47]
    with pytest.raises(ValueError, match="keep_snapshots is -1, expected 0 or more"):
        load(tiny, ["keep_snapshots=-1"])


@pytest.mark.slow
def test_an_item_that_only_an_old_snapshot_lists_can_be_erased_from_it(tiny):
    project = load(tiny)
    lake, _ = run_data_side(project)
    register_model(project, lake)
    first = lake.note("dataset")["fingerprint"]
    (told,) = lake.sql("SELECT sha256, text FROM manifest WHERE key = 'q01' AND modality = 'text'").to_pylist()
    take_away(tiny, "q01")
    run_data_side(project)
    collect(project, dry_run=False)
    assert erase(project, "q01", dry_run=False, purge=False).models[0].version == 1
    assert not [path for path, words in lake_files(project) for one in told.values() if one in words]
    then = as_of(lake, first)
    assert (rows(then, "samples"), rows(then, "manifest"), rows(lake, "samples")) == (59, 155 - 3, 59)
    assert rows(then, "image_features") == 46


def test_every_table_that_names_contents_is_reached_by_an_erasure():
    reached = {name for name, schema in TABLES.items() if _holding(schema, ["item"], ["content"])}
    assert set(TABLES) - reached == {"feedback", "fits", "snapshots", "steps"}, "which name no content"
    for name in ("samples", "dataset"):
        condition = _holding(TABLES[name], ["item"], ["content"])
        assert all(f'"{m}_{what}"' in condition for m in MODALITIES for what in ("id", "more"))
