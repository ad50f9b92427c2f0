"""A training's fingerprint follows everything that decides the weights."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from training.family import Choice
from training.features import FeatureSettings
from training.processor import Processor
from training.settings import MediaLimits, ModelSettings, SpeechAugmentation, TrainingSettings, for_rows
from training.spec import JobSpec, RunSpec, plan_runs, plan_tuning, shorter_training
from training.tuning_settings import TuningSettings

MODEL = ModelSettings(width=16, heads=2)
LORA = {"train": "lora"}
ADAPTATIONS: list[dict[str, Any]] = [
    *({}, {"learning_rate": 1e-5}, {"train": "frozen"}, LORA, LORA | {"learning_rate": 1e-3}, LORA | {"rank": 4}),
    *(LORA | {"alpha": 4.0}, LORA | {"dropout": 0.1}, LORA | {"targets": ["q_proj"]}),
]


def named(model: ModelSettings = MODEL, features: Any = None, training: Any = None) -> str:
    runs = plan_runs(model, training or TrainingSettings(), features or FeatureSettings(), ["image", "speech"], "d")
    return runs[0].fingerprint


def test_two_roles_never_share_an_identity() -> None:
    """Not even where one model's settings are another one's: a model is registered, a baseline is not."""
    modalities = ["text", "image", "speech"]
    names: dict[str, set[str]] = {}
    for fusion in ("attention", "concat"):
        model = replace(MODEL, fusion={"kind": fusion})  # type: ignore[arg-type]
        for run in plan_runs(model, TrainingSettings(), FeatureSettings(), modalities, "d"):
            names.setdefault(run.fingerprint, set()).add(run.name)
    assert all(len(roles) == 1 for roles in names.values())
    assert len(names) == 9  # each fusion's model and singles, and concatenation as the baseline of one of them


@pytest.mark.parametrize("beside", [None, 0.5])
def test_concatenation_is_no_rival_of_itself(beside: float | None) -> None:
    def planned(fusion: str, *modalities: str) -> list[str]:
        model, training = replace(MODEL, fusion={"kind": fusion}), TrainingSettings(baseline_epochs=beside)  # type: ignore[arg-type]
        return [run.name for run in plan_runs(model, training, FeatureSettings(), modalities, "d")]

    assert planned("attention", "text", "image") == ["model", "text", "image", "concat"]
    assert planned("concat", "text", "image") == ["model", "text", "image"]
    assert planned("concat", "image") == ["model"]
    embedding = replace(MODEL, output={"kind": "embedding"})  # type: ignore[arg-type]  # no modality answers alone
    runs = plan_runs(embedding, TrainingSettings(baseline_epochs=beside), FeatureSettings(), ("text", "image"), "d")
    assert [run.name for run in runs] == ["model", "concat"]


def test_how_much_less_baselines_are_trained() -> None:
    def said(**training: Any) -> str | None:
        return shorter_training(plan_runs(MODEL, TrainingSettings(**training), FeatureSettings(), ["image"], "d"))

    assert said(epochs=5, baseline_epochs=0.6) == "the baselines were trained for 0.6 epochs, the model for 5"
    assert said(epochs=5, baseline_epochs=5) is None and said(epochs=5) is None and said() is None
    assert said(baseline_epochs=1) == (
        "the baselines were trained for 1 epochs, the model for as many as its rows ask for (`training.epochs`)"
    )
    with pytest.raises(ValueError, match="baseline_epochs is 0, expected null or a positive number"):
        TrainingSettings(baseline_epochs=0)


@pytest.mark.parametrize(
    ("rows", "settings", "model", "epochs"),
    [
        (341, {}, {}, 100),  # 6 steps an epoch: no more epochs than that
        (2_000, {}, {}, 19),  # 32 steps, so that there are 600 of them
        (2_000, {"batch_size": 32, "gradient_accumulation": 2}, {}, 19),
        (100_000, {}, {}, 10),
        (341, {"epochs": 0.5}, {}, 0.5),
        (341, {}, {"llm": "some/model"}, 10),
        (341, {}, {"encoders": {"image": Choice("huggingface", {"model": "some/model"})}}, 10),
    ],
)
def test_few_rows_are_seen_more_often(rows: int, settings: Any, model: Any, epochs: float) -> None:
    assert for_rows(TrainingSettings(**settings), ModelSettings(**model), rows).epochs == epochs


def test_many_epochs_end_where_validation_becomes_no_better() -> None:
    def chosen(rows: int, validation: int, **settings: Any) -> tuple[int | None, int, str | None]:
        found = for_rows(TrainingSettings(**settings), ModelSettings(), rows, validation)
        return found.early_stopping, found.evaluations, found.metric

    assert chosen(341, 50) == (3, 12, "loss") and chosen(341, 50, metric="macro_f1") == (3, 12, "macro_f1")
    assert chosen(341, 0) == chosen(100_000, 50) == chosen(341, 50, epochs=100) == (None, 5, None)
    assert chosen(341, 50, evaluations=0) == (None, 0, None)
    assert chosen(341, 50, early_stopping=1) == (1, 5, None)


@pytest.mark.parametrize(("rows", "mixable", "said", "mixing"), [(341, True, None, 1.0), (341, True, 0.0, 0.0)])
@pytest.mark.parametrize("validation", [0, 50])
def test_few_rows_are_mixed_where_they_can_be(
    rows: int, mixable: bool, said: float | None, mixing: float | None, validation: int
) -> None:
    training = TrainingSettings(mixing=said)
    assert for_rows(training, ModelSettings(), rows, validation, mixable).mixing == mixing
    assert for_rows(training, ModelSettings(), rows, validation, False).mixing == said
    assert for_rows(training, ModelSettings(), 100_000, validation, mixable).mixing == said
    assert for_rows(replace(training, epochs=10), ModelSettings(), rows, validation, mixable).mixing == said


@pytest.mark.parametrize("image", [{"mean": 0.4}, {"std": 0.25}], ids=["mean", "std"])
def test_what_is_applied_when_a_batch_is_made_counts(image: dict[str, float]) -> None:
    assert named(features=FeatureSettings(image=image)) != named()
    assert named(features=FeatureSettings(speech={"kind": "mfcc"})) != named()


def test_how_a_training_is_run_does_not_count() -> None:
    assert named(training=TrainingSettings(workers=2, checkpoint_steps=7)) == named()
    assert named(training=TrainingSettings(seed=1)) != named()


def test_a_local_language_model_is_known_by_its_files(tmp_path: Path) -> None:
    folder, moved = tmp_path / "llm", tmp_path / "moved"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(b"weights")
    first = named(replace(MODEL, llm=str(folder)))  # type: ignore[arg-type]
    shutil.copytree(folder, moved)
    (moved / "README.md").write_text("not read in training")
    assert named(replace(MODEL, llm=str(moved))) == first  # type: ignore[arg-type]
    (moved / "model.safetensors").write_bytes(b"Weights")  # as long as before
    second = named(replace(MODEL, llm=str(moved)))  # type: ignore[arg-type]
    (moved / "config.json").write_text('{"model_type": "gpt2"}')
    third = named(replace(MODEL, llm=str(moved)))  # type: ignore[arg-type]
    (moved / "tokenizer.json").write_text("{}")
    names = [first, second, third, *(named(replace(MODEL, llm={"model": str(moved), **how})) for how in ADAPTATIONS)]  # type: ignore[arg-type]
    assert len(set(names)) == len(names)
    with pytest.raises(ValueError, match=r"model.llm: model is 'no/where': there is no such folder"):
        named(replace(MODEL, llm="no/where"))  # type: ignore[arg-type]


@pytest.mark.parametrize("package", ["accelerate", "numpy", "peft", "scipy", "tokenizers", "torch", "transformers"])
def test_another_version_of_a_package_counts(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, version = named(), metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.0.1" if name == package else version(name))
    assert named() != before


def test_numpy_decides_the_spectra(monkeypatch: pytest.MonkeyPatch) -> None:
    from training import processor

    before, version = Processor(FeatureSettings(), MediaLimits()), processor._version
    names = {m: before.fingerprint(m) for m in ("text", "image", "speech")}
    monkeypatch.setattr(processor, "_version", lambda name: "0.0.1" if name == "numpy" else version(name))
    now = {m: before.fingerprint(m) for m in names}
    assert {m for m in names if now[m] != names[m]} == {"speech"}


def test_a_specification_comes_back_from_json(make_spec: Callable[..., tuple[JobSpec, RunSpec]]) -> None:
    spec, run = make_spec("there_and_back")
    encoders = {"image": Choice("small_transformer"), "text": Choice("my.module:Encoder", {"layers": 2})}
    llm = {"model": "some/model", "train": "lora", "targets": ["q_proj"], "learning_rate": 1e-3}
    model = replace(MODEL, encoders=encoders, fusion={"kind": "my.module:Fusion"}, output="class", llm=llm)  # type: ignore[arg-type]
    training = TrainingSettings(
        augmentation={"speech": SpeechAugmentation(noise_snr_db=(0, 10))},
        objectives=({"kind": "answer", "weight": 2},),  # type: ignore[arg-type]
        report_to=("tensorboard",),
    )
    spec = replace(spec, runs=(replace(run, model=model, training=training),))
    space = {
        "model.fusion": ["concat", {"kind": "low_rank", "rank": 2}],
        "model.width": {"low": 16, "high": 32, "step": 4},
    }
    tuning = plan_tuning(TuningSettings(space=space), "accuracy", "tuning.db", {"speech": ["b", "a"]}, run)
    assert JobSpec.from_json(json.loads(json.dumps(replace(spec, tuning=tuning).to_json()))).tuning == tuning
    assert JobSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
