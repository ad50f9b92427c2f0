"""Samples whose text does not fit their picture or recording are dropped, from what a two-tower model says once."""

import json

import numpy as np
import pytest

from assets import featurizing, pipeline
from assets.asset_checks import check_balance
from assets.similarity import pairs_of
from orchestration.forecast import UNCHANGED, UNKNOWN, forecast
from orchestration.housekeeping import collect
from orchestration.project import ProjectError, load
from tests.training.tiny_encoders import make


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {family: str(make(family, tmp_path_factory.mktemp(family))) for family in ("clip", "clap")}


@pytest.fixture(scope="module")
def lake_of(make_project, tmp_path_factory, models):
    """The tiny project with its items clean; the file, and a function that makes samples with filters."""
    folder = tmp_path_factory.mktemp("similarity")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIPTYCH_HOME", str(folder / "home"))
        path = make_project(folder / "project")
        project = load(path)
        lake = pipeline.open_lake(project)
        pipeline.write_manifest(lake, project)
        for modality in project.modalities:
            featurizing.process_modality(lake, project, modality)

        def write(**pairs):
            filters = {name: {"kind": "similarity"} | options for name, options in pairs.items()}
            changed = load(path, [f"filters={json.dumps(filters)}"])
            made = pipeline.write_samples(lake, changed)
            return changed, made

        yield lake, write


def by_hand(lake, project, one, two):
    """Cosine of the two contents of each sample, from the table."""
    (pair,) = pairs_of(project)
    keys = list(pair.keys(featurizing.make_processor(project)).values())
    query = "SELECT modality, id, embedding FROM embeddings WHERE list_contains($keys, fingerprint)"
    rows = lake.sql(query, {"keys": keys}).to_pylist()
    places = {(row["modality"], row["id"]): np.array(row["embedding"]) for row in rows}
    samples = lake.sql(f"SELECT sample_id, {one}_id AS a, {two}_id AS b FROM samples").to_pylist()
    return {s["sample_id"]: float(places[one, s["a"]] @ places[two, s["b"]]) for s in samples if s["a"] and s["b"]}


@pytest.mark.parametrize(
    ("family", "other"), [("clip", "image"), pytest.param("clap", "speech", marks=pytest.mark.slow)]
)
def test_samples_below_the_threshold_are_dropped_and_their_items_told(lake_of, models, family, other):
    lake, write = lake_of
    pair = f"text+{other}"
    project, _ = write(**{pair: {"model": models[family]}})
    similar = by_hand(lake, project, "text", other)
    before = {row["sample_id"]: row for row in lake.read("samples").to_pylist()}
    version, rows = lake.version("embeddings"), lake.sql("SELECT count(*) AS n FROM embeddings")["n"][0].as_py()
    assert len(similar) == 47 and len(before) == 60 and all(-1 <= value <= 1 for value in similar.values())
    least = sorted(similar.values())[20] + 1e-6
    project, made = write(**{pair: {"model": models[family], "least": least}})
    after = {row["sample_id"]: row for row in lake.read("samples").to_pylist()}
    dropped = {name for name, value in similar.items() if value < least}
    assert after.keys() == before.keys() - dropped and len(dropped) == 21
    assert all(after[name] == before[name] for name in after), "what is kept stays as it was"
    assert lake.version("embeddings") == version, "a threshold that moves places nothing"
    refused = lake.sql("SELECT * FROM quarantine WHERE stage = 'filter'").to_pylist()
    items = {before[name][f"{m}_item"] for name in dropped for m in ("text", "image", "speech")} - {None}
    assert {row["item_id"] for row in refused} == items and len(refused) == len(items)
    assert {(row["outcome"], row["reason"]) for row in refused} == {("quarantined", "similarity")}
    assert all(f"expected at least {least:g} (filters.{pair}.similarity)" in row["message"] for row in refused)
    assert any(f.message.startswith(f"21 samples dropped: {pair} is not similar") for f in made.findings)
    assert check_balance(lake, project).passed
    collect(project, dry_run=False)
    assert lake.sql("SELECT count(*) AS n FROM embeddings WHERE modality = 'text'")["n"][0].as_py() == 60 - 13
    assert forecast(lake, project, {}, lake.read("samples")).samples == UNKNOWN, "only the model tells"
    project, _ = write()
    assert lake.read("samples").num_rows == 60 and rows >= 94
    assert forecast(lake, project, {}, lake.read("samples")).samples == UNCHANGED


def test_a_content_that_cannot_be_read_is_not_similar_until_it_can_be(lake_of, models):
    lake, write = lake_of
    project, _ = write(**{"text+image": {"model": models["clip"]}})
    gone = next(iter((project.root / "photos").glob("*.png")))
    (name,) = lake.sql(
        "SELECT sample_id FROM samples JOIN manifest ON item_id = image_item WHERE uri = $u", {"u": str(gone)}
    )["sample_id"].to_pylist()
    data = gone.read_bytes()
    lake.delete("embeddings", "modality = 'image'")
    gone.unlink()
    try:
        _, made = write(**{"text+image": {"model": models["clip"], "least": -1}})
    finally:
        gone.write_bytes(data)
    assert name not in lake.read("samples")["sample_id"].to_pylist()
    said = lake.sql("SELECT message FROM quarantine WHERE stage = 'filter'")["message"].to_pylist()
    assert len(said) >= 2 and all("similarity of text and image in its sample is unknown" in one for one in said)
    assert any("1 content could not be read or decoded" in finding.message for finding in made.findings)
    write(**{"text+image": {"model": models["clip"], "least": -1}})
    assert name in lake.read("samples")["sample_id"].to_pylist(), "what could not be read is tried again"


@pytest.mark.parametrize(
    ("filters", "words"),
    [
        ("{text+image: similarity}", "similarity: model is '', expected a Hugging Face name"),
        ("{text+video: {kind: similarity, model: m}}", "filters is 'text\\+video', expected modalities of the sources"),
        ("{image: {kind: similarity, model: m}}", "filter is 'similarity', expected one of aspect"),
        ("{text+image: [{kind: similarity, model: m}, 'no_such:Filter']}", "cannot be imported"),
    ],
)
def test_what_cannot_be_is_refused_when_the_file_is_read(tiny, filters, words):
    with pytest.raises(ProjectError, match=words):
        load(tiny, [f"filters={filters}"])


def test_a_model_without_the_other_tower_is_told(models):
    from training import two_towers

    with pytest.raises(ValueError, match="cannot be loaded as an encoder of speech"):
        two_towers.load(models["clip"], ("text", "speech"))
