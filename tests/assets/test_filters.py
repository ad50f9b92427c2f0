"""The contract of a filter, over every kind in the catalogue and one of a user's own."""

import pickle
import sys

import pytest

from assets import featurizing, pipeline
from assets.asset_checks import check_balance
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
STRICT = {  # options that refuse some of the tiny project's items, and not all
    "language": {"any_of": ["en"]},
    "length": {"most": 17},
    "sharpness": {"least": 60},
    "size": {"least": 21},
    "duration": {"most": 0.1},
    "darkness_of_test:DarknessFilter": {"most": 100},
}
KINDS = [(m, kind) for m in MODALITIES.names() for kind in FILTERS.names(m)]


def data_side(project):
    lake = pipeline.open_lake(project)
    pipeline.write_manifest(lake, project)
    counts = {m: featurizing.process_modality(lake, project, m) for m in project.modalities}
    pipeline.write_samples(lake, project)
    return lake, counts


@pytest.mark.parametrize(
    ("modality", "kind"), [*KINDS, ("image", "darkness_of_test:DarknessFilter")], ids=lambda word: word
)
def test_a_filter_refuses_with_its_reason_and_a_moved_threshold_decodes_nothing(
    tiny, tmp_path, monkeypatch, modality, kind
):
    (tmp_path / "darkness_of_test.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    loose = f"filters={{{modality}: '{kind}'}}"
    options = ", ".join(f"{name}: {value}" for name, value in STRICT[kind].items())
    strict = f"filters={{{modality}: [{{kind: '{kind}', {options}}}]}}"
    if kind == "language":  # without a language named it keeps none
        loose = "filters={text: {kind: language, any_of: [en, und]}}"
    project = load(tiny, [loose])
    lake, _ = data_side(project)
    before = lake.sql(f"SELECT count({modality}_id) AS n FROM samples")["n"][0].as_py()
    assert lake.sql("SELECT count(*) AS n FROM quarantine WHERE stage = 'filter'")["n"][0].as_py() == 0
    project = load(tiny, [strict])
    lake, counts = data_side(project)
    assert not any(count["processed"] for count in counts.values())
    refused = lake.sql("SELECT * FROM quarantine WHERE stage = 'filter'").to_pylist()
    after = lake.sql(f"SELECT count({modality}_id) AS n FROM samples")["n"][0].as_py()
    assert len(refused) == before - after
    assert (len(refused) > 0) == (kind != "language")
    for row in refused:
        assert (row["outcome"], row["reason"], row["modality"]) == ("quarantined", kind, modality)
        assert f"{kind} is " in row["message"] and f"(filters.{modality}.{kind})" in row["message"]
        assert str(tiny.parent) in row["message"]
    assert check_balance(lake, project).passed
    data_side(load(tiny, [loose]))
    assert lake.sql(f"SELECT count({modality}_id) AS n FROM samples")["n"][0].as_py() == before


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
        ("{image: duration}", "filters.image: filter is 'duration', expected one of sharpness, size"),
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
