"""Training: what is learned, what a resumed run ends with, and what is said about bad input."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from tests.training.test_llm import save_llm
from training.building import build_model
from training.cache import FeatureCache
from training.checkpoints import last_checkpoint
from training.data import SampleDataset
from training.features import FeatureSettings
from training.model import FusionModel
from training.records import Answer
from training.schema import DATASET, FEATURES, features_table
from training.settings import LlmSettings, ModelSettings, TrainingSettings
from training.train import Trained, TrainingTask, fit, make_tokenizer, new_model, predict

FEATURES_SETTINGS = FeatureSettings(image={"size": 8, "color": "grey"}, speech={"mels": 8, "coefficients": 4})
MODEL = ModelSettings(width=16, layers=1, heads=2, tokens=1, max_new_tokens=3, modality_dropout=0.3, dropout=0.1)
TRAINING = TrainingSettings(epochs=2, batch_size=8, learning_rate=5e-3, checkpoint_steps=3, evaluations=2)
DTYPES = {"text": {"input_ids": "int32"}, "image": {"pixels": "uint8"}, "speech": {"log_mel": "float32"}}
QUESTIONS = ("is it bright?", "is it high?")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> SampleDataset:
    """64 rows: a bright or dark picture, a high or low sound, a question about one of them; a few lack one."""
    root, random = tmp_path_factory.mktemp("cache"), np.random.default_rng(0)
    features: dict[str, list[dict[str, Any]]] = {"text": [], "image": [], "speech": []}
    for n in range(2):
        text = {"text": QUESTIONS[n], "input_ids": np.frombuffer(QUESTIONS[n].encode(), np.uint8)}
        pixels = {"pixels": random.integers(0, 60, (1, 8, 8)) + 180 * n}
        frames = random.normal(size=(4 + n, 8)) * 0.1
        frames[:, 4 * n : 4 * n + 4] += 2
        for modality, columns in zip(features, (text, pixels, {"log_mel": frames}), strict=True):
            features[modality].append({"id": f"{modality}{n}", "fingerprint": "f"} | columns)
    caches = {}
    for modality, rows in features.items():
        names = dict.fromkeys(FEATURES[modality].names[2:]) | DTYPES[modality]
        caches[modality] = FeatureCache(root, modality, "f", names)
        table = features_table(modality, DTYPES[modality], rows)
        caches[modality].add(ds.dataset(table), [row["id"] for row in rows])
    index = []
    for n in range(64):
        asked, bright, high = random.integers(0, 2, 3)
        row = {"sample_id": f"s{n:02d}", "label": "yes" if (high if asked else bright) else "no"}
        row |= {"text_id": f"text{asked}", "image_id": f"image{bright}", "speech_id": f"speech{high}"}
        index.append(row if n % 8 else row | {("image_id" if asked else "speech_id"): None})
    return SampleDataset(pa.Table.from_pylist(index, schema=DATASET), caches)


def train(samples: SampleDataset, folder: Path, **changes: Any) -> Trained:
    """48 rows for training, 16 for validation."""
    model, training = changes.pop("model", MODEL), changes.pop("training", TRAINING)
    parts = samples.take(range(48)), samples.take(range(48, 64))
    tokenizer = make_tokenizer(parts[0], model, replace(training, vocabulary=300))
    return fit(make_task(*parts, tokenizer, model, training, keep=changes.pop("keep", None)), folder, **changes)


def make_task(
    rows: SampleDataset,
    validation: SampleDataset,
    tokenizer: Any,
    model: ModelSettings = MODEL,
    training: TrainingSettings = TRAINING,
    keep: frozenset[str] | None = None,
) -> TrainingTask:
    return TrainingTask(
        model=model,
        training=training,
        features=FEATURES_SETTINGS,
        train=rows,
        validation=validation,
        tokenizer=tokenizer,
        keep=keep,
    )


class Stop(TrainerCallback):
    """Ends the process's training at a step, as a kill would: nothing is saved on the way out."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def paired(samples: SampleDataset) -> SampleDataset:
    """The rows, of which each may have any picture and any sound that one of them has."""
    columns = {f"{m}_pool": pc.if_else(pc.is_valid(samples.index[f"{m}_id"]), m, None) for m in ("image", "speech")}
    index = samples.index.drop_columns(list(columns))
    for name, pools in columns.items():
        index = index.append_column(name, pools)
    return SampleDataset(index, samples.caches)


@pytest.mark.parametrize(("stop", "accumulation", "workers"), [(5, 1, 0), (8, 1, 0), (5, 2, 0), (5, 1, 1)])
def test_a_resumed_training_ends_with_the_same_weights(
    samples: SampleDataset, tmp_path: Path, stop: int, accumulation: int, workers: int
) -> None:
    samples = paired(samples) if workers else samples
    training = replace(TRAINING, gradient_accumulation=accumulation, workers=workers, batch_size=8 // accumulation)
    whole = train(samples, tmp_path / "whole", training=training)
    with pytest.raises(KeyboardInterrupt):
        train(samples, tmp_path / "cut", training=training, callbacks=[Stop(stop)])
    torch.manual_seed(99)  # another process has another state
    np.random.seed(99)
    resumed = train(samples, tmp_path / "cut", training=training)
    weights, again = whole.model.state_dict(), resumed.model.state_dict()
    assert weights.keys() == again.keys()
    different = [name for name in weights if not torch.equal(weights[name], again[name])]
    assert not different
    assert [entry["step"] for entry in resumed.history] == [entry["step"] for entry in whole.history]
    assert [entry.get("loss") for entry in resumed.history] == [entry.get("loss") for entry in whole.history]


def test_pools_are_drawn_from_in_training(samples: SampleDataset, tmp_path: Path) -> None:
    losses = [
        [entry.get("loss") for entry in train(rows, tmp_path / str(n)).history]
        for n, rows in enumerate((samples, paired(samples)))
    ]
    assert losses[0] != losses[1]


@pytest.mark.parametrize("train_", ["frozen", "lora"])
def test_a_checkpoint_is_without_what_is_not_trained_and_goes_on_all_the_same(
    samples: SampleDataset, tmp_path: Path, train_: str
) -> None:
    tokenizer = make_tokenizer(samples, MODEL, replace(TRAINING, vocabulary=300))
    tokenizer.save_pretrained(tmp_path / "llm")
    torch.manual_seed(1)
    tiny = replace(MODEL, llm="tiny")  # type: ignore[arg-type]
    build_model(tiny, FEATURES_SETTINGS, tokenizer, ("text",), ["yes"]).llm.save_pretrained(tmp_path / "llm")
    llm = {"model": str(tmp_path / "llm"), "train": train_} | ({"dropout": 0.1} if train_ == "lora" else {})
    model = replace(MODEL, llm=llm)  # type: ignore[arg-type]
    whole = train(samples, tmp_path / "whole", model=model)
    with pytest.raises(KeyboardInterrupt):
        train(samples, tmp_path / "cut", model=model, callbacks=[Stop(8)])
    checkpoint = last_checkpoint(tmp_path / "cut")
    assert checkpoint is not None
    stored = {name for name in load_file(Path(checkpoint) / "model.safetensors") if name.startswith("llm.")}
    assert stored == {f"llm.{name}" for name, p in whole.model.llm.named_parameters() if p.requires_grad}
    assert not (Path(checkpoint) / "base").exists()
    resumed = train(samples, tmp_path / "cut", model=model)
    weights, again = whole.model.state_dict(), resumed.model.state_dict()
    assert weights.keys() == again.keys()
    assert not [name for name in weights if not torch.equal(weights[name], again[name])]
    with (tmp_path / "llm" / "config.json").open("a") as file:
        file.write(" ")
    with pytest.raises(ValueError, match="holds checkpoints of another training"):
        train(samples, tmp_path / "cut", model=model)


class CountCalls(TrainerCallback):
    """How often the language model's first layer is computed in training."""

    calls = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        model.llm.model.layers[0].mlp.register_forward_pre_hook(self._count)

    def _count(self, module: Any, _: Any) -> None:
        self.calls += module.training


def test_layers_that_are_computed_twice_learn_the_same(samples: SampleDataset, tmp_path: Path) -> None:
    weights, counts = [], []
    for twice in (False, True):
        training, counter = replace(TRAINING, epochs=1, evaluations=0, gradient_checkpointing=twice), CountCalls()
        trained = train(samples, tmp_path / str(twice), training=training, callbacks=[counter])
        weights.append(trained.model.state_dict())
        counts.append(counter.calls)
    assert counts[1] == 2 * counts[0] > 0
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_packed_rows_are_learned_from_as_padded_ones(samples: SampleDataset, tmp_path: Path) -> None:
    model, losses = replace(MODEL, dropout=0.0), []
    for packing in (False, True):
        training = replace(TRAINING, epochs=1, packing=packing)
        trained = train(samples, tmp_path / str(packing), model=model, training=training)
        losses.append([value for entry in trained.history for name, value in entry.items() if "loss" in name])
        assert not trained.model.packs, "who answers reads as ever"
    assert losses[1] == pytest.approx(losses[0], rel=1e-4) and losses[0] != losses[1]


def test_a_model_that_mixes_packed_rows_is_given_padded_ones_or_refused(samples: SampleDataset, tmp_path: Path) -> None:
    model = replace(MODEL, llm=LlmSettings(model=save_llm(tmp_path, "bloom")))
    with pytest.warns(UserWarning, match="'.*' does not keep rows apart .* they are padded"):
        train(samples, tmp_path / "padded", model=model, training=replace(TRAINING, epochs=0.1))
    with pytest.raises(ValueError, match=r"^training.packing: .* set it to false$"):
        train(samples, tmp_path / "packed", model=model, training=replace(TRAINING, packing=True))


@pytest.mark.slow
def test_a_compiled_language_model_learns_the_same(samples: SampleDataset, tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    model = replace(MODEL, dropout=0.0)
    losses = []
    for name, compiled in (("plain", False), ("compiled", True)):
        training = replace(TRAINING, epochs=1, evaluations=1, compile=compiled)
        history = train(samples, tmp_path / name, model=model, training=training).history
        losses.append([entry["loss"] for entry in history if "loss" in entry])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4) and losses[0] != losses[1]


class Worse(TrainerCallback):
    """Spoils the weights after a step, so that no later validation is better."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step > self.step:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 0.05 * torch.randn_like(parameter)


@pytest.mark.parametrize("metric", [None, "loss", "cer"])
def test_training_ends_when_validation_gets_no_better_and_goes_back_to_the_best(
    samples: SampleDataset, tmp_path: Path, metric: Any
) -> None:
    training = replace(TRAINING, epochs=12, evaluations=12, early_stopping=2, metric=metric, learning_rate=1e-2)
    trained = train(samples, tmp_path, training=training, callbacks=[Worse(24)])
    name = f"validation_{metric or 'accuracy'}"
    values = [entry[name] for entry in trained.history if name in entry]
    best = max(values) if metric is None else min(values)
    reached = values.index(best)
    assert len(values) == min(12, reached + 3) < 12, "two validations after the best one, and no more"
    tokenizer = make_tokenizer(samples.take(range(48)), MODEL, replace(training, vocabulary=300))
    if metric is None:
        validation = samples.take(range(48, 64))
        answers = predict(trained.model, tokenizer, validation, FEATURES_SETTINGS)
        assert np.mean([a == label for a, label in zip(answers, validation.labels, strict=True)]) == best


def test_early_stopping_is_the_same_after_a_resume(samples: SampleDataset, tmp_path: Path) -> None:
    training = replace(TRAINING, epochs=6, evaluations=6, early_stopping=2, metric="loss")
    whole = train(samples, tmp_path / "whole", training=training)
    with pytest.raises(KeyboardInterrupt):
        train(samples, tmp_path / "cut", training=training, callbacks=[Stop(20)])
    resumed = train(samples, tmp_path / "cut", training=training)
    weights, again = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert [entry["step"] for entry in resumed.history] == [entry["step"] for entry in whole.history]
    assert whole.model.output.temperature == resumed.model.output.temperature != 1.0


class StopWhenStopped(TrainerCallback):
    """A kill after the last checkpoint, before the best weights are loaded."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if control.should_training_stop:
            raise KeyboardInterrupt


def test_a_training_that_had_stopped_goes_back_to_the_best_when_resumed(samples: SampleDataset, tmp_path: Path) -> None:
    training = replace(TRAINING, epochs=12, evaluations=12, early_stopping=1, metric="loss", learning_rate=3e-2)
    whole = train(samples, tmp_path / "whole", training=training)
    assert whole.history[-1]["epoch"] < 12
    with pytest.raises(KeyboardInterrupt):
        train(samples, tmp_path / "cut", training=training, callbacks=[StopWhenStopped()])
    resumed = train(samples, tmp_path / "cut", training=training)
    weights, again = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_early_stopping_needs_validation_rows(samples: SampleDataset, tmp_path: Path) -> None:
    training = replace(TRAINING, early_stopping=1)
    tokenizer = make_tokenizer(samples, MODEL, training)
    with pytest.raises(ValueError, match=r"training\.early_stopping is set, and there is no validation row"):
        fit(make_task(samples, samples.take([]), tokenizer, training=training), tmp_path)
    with pytest.raises(ValueError, match=r"evaluations is 2, expected more than early_stopping \(3\)"):
        replace(TRAINING, early_stopping=3)


def test_the_seed_decides(samples: SampleDataset, tmp_path: Path) -> None:
    weights = [
        train(samples, tmp_path / str(n), training=replace(TRAINING, seed=seed, epochs=1)).model.state_dict()
        for n, seed in enumerate((0, 0, 1))
    ]
    name = "llm.lm_head.weight"
    assert torch.equal(weights[0][name], weights[1][name]) and not torch.equal(weights[0][name], weights[2][name])


def test_it_learns_to_look_and_to_listen(samples: SampleDataset, tmp_path: Path) -> None:
    """Right with all inputs; by chance with the soft tokens of other rows, or with what is asked for hidden."""
    model, training = (
        replace(MODEL, modality_dropout=0.0, dropout=0.0),
        replace(TRAINING, epochs=30, learning_rate=1e-2),
    )
    trained = train(samples, tmp_path, model=model, training=training)
    tokenizer = make_tokenizer(samples.take(range(48)), model, replace(training, vocabulary=300))

    def accuracy(**options: Any) -> float:
        answers = predict(trained.model, tokenizer, samples, FEATURES_SETTINGS, **options)
        return float(np.mean([answer == label for answer, label in zip(answers, samples.labels, strict=True)]))

    assert accuracy() > 0.95
    assert accuracy(batch_size=5) == accuracy()
    assert 0.3 < accuracy(shuffle_seed=0) < 0.75
    assert accuracy(keep=frozenset({"text"})) < 0.75
    losses = [entry["loss"] for entry in trained.history if "loss" in entry]
    validations = [entry for entry in trained.history if "validation_accuracy" in entry]
    assert losses[-1] < losses[0] / 3
    assert len(validations) == 2 and validations[-1]["validation_accuracy"] > 0.9
    assert validations[-1]["validation_loss"] < 0.3 and trained.model.training is False


@pytest.mark.parametrize("output", ["text", "class"])
def test_a_single_modality_has_a_model_of_its_own(samples: SampleDataset, tmp_path: Path, output: Any) -> None:
    model = replace(MODEL, output=output)
    trained = train(samples, tmp_path, model=model, keep=frozenset({"image"}), training=replace(TRAINING, epochs=1))
    assert isinstance(trained.model, FusionModel) and trained.model.config.modalities == ["image"]
    tokenizer = make_tokenizer(samples, model, replace(TRAINING, vocabulary=300))
    answers = predict(trained.model, tokenizer, samples, FEATURES_SETTINGS)
    assert len(answers) == 64 and (output == "text" or set(answers) <= {"no", "yes"})


def test_shuffled_soft_tokens_are_always_those_of_another_row(samples: SampleDataset) -> None:
    task = TrainingTask(
        model=MODEL,
        training=TRAINING,
        features=FEATURES_SETTINGS,
        train=samples,
        validation=samples,
        tokenizer=make_tokenizer(samples, MODEL, TRAINING),
    )
    network, orders = new_model(task), []

    def answer(batch: dict[str, torch.Tensor], _tokenizer: Any, shuffle: torch.Tensor | None = None) -> list[Answer]:
        orders.append([] if shuffle is None else shuffle.tolist())
        return [Answer("yes")] * len(batch["present"])

    network.scored_answers = answer  # type: ignore[method-assign]
    for rows, batch_size in ((64, 63), (64, 3), (64, 256), (5, 4), (2, 256)):
        orders.clear()
        some = samples.take(range(rows))
        answers = predict(network, task.tokenizer, some, task.features, batch_size=batch_size, shuffle_seed=0)
        assert len(answers) == sum(map(len, orders)) == rows and max(map(len, orders)) <= batch_size
        for order in orders:
            assert sorted(order) == list(range(len(order))), "each row's tokens are given once"
            assert all(other != row for row, other in enumerate(order))
    with pytest.raises(ValueError, match="is alone in its batch"):
        predict(network, task.tokenizer, samples.take([0]), task.features, shuffle_seed=0)


def test_label_smoothing_keeps_the_loss_up(samples: SampleDataset, tmp_path: Path) -> None:
    model = replace(MODEL, modality_dropout=0.0)
    training = replace(TRAINING, epochs=5, learning_rate=1e-2, evaluations=0, checkpoint_steps=100)
    sharp = train(samples, tmp_path / "sharp", model=model, training=training).history
    smooth = train(samples, tmp_path / "smooth", model=model, training=replace(training, label_smoothing=0.5)).history
    last = [[entry["loss"] for entry in history if "loss" in entry][-1] for history in (sharp, smooth)]
    assert last[1] > last[0] + 0.5


def test_an_unfinished_checkpoint_is_passed_over(samples: SampleDataset, tmp_path: Path) -> None:
    train(samples, tmp_path)
    assert not list(tmp_path.rglob("*.bin"))  # nothing pickled
    names = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert names == ["checkpoint-12", "checkpoint-9"]  # two are kept
    (tmp_path / "checkpoint-12" / "trainer_state.json").write_text('{"global_step": 1')
    shutil.copytree(tmp_path / "checkpoint-9", tmp_path / "checkpoint-30")
    (tmp_path / "checkpoint-30" / "optimizer.pt").unlink()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-9")
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-9"]
    assert last_checkpoint(tmp_path / "nowhere") is None


def test_checkpoints_of_another_training_are_refused(samples: SampleDataset, tmp_path: Path) -> None:
    training = replace(TRAINING, epochs=1)
    train(samples, tmp_path, training=training)
    with pytest.raises(ValueError, match="holds checkpoints of another training"):
        train(samples, tmp_path, training=replace(training, learning_rate=0.1))


def test_bad_input_is_named(samples: SampleDataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no training row has any modality \(0 rows\)"):
        fit(make_task(samples.take([]), samples, None), tmp_path / "a")
    only_text = SampleDataset(samples.index, {"text": samples.caches["text"]})
    with pytest.raises(ValueError, match="no training row has image"):
        train(only_text, tmp_path / "b", keep=frozenset({"image"}))
    with pytest.raises(ValueError, match=r"loss became no number; lower training.learning_rate \(it is 1e\+20\)"):
        train(samples, tmp_path / "c", training=replace(TRAINING, learning_rate=1e20, max_grad_norm=1e20))


def test_a_label_that_no_answer_could_be_is_named(samples: SampleDataset, tmp_path: Path) -> None:
    labels = pa.array(["neither yes nor no", *samples.index["label"].to_pylist()[1:]], pa.string())
    index = samples.index.set_column(samples.index.column_names.index("label"), "label", labels)
    long = SampleDataset(index, samples.caches)
    rows = long.take(range(48))
    tokenizer = make_tokenizer(samples, MODEL, replace(TRAINING, vocabulary=300))
    needed = len(tokenizer("neither yes nor no", add_special_tokens=False)["input_ids"])
    parts = rows, long.take([]), tokenizer
    with pytest.raises(ValueError, match=rf"'neither yes nor no' has {needed} tokens.*max_new_tokens \(3\): set it to"):
        fit(make_task(*parts), tmp_path / "short")
    once = replace(TRAINING, epochs=1)
    fit(make_task(*parts, replace(MODEL, max_new_tokens=needed), once), tmp_path / "enough")
    fit(make_task(*parts, replace(MODEL, output="class"), once), tmp_path / "classes")


def test_training_without_validation(samples: SampleDataset, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(samples, MODEL, replace(TRAINING, vocabulary=300))
    task = make_task(samples, samples.take([]), tokenizer, training=replace(TRAINING, epochs=1))
    trained = fit(task, tmp_path)
    assert not any("validation_loss" in entry for entry in trained.history)


def test_parameters_of_an_objective_train_and_are_not_saved_with_the_model(
    own_kinds: Path, samples: SampleDataset, tmp_path: Path
) -> None:
    objectives: Any = ("answer", {"kind": "own_kinds:OwnObjective"})
    training = replace(TRAINING, epochs=1, objectives=objectives)
    trained = train(samples, tmp_path / "checkpoints", training=training)
    trained.model.save_pretrained(tmp_path / "model")
    checkpoint = tmp_path / "checkpoints" / "checkpoint-6"
    first, last = (load_file(folder / "model.safetensors") for folder in (checkpoint, tmp_path / "model"))
    assert first.keys() - last.keys() == {f"objectives.1.projection.{name}" for name in ("weight", "bias")}
    logged = [entry for entry in trained.history if "loss" in entry]
    assert logged
    for entry in logged:
        assert entry["loss"] == pytest.approx(entry["loss_answer"] + entry["loss_find_image"], abs=2e-4)
    before = load_file(tmp_path / "checkpoints" / "checkpoint-3" / "model.safetensors")
    assert not torch.equal(before["objectives.1.projection.weight"], first["objectives.1.projection.weight"])
    plain = train(samples, tmp_path / "plain", training=replace(training, objectives=("answer",)))
    assert not any("loss_answer" in entry for entry in plain.history)
