"""The damaged files of the shared data as the sources of one project: each ends in the tables as its list says."""

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
import yaml

from assets import pipeline
from assets.item_warnings import item_warnings
from assets.lake import Lake
from orchestration.project import load
from orchestration.run import RunFailed, run_job
from training.catalog import MODALITIES
from training.schema import tensor

DIRTY = Path(os.environ.get("TRIPTYCH_SHARED", Path(__file__).parents[2] / "shared" / "data")) / "dirty"
UNREADABLE = "trunc.parquet"  # a table without its end says nothing of its rows: the source fails as a whole
REFUSED = {  # table -> lines that cannot be used, and why
    "nul.csv": {4: "malformed"},
    "missing_files.csv": {7: "not_found", 8: "not_found"},
    "traversal.csv": dict.fromkeys((7, 8, 9, 10), "outside_root"),
    "broken.jsonl": {2: "malformed"},
    "bom_crlf.csv": {},
}
RECORDINGS = [f"0_george_{n}.wav" for n in range(5)]  # what the tables of recordings name

pytestmark = pytest.mark.skipif(not DIRTY.is_dir(), reason=f"no folder {DIRTY} (set TRIPTYCH_SHARED)")


def cases() -> list[dict[str, str]]:
    with (DIRTY / "expectations.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def source(case: dict[str, str]) -> dict[str, Any]:
    """A source of its own for each case."""
    path, modality = DIRTY / case["file"], {"audio": "speech"}.get(case["modality"], case["modality"])
    if modality != "table":
        return {"name": case["id"], "modality": modality, "files": str(path)}
    if path.name in ("missing_files.csv", "traversal.csv"):
        return {"name": case["id"], "modality": "speech", "files": "recordings", "table": str(path), "key": "audio"}
    return {"name": case["id"], "modality": "text", "table": str(path), "key": "id", "column": "text"}


def run(path: Path) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        run_job(load(path), instance, "+dataset")


@pytest.fixture(scope="module")
def project(tmp_path_factory, make_wav) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("dirty")
    (folder / "recordings").mkdir()
    for number, name in enumerate(RECORDINGS):
        make_wav(folder / "recordings" / name, number)
    with (folder / "questions.csv").open("w", newline="") as file:  # what joins all of them
        keys = [Path(case["file"]).stem for case in cases() if case["modality"] != "table"]
        csv.writer(file).writerows([["id", "question", "answer"], *([key, f"{key}?", "yes"] for key in keys)])
    questions = {"name": "questions", "modality": "text", "table": "questions.csv", "key": "id", "column": "question"}
    gbk = {"name": "gbk", "modality": "text", "files": str(DIRTY / "files" / "gbk.txt"), "encoding": "gbk"}
    settings = {
        "name": "dirty",
        "sources": [questions, gbk, *map(source, cases())],
        "align": {"label": "answer", "split": {"train": 0.6, "validation": 0.2}},
        "features": {"image": {"size": 16}, "speech": {"sample_rate": 8000}},
    }
    path = folder / "project.yaml"
    path.write_text(yaml.safe_dump(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIPTYCH_HOME", str(folder / "home"))
        yield path


@pytest.fixture(scope="module")
def lake(project: Path) -> Lake:
    """The tables after a run without the source that fails as a whole."""
    settings = yaml.safe_load(project.read_text())
    settings["name"] = "readable"
    settings["sources"] = [s for s in settings["sources"] if not s.get("table", "").endswith(UNREADABLE)]
    readable = project.with_name("readable.yaml")
    readable.write_text(yaml.safe_dump(settings))
    run(readable)  # so no item is lost: a blocking check
    return pipeline.open_lake(load(readable))


def test_a_table_that_cannot_be_read_at_all_ends_the_run_and_is_named(project):
    with pytest.raises(RunFailed, match=f"manifest: .*{UNREADABLE}: cannot be read"):
        run(project)


def ended(lake: Lake, case: dict[str, str]) -> str:
    """How a file ended, in the words of the list."""
    source = {"name": case["id"]}
    refused = lake.sql("SELECT reason, message FROM quarantine WHERE source = $name", source).to_pylist()
    listed = lake.sql("SELECT sha256, modality FROM manifest WHERE source = $name", source).to_pylist()
    if refused:
        ((reason, message),) = (row.values() for row in refused)
        assert case["file"] in message, "it names the file"
        return "decode_ok_or_clear_unsupported" if reason == "unsupported" else "reject"
    ((sha256, modality),) = (row.values() for row in listed)
    (clean,) = lake.sql(f"SELECT * FROM clean_{modality} WHERE id = $id", {"id": sha256}).to_pylist()
    rows = lake.sql(f"SELECT * FROM {modality}_features WHERE id = $id", {"id": sha256}).to_pylist()
    features = {name: value for row in rows for name, value in row.items() if value is not None}
    name, dtype = {
        "image": ("pixels", "uint8"),
        "speech": ("log_mel", "float32"),
        "text": ("input_ids", "int32"),
    }[modality]
    made = tensor(features, name, dtype)
    assert made.size and np.isfinite(made).all()
    sample = lake.sql(f"SELECT label FROM samples WHERE {modality}_id = $id", {"id": sha256})
    assert sample["label"].to_pylist() == ["yes"], "it is in a sample"
    _, warned = item_warnings(lake, MODALITIES.load(modality)(), clean["fingerprint"], most=100)
    return "decode_ok_with_warning" if case["id"] in warned["source"].to_pylist() else "decode_ok"


def test_every_file_ends_as_expected(lake):
    files = {case["file"]: case for case in cases() if case["modality"] != "table"}
    assert len(files) > 20
    assert {name: ended(lake, case) for name, case in files.items()} == {n: c["expected"] for n, c in files.items()}
    (text,) = lake.sql("SELECT text FROM manifest WHERE source = 'gbk'")["text"].to_pylist()
    assert text.startswith("今天路口") and len(text.splitlines()) == 2, "with the right encoding it can be read"


def test_every_table_ends_as_expected(lake):
    tables = {Path(case["file"]).name: case["id"] for case in cases() if case["modality"] == "table"}
    assert set(tables) == {*REFUSED, UNREADABLE}
    for name, refused in REFUSED.items():
        query = 'SELECT "row", reason, message FROM quarantine WHERE source = $name AND "row" IS NOT NULL'
        rows = lake.sql(query, {"name": tables[name]}).to_pylist()
        assert {row["row"]: row["reason"] for row in rows} == refused, name
        assert all(name in row["message"] and f"line {row['row']}" in row["message"] for row in rows)
    keys = lake.sql("SELECT key FROM manifest WHERE source = $name ORDER BY 1", {"name": tables["bom_crlf.csv"]})
    assert keys["key"].to_pylist() == ["u1", "u2", "u3", "u4", "u5"], "the first column is called id"
