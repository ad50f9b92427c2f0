"""Compressed features in the lake: fitted once, read back, told, and no row lost."""

import json
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest

from assets import compressing, featurizing, pipeline
from assets.asset_checks import check_balance
from assets.data_assets import _features_metadata
from orchestration.housekeeping import _forget_fits
from orchestration.inspection import check
from orchestration.project import load
from training.data import open_samples
from training.schema import MODALITIES

PROJECT = """
name: packed
sources: [{name: words, modality: text, table: words.jsonl, column: words, key: id}]
align: {label: mood}
features: {text: {kind: vector, width: 16, compression: COMPRESSION}}
model: {output: class, width: 16, heads: 2, layers: 1}
"""


def write(folder: Path, first: int, last: int) -> None:
    """Rows of 16 numbers that differ in three directions; one of each portion is no vector."""
    random, lines = np.random.default_rng(0), []
    directions = random.normal(size=(3, 16))
    for n in range(last):
        words = (random.normal(size=(random.integers(1, 5), 3)) @ directions).round(4).tolist()
        lines.append({"id": f"w{n}", "words": words if n % 40 else [[float(n)]], "mood": "ab"[n % 2]})
    (folder / "words.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[first:]))


def processed(path: Path) -> dict:
    project = load(path)
    lake = pipeline.open_lake(project)
    pipeline.write_manifest(lake, project)
    counts = featurizing.process_modality(lake, project, "text")
    pipeline.write_samples(lake, project)
    assert check_balance(lake, project).passed
    return counts


def made(tmp_path: Path, compression: str) -> Path:
    path = tmp_path / "project.yaml"
    path.write_text(PROJECT.replace("COMPRESSION", compression))
    return path


@pytest.mark.parametrize(
    "compression",
    [
        "{kind: pca, components: 3}",
        pytest.param("int8", marks=pytest.mark.slow),
        pytest.param("{kind: pq, subspaces: 4, centroids: 16}", marks=pytest.mark.slow),
    ],
)
def test_rows_are_stored_smaller_once_and_read_back(tmp_path: Path, home: Path, compression: str) -> None:
    path = made(tmp_path, compression)
    write(tmp_path, 0, 80)
    assert check(load(path)).problem is None
    assert {name: processed(path)[name] for name in ("processed", "quarantined")} == {"processed": 80, "quarantined": 2}
    assert processed(path)["processed"] == 0, "what was refused is not tried again either"
    write(tmp_path, 0, 100)  # more of the same
    assert processed(path)["processed"] == 20
    project = load(path)
    lake = pipeline.open_lake(project)
    key = featurizing.make_processor(project).fingerprint("text")
    rows = lake.read("text_features")
    assert rows.num_rows == 97 and set(rows["fingerprint"].to_pylist()) == {key}
    assert "vector" not in rows.column_names
    assert lake.read("fits")["made_with"].to_pylist() == ([] if compression == "int8" else [key])
    lost = compressing.loss(lake, project, "text")
    assert lost["ratio"] > 2.5 and lost["error"] < (0.6 if "pq" in compression else 0.02) and lost["cosine"] > 0.8
    summary = _features_metadata(lake, project, "text")["summary"]
    assert f"{lost['ratio']:.1f} times less, relative error {lost['error']:.3f}" in summary
    snapshot = pipeline.write_dataset(lake, project)
    samples = open_samples(
        lake.read("dataset"), lake.uri, snapshot.features, project.features, tmp_path / "cache", lake.storage_options
    )
    processor = featurizing.make_processor(project)
    listed = map(json.loads, (tmp_path / "words.jsonl").read_text().splitlines())
    said = {row["id"]: json.dumps(row["words"]) for row in listed}
    for row in samples.__getitems__([0, 50]):
        served = processor.row(text=said[row["sample_id"]])["text"]["vector"]
        assert np.array_equal(row["text"]["vector"], served) and served.shape[1] == 16


@pytest.mark.slow
def test_a_fit_stays_until_another_is_asked_for(tmp_path: Path, home: Path) -> None:
    write(tmp_path, 0, 30)
    path = made(tmp_path, "none").read_text().replace(", compression: none", "")
    (tmp_path / "project.yaml").write_text(path)
    path = tmp_path / "project.yaml"
    assert processed(path)["processed"] == 30
    path = made(tmp_path, "{kind: pca, components: 4}")
    (why,) = check(load(path)).run.work["text_features"].why
    assert why == 'features.text.compression: none -> {"kind": "pca", "components": 4, "fit": 1}'
    assert processed(path)["processed"] == 29, "what is no vector was refused before, whatever is stored of others"
    path = made(tmp_path, "{kind: pca, components: 4, fit: 2}")
    (why,) = check(load(path)).run.work["text_features"].why
    assert why.endswith(' -> {"kind": "pca", "components": 4, "fit": 2}'), "from either of what is stored"
    assert processed(path)["processed"] == 29
    lake = pipeline.open_lake(load(path))
    assert pc.count_distinct(lake.read("fits")["made_with"]).as_py() == 2
    needed: dict = {f"{m}_features": set() for m in MODALITIES}  # by models that are kept
    assert [_forget_fits(load(path), lake, needed, dry_run) for dry_run in (True, False, False)] == [1, 1, 0]
    path = made(tmp_path, "pq")
    with pytest.raises(ValueError, match=r"features.text.compression: centroids is 256, expected \d+ at most"):
        processed(path)
    assert "components is 17, expected 16 at most" in _refusal(made(tmp_path, "{kind: pca, components: 17}"))


def _refusal(path: Path) -> str:
    with pytest.raises(ValueError) as error:
        check(load(path))
    return str(error.value)
