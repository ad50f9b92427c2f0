"""A step may give several rows for one item: its children carry its id, join into samples, and go when it goes."""

import hashlib
import json
import sys
from pathlib import Path

import pyarrow.compute as pc
import pytest

from assets import featurizing, pipeline
from assets.asset_checks import check_balance
from orchestration import housekeeping
from orchestration.erasure import erase
from orchestration.housekeeping import collect
from orchestration.project import load
from training.cache import open_table
from training.data import open_samples

HALVES = """
from assets.segments.base import Segments
from training.media import MediaError
from training.spans import span


class Halves(Segments):
    version = 1

    def cuts(self, content, words=()):
        middle, end = (n * 1_000_000 // content.sample_rate for n in (content.frames // 2, content.frames))
        if content.frames < 400:
            raise MediaError("no_samples", "too short to be cut")
        return [span(0, middle), span(middle, end)]
"""
CUTS = ("0-100000", "100000-200000")  # of 0.2 s


@pytest.fixture
def halves(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every recording is cut in two by the project's own kind; one that is too short has no usable part."""
    (tiny.parent / "halving.py").write_text(HALVES)
    monkeypatch.syspath_prepend(str(tiny.parent))
    monkeypatch.delitem(sys.modules, "halving", raising=False)
    text = tiny.read_text()
    assert text.count("file: file}") == 1
    tiny.write_text(text.replace("file: file}", "file: file, segments: halving:Halves}"))


def cut_ids(parent: str) -> set[str]:
    return {hashlib.sha256(f"{parent}\0{cut}".encode()).hexdigest() for cut in CUTS}


def data_side(path: Path) -> tuple[pipeline.Lake, dict[str, int], str]:
    project = load(path)
    lake = pipeline.open_lake(project)
    pipeline.write_manifest(lake, project)
    counts = {m: featurizing.process_modality(lake, project, m)["processed"] for m in project.modalities}
    pipeline.write_samples(lake, project)
    return lake, counts, pipeline.write_dataset(lake, project).fingerprint


def test_the_parts_of_an_item_are_rows_and_samples_of_their_own(tiny, halves):
    lake, counts, fingerprint = data_side(tiny)
    assert counts == {"text": 60, "image": 48, "speech": 47}
    rows = lake.sql("SELECT parent_id, list(id ORDER BY id) AS ids FROM clean_speech GROUP BY 1").to_pylist()
    assert len(rows) == 47
    for row in rows:
        assert row["ids"] == sorted(cut_ids(row["parent_id"]))
    times = lake.sql("SELECT DISTINCT start, seconds FROM clean_speech ORDER BY ALL").to_pylist()
    assert times == [{"start": start, "seconds": 0.1} for start in (0.0, 0.1)]
    assert lake.sql("SELECT DISTINCT frames AS n FROM clean_speech")["n"].to_pylist() == [400]
    features = lake.sql("SELECT count(log_mel) AS n FROM speech_features JOIN clean_speech USING (id)")["n"][0].as_py()
    assert features == 94
    samples = "SELECT count(*) AS n, count(DISTINCT sample_id) AS d, count(DISTINCT speech_id) AS s FROM samples"
    assert lake.sql(samples).to_pylist() == [{"n": 60 + 47, "d": 60 + 47, "s": 94}]
    assert check_balance(lake, load(tiny)).passed
    again = data_side(tiny)
    assert (again[1], again[2]) == (dict.fromkeys(counts, 0), fingerprint)


def test_a_model_reads_them(tiny, halves, tmp_path):
    lake, _, _ = data_side(tiny)
    project = load(tiny)
    index = open_table(lake.uri, "dataset").to_table()
    keys = pipeline.present_snapshot(lake).features
    rows = open_samples(index, lake.uri, keys, project.features, tmp_path / "cache")
    with_speech = [row for row in map(rows.__getitem__, range(len(rows))) if row["speech"] is not None]
    assert len(with_speech) == 94
    assert len({row["speech"]["log_mel"].tobytes() for row in with_speech}) > 47


def test_they_are_collected_and_erased_with_their_item(tiny, halves):
    lake, _, _ = data_side(tiny)
    project = load(tiny)
    assert not any(collect(project, dry_run=False).removed.values())
    erase(project, str(tiny.parent / "recordings" / "q10.wav"), dry_run=False, purge=False)
    gone = hashlib.sha256((tiny.parent / "recordings" / "q10.wav").read_bytes()).hexdigest()
    for table in ("clean_speech", "speech_features", "samples"):
        column = "speech_id" if table == "samples" else "id"
        ids = set(lake.sql(f"SELECT {column} AS id FROM {table}")["id"].to_pylist())
        assert not ids & cut_ids(gone)
    assert lake.sql("SELECT count(*) AS n FROM clean_speech")["n"][0].as_py() == 92


def test_a_link_table_gives_a_sample_for_each_part(tiny, halves):
    rows = [f"q{n:02d},q{n:02d}" for n in range(60)]
    (tiny.parent / "links.csv").write_text("\n".join(["questions,recordings", *rows, ""]))
    text = tiny.read_text().replace("align: {", "align: {table: links.csv, ")
    tiny.write_text(text.replace("  - {name: photos, modality: image, files: photos}\n", ""))
    assert "photos" not in tiny.read_text()
    lake, _, _ = data_side(tiny)
    samples = lake.read("samples").to_pylist()
    assert len(samples) == len({row["sample_id"] for row in samples}) == 60 + 47
    assert len({row["speech_id"] for row in samples} - {None}) == 94
    splits: dict[str, set[str]] = {}
    for row in samples:
        splits.setdefault(row["text_id"], set()).add(row["split"])
    assert max(map(len, splits.values())) == 1, "the parts of a row of the link table stay together"
    assert check_balance(lake, load(tiny)).passed


@pytest.mark.slow
def test_parts_that_were_cut_otherwise_are_erased_as_long_as_a_model_stands_on_them(tiny, halves, monkeypatch):
    project = load(tiny)
    lake, _, _ = data_side(tiny)
    ids = {m: set(lake.read("dataset")[f"{m}_id"].to_pylist()) - {None} for m in project.modalities}
    note = lake.note("dataset")
    kept = [housekeeping.Snapshot(1, "run", 0, ids, note, json.loads(note["features"]), {})]
    monkeypatch.setattr(housekeeping, "kept_snapshots", lambda *_: kept)  # as if a version were registered
    thirds = HALVES.replace("content.frames // 2", "content.frames // 3")
    (tiny.parent / "thirding.py").write_text(thirds)
    tiny.write_text(tiny.read_text().replace("halving:", "thirding:"))
    project = load(tiny)
    data_side(tiny)
    collect(project, dry_run=False)
    file = tiny.parent / "recordings" / "q10.wav"
    gone = hashlib.sha256(file.read_bytes()).hexdigest()
    erase(project, str(file), dry_run=False, purge=False)
    thirds = ("0-66500", "66500-200000")
    cuts = cut_ids(gone) | {hashlib.sha256(f"{gone}\0{cut}".encode()).hexdigest() for cut in thirds}
    assert not cuts & set(lake.sql("SELECT id FROM speech_features")["id"].to_pylist())


def test_an_item_without_a_usable_part_is_refused_whole(tiny, halves, make_wav):
    import soundfile

    path = tiny.parent / "recordings" / "q11.wav"
    samples, rate = soundfile.read(path)
    soundfile.write(path, samples[:100], rate)
    lake, _, _ = data_side(tiny)
    refused = lake.read("quarantine").filter(pc.field("stage") == "clean").to_pylist()
    assert [row["reason"] for row in refused if row["modality"] == "speech"] == ["no_samples"]
    assert check_balance(lake, load(tiny)).passed
