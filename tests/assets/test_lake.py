"""The lake: whole commits only, several writers at once, every table as a view."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake
from hypothesis import given
from hypothesis import strategies as st

from assets.compaction import compact
from assets.data_assets import first_rows
from assets.lake import Lake, open_duckdb, sql_among, sql_string
from assets.spill import remove_left
from training.schema import TABLES


def rows(first: int, count: int) -> pa.Table:
    ids = [f"{i:08d}" for i in range(first, first + count)]
    return pa.table({"id": ids, "fingerprint": ["f"] * count, "pixels": [b"x" * 1000] * count})


def test_absent_tables_are_empty_views(tmp_path):
    lake = Lake(str(tmp_path / "lake"))
    for name in TABLES:
        assert lake.sql(f"SELECT count(*) AS n FROM {name}")["n"][0].as_py() == 0
        assert lake.read(name).schema == TABLES[name]


def test_append_casts_fills_and_refuses_what_is_not_declared(tmp_path):
    lake = Lake(str(tmp_path / "lake"))
    keys = rows(0, 5).select(["id", "fingerprint"])
    assert lake.append("clean_image", [keys[:3], keys[3:].to_batches()[0]]) == 5
    read = lake.read("clean_image")
    assert read.num_rows == 5
    assert read["width"].null_count == 5
    with pytest.raises(ValueError, match="no columns \\['colour'\\]"):
        lake.append("clean_image", [pa.table({"colour": ["red"]})])
    assert lake.append("clean_image", [keys[:0]]) == 0
    assert lake.version("clean_image") == 0, "an empty append makes no commit"


def test_another_kind_of_features_adds_its_columns(tmp_path):
    lake = Lake(str(tmp_path / "lake"))
    lake.append("image_features", [rows(0, 2)])
    other = pa.table(
        {"id": ["x"], "fingerprint": ["g"], "edges": [b"y"], "edges_shape": pa.array([[1]], pa.list_(pa.int32()))}
    )
    lake.append("image_features", [other])
    assert lake.schema("image_features").names == ["id", "fingerprint", "pixels", "edges", "edges_shape"]
    found = lake.sql("SELECT id, pixels IS NULL AS no, edges_shape FROM image_features ORDER BY id").to_pylist()
    assert [tuple(row.values()) for row in found] == [
        *(("00000000", False, None), ("00000001", False, None), ("x", True, [1]))
    ]
    lake.delete("image_features", "id = '00000001'")
    assert lake.sql("SELECT id FROM image_features ORDER BY id")["id"].to_pylist() == ["00000000", "x"]


def test_a_table_of_older_code_reads_as_null_what_it_lacks_and_grows(tmp_path):
    lake = Lake(str(tmp_path / "lake"))
    old = pa.table({"id": ["a"], "parent_id": ["a"], "fingerprint": ["f"], "text": ["x"]})
    write_deltalake(lake.table_uri("clean_text"), old)
    assert lake.sql("SELECT characters, text FROM clean_text").to_pylist() == [{"characters": None, "text": "x"}]
    lake.delete("clean_text", "id = 'nobody'")  # the log knows all columns then, and the files do not
    assert lake.sql("SELECT characters, text FROM clean_text").to_pylist() == [{"characters": None, "text": "x"}]
    lake.append("clean_text", [pa.table({"id": ["b"], "fingerprint": ["g"], "characters": [3]})])
    rows = lake.read("clean_text")
    assert rows.schema == TABLES["clean_text"]
    assert dict(zip(rows["id"].to_pylist(), rows["characters"].to_pylist(), strict=True)) == {"a": None, "b": 3}
    first = lake.read_version("clean_text", 0)
    assert first is not None and first.schema == rows.schema and first["text"].to_pylist() == ["x"]


def test_replace_by_predicate_keeps_the_other_rows_and_the_note(tmp_path):
    lake = Lake(str(tmp_path / "lake"))
    lake.append("quarantine", [pa.table({"stage": ["manifest", "clean"], "reason": ["a", "b"]})])
    new = pa.table({"stage": ["manifest"], "reason": ["c"]})
    lake.replace("quarantine", new, predicate="stage = 'manifest'", note={"fingerprint": "abc"})
    assert sorted(lake.read("quarantine")["reason"].to_pylist()) == ["b", "c"]
    assert lake.note("quarantine") == {"fingerprint": "abc"}


def test_a_table_that_another_run_has_just_made_keeps_its_rows(tmp_path):
    class Late(Lake):
        def open(self, name: str) -> None:
            """Looked before the other one had made it."""

    lake = Lake(str(tmp_path / "lake"))
    for number, stage in enumerate(("manifest", "filter", "manifest")):
        (Late(lake.uri) if number else lake).replace("quarantine", pa.table({"stage": [stage]}), f"stage = '{stage}'")
    assert sorted(lake.read("quarantine")["stage"].to_pylist()) == ["filter", "manifest"]


def test_what_a_deletion_leaves_is_read_and_stored_as_before(tmp_path):
    lake = Lake(str(tmp_path / "lake"))
    lake.append("image_features", [rows(0, 3)])
    lake.delete("image_features", "id = '00000001'")
    asked = ds.field("id").isin(pa.array(["00000000", "00000001"])) & (ds.field("fingerprint") == "f")
    table = lake.open("image_features")
    assert table.to_pyarrow_dataset().to_table(filter=asked)["id"].to_pylist() == ["00000000"]
    (file,) = table.file_uris()
    assert pq.read_metadata(file.removeprefix("file://")).row_group(0).column(0).compression == "UNCOMPRESSED"


def test_a_note_is_found_behind_any_number_of_commits_without_one(tmp_path):
    lake = Lake(str(tmp_path / "lake"))
    row = pa.table({"sample_id": ["a"]})
    for name in ("first", "second"):
        lake.replace("samples", row, note={"fingerprint": name})
    for _ in range(110):
        lake.append("samples", [row])
    assert lake.note("samples") == {"fingerprint": "second"}
    assert lake.note("samples", 0) == {"fingerprint": "first"}


@pytest.mark.parametrize("name", ["samples", pytest.param("dataset", marks=pytest.mark.slow)])
def test_a_version_of_a_snapshot_can_be_opened_after_a_month_of_commits(tmp_path, name):
    lake = Lake(str(tmp_path / "lake"))
    for _ in range(2):
        for i in range(101):  # each hundredth writes a checkpoint, and looks for a log to delete
            lake.replace(name, pa.table({"sample_id": [str(i)]}))
        for file in (tmp_path / "lake" / name / "_delta_log").iterdir():
            os.utime(file, (0, 0))
    table = lake.open_version(name, 5)
    assert table is not None and table.to_pyarrow_dataset().to_table()["sample_id"].to_pylist() == ["5"]


def test_large_appends_are_committed_in_portions(tmp_path):
    lake = Lake(str(tmp_path / "lake"))
    big = pa.table({"id": ["a", "b"], "pixels": [bytes(40 * 2**20)] * 2})
    lake.append("image_features", [big, big])
    assert lake.version("image_features") == 1


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts bytes as Linux does")
def test_the_rows_that_are_shown_are_the_present_ones_and_cost_little(tmp_path):
    lake, big = Lake(str(tmp_path / "lake"), threads=4), [b"x" * 10_000] * 200
    for n in range(8):
        ids = [f"{(i * 7919 + n) % 10_007:05d}" for i in range(200)]
        made = {"id": ids, "fingerprint": ["old" if n < 2 else "present"] * 200, "pixels": big}
        lake.append("image_features", [pa.table(made)])
    before = bytes_read()
    shown = first_rows(lake, "image_features", "present", 16)
    assert bytes_read() - before < 2 * 200 * 10_000, "as much as two of the eight files"
    assert shown["id"].to_pylist() == sorted(shown["id"].to_pylist())
    assert (shown.num_rows, set(shown["fingerprint"].to_pylist())) == (16, {"present"})
    assert first_rows(lake, "image_features", "gone", 16).num_rows == 0


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def _write(uri: str, start: int) -> None:
    lake = Lake(uri)
    for i in range(5):
        lake.append("image_features", [rows(start + 10 * i, 10)])
        compact(lake, "image_features", above=3)
        for _ in range(3):
            lake.append("quarantine", [pa.table({"stage": ["clean"]})])
            lake.replace("quarantine", pa.table({"stage": ["manifest"] * 3}), predicate="stage = 'manifest'")


def test_two_processes_append_replace_and_compact_at_once(tmp_path):
    uri = str(tmp_path / "lake")
    _write(uri, 0)
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=_write, args=(uri, 1000 * i)) for i in (1, 2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    ids = Lake(uri).sql("SELECT id FROM image_features")["id"].to_pylist()
    assert (len(ids), len(set(ids))) == (150, 150), "none lost, none twice"
    stages = Lake(uri).read("quarantine")["stage"].to_pylist()
    assert (stages.count("clean"), stages.count("manifest")) == (45, 3), "in place of what another has replaced"
    table = Lake(uri).open("image_features")
    assert len(table.file_uris()) < 15
    assert any(commit["operation"] == "OPTIMIZE" for commit in table.history())


def test_compacting_disturbs_no_reader_and_writes_as_a_step_does(tmp_path):
    lake = Lake(str(tmp_path / "lake"))
    for i in range(4):
        lake.append("image_features", [rows(10 * i, 10)])
    streamed = lake.stream("SELECT id FROM image_features", {}, 5)
    read = next(streamed)["id"].to_pylist()
    old = lake.open("image_features").to_pyarrow_dataset()
    assert not compact(lake, "image_features", above=4), "not that many files"
    assert compact(lake, "image_features", above=3)
    for batch in streamed:
        read += batch["id"].to_pylist()
    now = lake.open("image_features")
    assert sorted(read) == rows(0, 40)["id"].to_pylist() == sorted(old.to_table()["id"].to_pylist())
    assert sorted(now.to_pyarrow_dataset().to_table()["id"].to_pylist()) == sorted(read)
    (file,) = now.file_uris()
    tensor = pq.read_metadata(file.removeprefix("file://")).row_group(0).column(2)
    assert (tensor.compression, tensor.has_dictionary_page) == ("UNCOMPRESSED", False)
    version = lake.version("image_features")
    compact(lake, "image_features")
    assert lake.version("image_features") == version, "there is nothing left to do"
    lake.replace("samples", pa.table({"sample_id": ["a"]}), note={"fingerprint": "f"})
    lake.append("samples", [pa.table({"sample_id": ["b"]})])
    assert compact(lake, "samples") and lake.note("samples") == {"fingerprint": "f"}


def _write_for_ever(uri: str) -> None:
    lake, i = Lake(uri), 0
    while True:
        lake.append("image_features", [rows(100 * i, 100)])
        i += 1


def test_kill_leaves_whole_commits_only(tmp_path):
    uri = str(tmp_path / "lake")
    spawn = multiprocessing.get_context("spawn")
    for _ in range(3):
        writer = spawn.Process(target=_write_for_ever, args=(uri,))
        writer.start()
        before = Lake(uri).version("image_features") or 0
        while (Lake(uri).version("image_features") or 0) < before + 3:
            time.sleep(0.01)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        lake = Lake(uri)
        assert lake.sql("SELECT count(*) AS n FROM image_features")["n"][0].as_py() % 100 == 0
        lake.append("image_features", [rows(0, 100)])


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",))), st.text("'\\;-", max_size=5))
def test_text_in_sql_stays_text(text, odd):
    with open_duckdb(threads=1) as connection:
        assert connection.sql(f"SELECT {sql_string(text + odd)}").fetchall() == [(text + odd,)]
        assert connection.sql(f"SELECT 1 FROM (SELECT '' AS x) WHERE {sql_among('x', [odd, text, ''])}").fetchall()
        assert not connection.sql(f"SELECT 1 FROM (SELECT 'y' AS x) WHERE {sql_among('x', [])}").fetchall()


def test_no_message_of_quarantine_is_longer_than_a_person_reads(tmp_path):
    lake = Lake(str(tmp_path / "lake"))
    data_uri = "data:image/png;base64," + "iVBORw0KGgo" * 20_000
    messages = [f"photos.csv line 7: '{data_uri}' is not in photos:\nname a file of it", "short", None]
    lake.append("quarantine", [pa.table({"stage": ["manifest"] * 3, "message": messages})])
    read = lake.read("quarantine")["message"].to_pylist()
    assert len(read[0]) <= 500 and read[0].startswith("photos.csv line 7: 'data:image/png")
    assert read[0].endswith("is not in photos: name a file of it")
    assert read[1:] == ["short", None]
    with lake.workspace() as connection:
        connection.execute("CREATE TABLE found (stage VARCHAR, message VARCHAR)")
        connection.executemany("INSERT INTO found VALUES ('manifest', ?)", [[message] for message in messages])
        query = "SELECT * FROM quarantine WHERE false UNION ALL BY NAME FROM found"
        connection.register("quarantine", TABLES["quarantine"].empty_table())
        assert not lake.put("quarantine", connection, query, "stage = 'manifest'"), "it is there, if shorter"
        connection.execute("UPDATE found SET message = 'other' WHERE message = 'short'")
        assert lake.put("quarantine", connection, query, "stage = 'manifest'")
    assert sorted(filter(None, lake.read("quarantine")["message"].to_pylist())) == sorted(["other", read[0]])


SPILL = """
import sys, time
from pathlib import Path
from assets.lake import Lake

with Lake("no lake", memory_limit="20MB", threads=1, spill=sys.argv[1]).workspace() as connection:
    connection.execute("CREATE TABLE t AS SELECT md5(i::VARCHAR) AS h FROM range(1000000) r(i)")
    print("spilled", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_has_spilled_is_removed_and_what_is_in_use_is_not(tmp_path):
    spill = tmp_path / "spill"
    with subprocess.Popen([sys.executable, "-c", SPILL, str(spill)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "spilled\n"
        held = {path for path in spill.rglob("*.tmp") if path.stat().st_size}
        remove_left(spill)
        assert held and all(path.exists() for path in held)
        process.kill()
    remove_left(spill)
    assert list(spill.iterdir()) == []
    Lake("no lake", spill=str(spill)).workspace().close()
    remove_left(spill)
    assert len(list(spill.iterdir())) == 1, "that of this process"
