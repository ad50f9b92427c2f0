"""The contract of a filter, over every kind in the catalogue and one of a user's own."""

import json
import pickle
import sys

import numpy as np
import pytest
import soundfile
from PIL import Image

from assets import featurizing, pipeline
from assets.asset_checks import check_balance
from assets.filtering import apply_filters
from orchestration.project import ProjectError, load
from training import family
from training.catalog import FILTERS, MODALITIES

OWN = """
from training.filters.base import RangeFilter

class DarknessFilter(RangeFilter):
    version = 1

    def measure(self, content):
        return 255 - float(content.array.mean())
"""
ODD = """
from training.filters.base import Filter
from training.media import MediaError

class Choosy(Filter):
    version = 1

    def measure(self, content):
        if content.array.mean() < 100:
            raise MediaError("too_dark", "nothing is to be seen")
        return 1.0

    def keeps(self, value):
        return f"{value} = 1"

    def expected(self):
        return "a bright picture"

class Unmeasured(Choosy):
    version = 0
"""
STRICT = {  # options that refuse some of the items of `measured`, and not all
    "encoding": {"most": 0.1},
    "language": {"any_of": ["en"]},
    "length": {"most": 17},
    "repetition": {"most": 0.15},
    "aspect": {"most": 1.5},
    "brightness": {"least": 0.5},
    "contrast": {"least": 0.001},
    "sharpness": {"least": 60},
    "size": {"least": 21},
    "channel_balance": {"most": 6},
    "clipping": {"most": 0.001},
    "duration": {"most": 0.15},
    "signal_to_noise": {"least": 0},
    "silence": {"most": 0.3},
    "speech_share": {"least": 0.9},
    "darkness_of_test:DarknessFilter": {"most": 100},
}
KINDS = [(m, kind) for m in MODALITIES.names() for kind in FILTERS.names(m)] + [
    ("image", "darkness_of_test:DarknessFilter")
]


def data_side(project):
    lake = pipeline.open_lake(project)
    pipeline.write_manifest(lake, project)
    counts = {m: featurizing.process_modality(lake, project, m) for m in project.modalities}
    pipeline.write_samples(lake, project)
    return lake, counts


def chosen(**options):
    """Every kind, with options for some."""
    kinds = {"language": {"any_of": ["en", "und", "zh"]}} | options  # without a language named it keeps none
    listed = {m: [{"kind": kind, **kinds.get(kind, {})} for of, kind in KINDS if of == m] for m in MODALITIES.names()}
    return f"filters={json.dumps(listed)}"


@pytest.fixture(scope="module")
def measured(make_project, tmp_path_factory):
    """The tiny project with an item for each filter to refuse, run with filters that refuse nothing."""
    folder = tmp_path_factory.mktemp("filters")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIPTYCH_HOME", str(folder / "home"))
        (folder / "darkness_of_test.py").write_text(OWN)
        patch.syspath_prepend(folder)
        path = make_project(folder / "project")
        tone = np.sin(2 * np.pi * 300 * np.arange(800) / 4000)
        made = {"q00": np.stack([tone / 2, tone / 20], axis=1), "q01": np.clip(3 * tone, -1, 1), "q02": tone / 2}
        made["q02"][400:] = 0
        made["q04"] = tone[:400] / 2
        for key, waveform in made.items():
            soundfile.write(path.parent / "recordings" / f"{key}.wav", waveform, 4000)
        for key, size in {"q00": (40, 20), "q01": (30, 30)}.items():
            Image.new("RGB", size, (200, 30, 30)).save(path.parent / "photos" / f"{key}.png")
        questions = (path.parent / "questions.csv").read_text()
        questions = questions.replace("Is it bright? (0)", "so it was and then " * 4)
        (path.parent / "questions.csv").write_text(
            questions.replace("Is it bright? (1)", "\ufffd\ufffd is it?").replace("Is it high? (3)", "今天天气很好吗")
        )
        lake, _ = data_side(load(path, [chosen()]))
        yield path, lake


def decided(measured, modality, **options):
    """What filters keep and refuse of a modality."""
    path, lake = measured
    project = load(path, [chosen(**options)])
    kept, refused = apply_filters(lake, featurizing.make_step(project, modality), project.of_samples)
    return kept.num_rows, refused.to_pylist()


@pytest.mark.parametrize(("modality", "kind"), KINDS, ids=lambda word: word)
def test_a_filter_refuses_with_its_reason(measured, modality, kind):
    before, none = decided(measured, modality)
    kept, refused = decided(measured, modality, **{kind: STRICT[kind]})
    assert none == [] and 0 < kept < before == kept + len(refused)
    for row in refused:
        assert (row["stage"], row["outcome"], row["reason"]) == ("filter", "quarantined", kind)
        assert f"{kind} is " in row["message"] and f"(filters.{modality}.{kind})" in row["message"]
        assert str(measured[0].parent) in row["message"]


def test_a_moved_threshold_decodes_nothing_and_loses_no_item(measured):
    path, lake = measured
    strict = {kind: STRICT[kind] for kind in ("size", "clipping", "repetition")}
    for options in (strict, {}):
        lake, counts = data_side(project := load(path, [chosen(**options)]))
        assert not any(count["processed"] for count in counts.values())
        assert check_balance(lake, project).passed
        said = lake.sql("SELECT reason, count(*) AS n FROM quarantine WHERE stage = 'filter' GROUP BY 1").to_pylist()
        assert {row["reason"] for row in said} == options.keys()
        usable = lake.sql("SELECT count(text_id) + count(image_id) + count(speech_id) AS n FROM samples")["n"][
            0
        ].as_py()
        assert usable + sum(row["n"] for row in said) == 60 + 47 + 47


def test_a_message_says_the_value_and_what_was_expected_in_words(measured):
    _, (clipped, unbalanced) = decided(measured, "speech", clipping={"most": 0.001}, channel_balance={"most": 6})
    expected = "expected at most 6 dB (filters.speech.channel_balance)"
    assert unbalanced["message"].endswith(f"q00.wav, row 2: channel_balance is 19.9995, {expected}")
    expected = "expected at most 0.001 of its samples (filters.speech.clipping)"
    assert clipped["message"].endswith(f"q01.wav, row 3: clipping is 0.75, {expected}")


def test_a_filter_that_measures_is_measured_once_for_each_content_and_can_be_pickled(tiny):
    first = load(tiny)
    data_side(first)
    project = load(tiny, ["filters={image: sharpness}"])
    lake, counts = data_side(project)
    assert {m: count["processed"] for m, count in counts.items()} == {"text": 0, "image": 47, "speech": 0}
    assert lake.sql("SELECT count(*) AS n, count(DISTINCT id) AS d FROM measurements").to_pylist() == [
        {"n": 47, "d": 47}
    ]
    assert lake.version("image_features") == 0 and lake.version("clean_image") == 0
    step = featurizing.make_step(project, "image")
    assert pickle.loads(pickle.dumps(step)).fingerprints == step.fingerprints


@pytest.fixture
def odd_filters(tmp_path, monkeypatch):
    (tmp_path / "odd_filters_of_test.py").write_text(ODD)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "odd_filters_of_test", raising=False)
    family._code_digest.cache_clear()
    return tmp_path / "odd_filters_of_test.py"


def test_what_cannot_be_measured_is_refused_by_that_filter_only(tiny, odd_filters):
    """A filter needs no options."""
    lake, _ = data_side(project := load(tiny, ["filters={image: 'odd_filters_of_test:Choosy'}"]))
    refused = lake.sql("SELECT * FROM quarantine WHERE modality = 'image' AND stage <> 'align'").to_pylist()
    assert {(row["stage"], row["reason"]) for row in refused} == {
        ("clean", "corrupt"),
        ("filter", "odd_filters_of_test:Choosy"),
    }
    assert 5 < len(refused) < 45
    assert sum("Choosy is unknown, expected a bright picture" in row["message"] for row in refused) == len(refused) - 1
    assert check_balance(lake, project).passed
    lake, counts = data_side(load(tiny))
    assert not any(count["processed"] for count in counts.values())
    assert lake.sql("SELECT count(image_id) AS n FROM samples")["n"][0].as_py() == 47


def test_a_users_filter_is_known_by_its_code(tiny, odd_filters):
    def key():
        family._code_digest.cache_clear()  # as in a new process
        kind = "odd_filters_of_test:Choosy"
        return featurizing.make_step(load(tiny, [f"filters={{image: '{kind}'}}"]), "image").fingerprints[kind]

    before = key()
    assert key() == before
    odd_filters.write_text(ODD + "# changed\n")
    assert key() != before


def test_what_a_step_is_called_does_not_change_while_it_is_at_work(tiny, odd_filters):
    step = featurizing.make_step(load(tiny, ["filters={image: 'odd_filters_of_test:Choosy'}"]), "image")
    before = dict(step.fingerprints)
    odd_filters.write_text(ODD + "# changed\n")
    family._code_digest.cache_clear()
    assert pickle.loads(pickle.dumps(step)).fingerprints == before


@pytest.mark.parametrize(
    ("filters", "words"),
    [
        ("{video: size}", "filters is 'video', expected modalities"),
        ("{image: duration}", "filters.image: filter is 'duration', expected one of aspect, brightness, contrast"),
        ("{image: [size, size]}", "each kind once"),
        ("{speech: {kind: duration, least: 2, most: 1}}", "filters.speech: filter duration: least is 2"),
        ("{speech: {kind: duration, least: .inf}}", "least is inf, expected a finite number"),
        ("{text: language}", r"language: any_of is \[\], expected at least one language"),
        ("{text: 'no_such_module:Filter'}", "filters.text: filter is 'no_such_module:Filter', and it cannot be imp"),
        ("{image: 'odd_filters_of_test:Unmeasured'}", "expected `value`, or `measure` and a `version` of 1 or more"),
    ],
)
def test_what_cannot_be_is_refused_when_the_file_is_read(tiny, odd_filters, filters, words):
    with pytest.raises(ProjectError, match=words):
        load(tiny, [f"filters={filters}"])
