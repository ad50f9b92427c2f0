"""What a search for settings may try: ranges and lists, and how values of them are put in place of what is there."""

import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from training.family import Choice
from training.settings import ModelSettings, TrainingSettings
from training.tuning_settings import Range, TuningSettings, as_overrides, as_sections, as_yaml, value_at, with_values
from training.validation import from_dict, to_dict

RATE = {"training.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
WRONG = [
    ({"space": {}}, "space is {}, expected settings to try"),
    ({"space": {"features.image.size": [8, 16]}}, "space is 'features.image.size', .*features would be made anew"),
    ({"space": {"align.label": ["a", "b"]}}, "space is 'align.label', expected keys of model and training"),
    ({"space": {"model": ["a", "b"]}}, "space is 'model', expected keys of model and training"),
    ({"space": {"training.lerning_rate": [1, 2]}}, r"'training.lerning_rate', expected keys of training \(epochs,"),
    ({"space": {"model.output": ["class", "text"]}}, "space is 'model.output', expected others: it is what"),
    ({"space": {"training.workers": [0, 1]}}, "expected others: it decides no weight"),
    ({"space": {"model.width": 32}}, "space.model.width is 32, expected {low: ..., high: ...}, or a list of two"),
    ({"space": {"model.width": [32]}}, r"space.model.width is \[32\], .* two values or more"),
    ({"space": {"model.width": [32, 32]}}, "none of them twice"),
    ({"space": {"model.width": {"low": 32}}}, r"space.model.width is {'low': 32}, expected {low: ..., high: ...}"),
    ({"space": {"model.width": {"low": 32, "high": 32}}}, "space.model.width: high is 32, .*the range is empty"),
    ({"space": {"model.width": {"low": 32, "high": 64, "stp": 8}}}, "stp is not a key that is known here"),
    ({"space": {"model.width": {"low": 32, "high": 64, "step": 40}}}, "step is 40, expected null, or above 0 and"),
    ({"space": {"training.warmup": {"low": 0, "high": 0.5, "log": True}}}, "low is 0, expected above 0 where log"),
    ({"space": {"training.warmup": {"low": 0.1, "high": float("inf")}}}, "high is inf, expected a number"),
    ({"space": {"model.llm": ["tiny", "x"], "model.llm.rank": [4, 8]}}, "'model.llm.rank', expected nothing within"),
    ({"space": RATE, "trials": 0}, "trials is 0, expected null or at least 1"),
    ({"space": RATE, "minutes": 0}, "minutes is 0, expected null or above 0"),
    ({"space": RATE, "trials": None}, "trials is None, expected a number where there are no minutes"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "words"), WRONG)
def test_what_cannot_be_tried_is_refused_in_words(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TuningSettings(**settings)


def test_settings_come_back_from_json_and_know_what_makes_another_search() -> None:
    space = RATE | {"model.fusion": ["concat", {"kind": "bottleneck", "tokens": 2}]}
    settings = TuningSettings(space=space, trials=3)
    assert from_dict(TuningSettings, json.loads(json.dumps(to_dict(settings)))) == settings
    assert settings.decisive() == TuningSettings(space=space, minutes=1.0).decisive()
    assert settings.decisive() != TuningSettings(space=space, seed=1).decisive()


@pytest.mark.parametrize(
    ("settings", "trials", "seconds", "spent"),
    [
        ({"trials": 3}, 2, 1e9, False),
        ({"trials": 3}, 3, 0, True),
        ({"trials": None, "minutes": 1}, 99, 59, False),
        ({"trials": None, "minutes": 1}, 1, 60, True),
        ({"trials": 3, "minutes": 1}, 2, 60, True),
    ],
)
def test_a_budget_is_of_trials_or_of_minutes(
    settings: dict[str, Any], trials: int, seconds: float, spent: bool
) -> None:
    assert TuningSettings(space=RATE, **settings).is_spent(trials, seconds) is spent


@given(low=st.integers(-50, 50), width=st.integers(1, 300), step=st.integers(1, 300))
def test_steps_of_a_range_begin_below_and_end_within(low: int, width: int, step: int) -> None:
    if step > width:
        return
    asked = Range(low=low, high=low + width, step=step)
    assert low < asked.last <= low + width < asked.last + step and (asked.last - low) % step == 0
    assert {low, asked.last} <= set(asked.few) and len(asked.few) <= 100
    assert all((value - low) % step == 0 for value in asked.few)


MODEL = ModelSettings(encoders={"image": Choice("small_cnn")}, width=16, heads=2, fusion=Choice("low_rank"))
TRAINING = TrainingSettings(epochs=3, objectives=(Choice("answer"), Choice("unimodal", {"weight": 0.5})))


@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        ("training.learning_rate", 0.01, 0.01),
        ("model.width", 32, 32),
        ("model.fusion", {"kind": "bottleneck", "tokens": 2}, {"kind": "bottleneck", "tokens": 2}),
        ("model.fusion.rank", 2, 2),  # of a kind that was said in a word
        ("model.llm.model", "some/model", "some/model"),
        ("model.encoders.image.kind", "small_transformer", "small_transformer"),
        ("training.augmentation.image.rotation", 10.0, 10.0),
        ("training.objectives", ["answer"], ["answer"]),
    ],
)
def test_a_value_stands_in_its_place_and_all_else_stays(path: str, value: Any, found: Any) -> None:
    changed = with_values(MODEL, TRAINING, {path: value})
    assert value_at(*changed, path) == found != value_at(MODEL, TRAINING, path)
    plain = [
        {"model": to_dict(model), "training": to_dict(training)} for model, training in (changed, (MODEL, TRAINING))
    ]
    section, name, *_ = path.split(".")
    for settings in plain:
        settings[section].pop(name)
    assert plain[0] == plain[1]


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("model.width", 33, r"width is 33, expected a multiple of 2 \* heads \(4\)"),
        ("model.wdth", 32, "wdth is not a key that is known here; known are encoders, fusion"),
        ("model.fusion.heads", 2, "fusion low_rank has no option 'heads'"),
        ("model.fusion", "concatt", "fusion is 'concatt', expected one of .*did you mean concat"),
        ("model.dropout.x", 1, "dropout holds 0.0, and has no keys"),
        ("training.augmentation.image.rotation", 999, "augmentation.image: rotation is 999"),
    ],
)
def test_what_settings_do_not_take_is_said_by_them(path: str, value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        with_values(MODEL, TRAINING, {path: value})


def test_what_was_found_can_be_written_into_the_file_and_given_to_a_run() -> None:
    values = {"training.learning_rate": 1e-05, "model.fusion": {"kind": "bottleneck", "tokens": 2}, "model.llm.rank": 4}
    sections = as_sections(ModelSettings(llm={"model": "m", "train": "lora"}), TRAINING, values)  # type: ignore[arg-type]
    whole = {"model": "m", "train": "lora", "rank": 4}
    model = {"fusion": {"kind": "bottleneck", "tokens": 2}, "llm": whole}
    assert sections == {"training": {"learning_rate": 1e-05}, "model": model}
    assert yaml.safe_load(as_yaml(sections)) == sections
    told = dict(override.split("=", 1) for override in as_overrides(sections))
    assert {path: yaml.safe_load(value) for path, value in told.items()} == {
        "training.learning_rate": 1e-05,
        "model.fusion": model["fusion"],
        "model.llm": whole,
    }
