"""`triptych check` says what a run will make anew, and why; the run makes exactly that."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from assets import featurizing, pipeline
from orchestration.forecast import CHANGED, UNCHANGED, UNKNOWN, _trainings
from orchestration.inspection import check
from orchestration.project import load
from training import processor
from training.featurizers.pixels import PixelsFeaturizer
from training.mlflow_store import client
from training.schema import TABLES

ALL = {"text": 60, "image": 48, "speech": 47}  # distinct contents of the tiny project; one picture is broken
FIRST = {table: {"new": n} for m, n in ALL.items() for table in (f"clean_{m}", f"{m}_features")}
FIRST |= {f"signatures.{m}": {"new": ALL[m]} for m in ("image", "speech")}
TEXT, IMAGE = ("clean_text", "text_features"), ("clean_image", "image_features")
SHARPNESS, SIGNED = "measurements.image.sharpness", "signatures.image"
AUGMENTED = "training.augmentation.image={shift: 0.1}"


class Change(NamedTuple):
    """Settings that change, and what that costs: table -> why -> contents."""

    settings: Sequence[str]
    work: Mapping[str, Mapping[str, int]]
    samples: str = UNCHANGED
    dataset: str = UNCHANGED


def of(tables: Sequence[str], why: str, n: int) -> dict[str, dict[str, int]]:
    return {table: {why: n} for table in tables}


# One after the other, each beside those before it.
CHANGES = [
    Change([], FIRST, UNKNOWN, UNKNOWN),
    Change([], {}),
    Change(["training.epochs=2", AUGMENTED, "model.width=32", "engine.workers=1", "promotion.margin=0.1"], {}),
    Change(
        ["features.image.size=12"],
        of(["image_features"], "features.image.size: 16 -> 12", 47)
        | of(["signatures.image"], "features.image: pictures are decoded to 16 -> 12 pixels", 47),
        UNKNOWN,
        CHANGED,
    ),
    Change(["filters.image=[sharpness]"], of([SHARPNESS], "filters.image: sharpness is new", 47), UNKNOWN, UNKNOWN),
    Change(["filters.image=[{kind: sharpness, least: 60}]"], {}, CHANGED, CHANGED),
    Change(["filters.image=[sharpness, {kind: size, least: 5}]"], {}, CHANGED, CHANGED),
    Change(["features.text.max_tokens=5", "align.split.seed=1"], {}, CHANGED, CHANGED),
    Change(["features.text.lowercase=true"], of(TEXT, "features.text.lowercase: false -> true", 60), UNKNOWN, CHANGED),
    Change(
        ["features.speech.keep_waveform=true"], of(["speech_features.waveform"], "features.speech: waveform is new", 47)
    ),
    Change(["features.speech.keep_waveform=false"], {}),
    Change(["features.speech.kind=mfcc"], {}, dataset=CHANGED),  # another reading of both
    Change(
        ["features.speech.coefficients=9"],
        of(["speech_features.mfcc"], "features.speech.coefficients: 8 -> 9", 47),
        dataset=CHANGED,
    ),
    Change(
        ["sources.1.segments={kind: silence, longest: 0.3}"],
        of(["clean_speech", "signatures.speech", "speech_features"], "cut otherwise (segments of recordings)", 47),
        UNKNOWN,
        UNKNOWN,
    ),
]


@pytest.mark.parametrize(
    "changes",
    [[CHANGES[0], CHANGES[3], CHANGES[9], CHANGES[10]], pytest.param(CHANGES, marks=pytest.mark.slow)],
    ids=["few", "all"],
)
def test_a_run_makes_anew_what_check_says_and_nothing_else(tiny, changes):
    settings: list[str] = []
    for change in changes:
        settings += change.settings
        assert_forecast(tiny, settings, change)


def assert_forecast(path: Path, settings: list[str], expected: Change) -> None:
    project = load(path, settings)
    lake = pipeline.open_lake(project)
    before, prints = versions(lake), named(lake)
    told = check(project, decoded=2)
    assert versions(lake) == before, "a check writes nothing"
    assert {table: dict(work.why) for table, work in told.run.work.items()} == expected.work, settings
    assert (told.run.samples, told.run.dataset) == (expected.samples, expected.dataset), settings
    pipeline.write_manifest(lake, project)
    computed = {}
    for modality in project.modalities:
        computed |= featurizing.process_modality(lake, project, modality)["computed"]
    pipeline.write_samples(lake, project)
    pipeline.write_dataset(lake, project)
    assert computed == {table: work.contents for table, work in told.run.work.items()}, settings
    written = {table.partition(".")[0] for table in computed}
    grown = {name for name in written_by_steps() if versions(lake)[name] != before[name]}
    assert grown <= written, "only the tables that were named"
    for state, old, new in zip((told.run.samples, told.run.dataset), prints, named(lake), strict=True):
        assert state == UNKNOWN or (state == UNCHANGED) == (old == new), settings


def written_by_steps() -> list[str]:
    return [
        name for name in TABLES if name.startswith("clean_") or name.endswith("_features") or name == "measurements"
    ]


def versions(lake: Any) -> dict[str, int | None]:
    return {name: lake.version(name) for name in TABLES}


def named(lake: Any) -> list[str | None]:
    return [lake.note(name).get("fingerprint") for name in ("samples", "dataset")]


def test_why_a_model_is_trained_is_the_dataset_where_its_last_training_was_on_another(tiny):
    project = load(tiny)
    store = client(project.mlflow_uri)
    experiment = store.create_experiment(project.name)
    told = []
    for dataset in ("old", "present"):
        tags = {"triptych.role": "model", "triptych.dataset_fingerprint": dataset}
        store.set_terminated(store.create_run(experiment, tags=tags).info.run_id, "FINISHED")
        told.append(_trainings(pipeline.open_lake(project), project, UNCHANGED, "present"))
    assert [trainings["model"] for trainings in told] == ["dataset", "another version of the trainer"]
    assert told[0]["text"] == "first training"


@pytest.mark.slow
def test_items_that_are_new_changed_or_refused_are_told_apart(tiny, make_png):
    photos, tight = tiny.parent / "photos", ["limits.max_pixels=399"]
    assert_forecast(tiny, tight, Change([], FIRST, UNKNOWN, UNKNOWN))
    for n in (61, 62):
        make_png(photos / f"q{n}.png", n)
    (photos / "q00.png").write_bytes((photos / "q01.png").read_bytes())  # a content that is known
    make_png(photos / "q02.png", 63)
    why = {"new": 2, "changed": 1}
    assert_forecast(tiny, tight, Change([], dict.fromkeys((*IMAGE, SIGNED), why), UNKNOWN, UNKNOWN))
    raised, again = ["limits.max_pixels=400", "limits.max_bytes=999999"], "tried again: limits.max_pixels: 399 -> 400"
    work = of((*IMAGE, SIGNED), again, 49)  # of q00 and q02 the first contents are gone
    assert_forecast(tiny, raised, Change([], work, UNKNOWN, UNKNOWN))
    assert_forecast(tiny, ["limits.max_pixels=400", "limits.max_bytes=99999"], Change([], {}))


@pytest.mark.slow
def test_another_version_of_a_step_or_a_package_is_named(tiny, monkeypatch):
    assert_forecast(tiny, [], Change([], FIRST, UNKNOWN, UNKNOWN))
    was, version = PixelsFeaturizer.version, processor._version
    monkeypatch.setattr(PixelsFeaturizer, "version", was + 1)
    monkeypatch.setattr(processor, "_version", lambda name: "99" if name == "soxr" else version(name))
    said = {table: dict(work.why) for table, work in check(load(tiny), decoded=0).run.work.items()}
    assert said == {
        "image_features": {f"version of the step: {was} -> {was + 1}": 47},
        "speech_features": {f"soxr {version('soxr')} -> 99": 47},
    }
