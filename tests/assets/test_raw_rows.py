"""The gate's raw rows: those of one split only, whole, and a bounded portion of media at a time."""

import pyarrow.parquet as pq

from assets import contents, featurizing, gate, pipeline
from assets.lake import Lake
from orchestration.project import load


def test_raw_rows_are_those_of_the_split_and_are_written_in_portions(tiny, tmp_path, monkeypatch):
    project = load(tiny)
    lake = pipeline.open_lake(project)
    pipeline.write_manifest(lake, project)
    for modality in project.modalities:
        featurizing.process_modality(lake, project, modality)
    pipeline.write_samples(lake, project)

    monkeypatch.setattr(Lake, "read", lambda lake, name: (_ for _ in ()).throw(AssertionError(f"{name} was read")))
    monkeypatch.setattr(contents, "_PORTION_BYTES", 5000)
    gate.write_raw(lake, tmp_path / "raw.parquet", "test", project.make_sources())
    columns = "sample_id, label, text_item, image_item, speech_item"
    samples = lake.sql(f"SELECT {columns} FROM samples WHERE split = 'test' ORDER BY sample_id").to_pylist()
    raw = pq.read_table(tmp_path / "raw.parquet").to_pylist()
    assert [(row["sample_id"], row["label"]) for row in raw] == [(row["sample_id"], row["label"]) for row in samples]
    questions = dict(lake.sql("SELECT key, text FROM manifest WHERE modality = 'text'").to_pandas().values)
    for row in raw:
        image, speech = (tiny.parent / f"{place}/{row['sample_id']}.{suffix}" for place, suffix in PLACES)
        assert row["text"] == questions[row["sample_id"]]
        assert row["image"] == (image.read_bytes() if image.is_file() else None)
        assert row["speech"] == (speech.read_bytes() if speech.is_file() else None)
    file = pq.ParquetFile(tmp_path / "raw.parquet")
    assert 1 < file.num_row_groups < len(raw)


PLACES = (("photos", "png"), ("recordings", "wav"))
