"""Each setting changes what it configures: one that silently does nothing is found here, and so is a new one without a
case."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from tests.training.tiny_vectors import FEATURES as VECTORS
from training.cache import FeatureCache, needed_columns
from training.comparison import decide
from training.data import SampleDataset
from training.family import Choice
from training.features import FeatureSettings
from training.featurizers.tokens import OTHERS
from training.fusion_check import FusionCheck
from training.job import how_many_at_once
from training.layers import Block
from training.metrics import Metric, exact_match
from training.model import FusionModel
from training.outputs.text import TextOutput
from training.records import Answer
from training.rewriting import TextAugmenter
from training.schema import DATASET, features_table, predictions_schema
from training.settings import (
    GenerationSettings,
    ImageAugmentation,
    ModelSettings,
    PromotionSettings,
    SpeechAugmentation,
    TextAugmentation,
    TrainingSettings,
    complete,
)
from training.spec import plan_runs
from training.train import TrainingTask, make_tokenizer, make_trainer, new_model

FEATURE_SETTINGS = FeatureSettings(
    image={"size": 12, "color": "grey"},
    speech={"sample_rate": 4000, "mels": 16, "coefficients": 8, "keep_waveform": True},
)
MODEL = ModelSettings(width=16, layers=1, heads=2, tokens=2, max_new_tokens=4, modality_dropout=0.0)
TRAINING = TrainingSettings(epochs=10, batch_size=4)
ROWS = 16
TEXTS = FEATURE_SETTINGS.featurizer("text")
TRANSLATED = FeatureSettings(text={"back_translation": {"there": "a", "back": "b"}}).featurizer("text")
SAID = {"text": "one", OTHERS: np.frombuffer(b'["two"]', np.uint8)}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> SampleDataset:
    """Pictures, sounds and questions, no two alike, as the featurizers store them."""
    root, random = tmp_path_factory.mktemp("cache"), np.random.default_rng(0)
    caches = {}
    for modality in ("text", "image", "speech"):
        names = needed_columns(modality, FEATURE_SETTINGS) | FEATURE_SETTINGS.augmented(modality)
        caches[modality] = FeatureCache(root, modality, "f", names)
        entries, dtypes = [], {name: dtype for name, dtype in names.items() if dtype is not None}
        for n in range(ROWS):
            entry: dict[str, Any] = {"id": f"{modality}{n}", "fingerprint": "f"}
            if modality == "text":
                text = f"what do you see in {n}?"
                entry |= {"text": text, "input_ids": np.frombuffer(text.encode(), np.uint8)}
            elif modality == "image":
                entry |= {"pixels": random.integers(0, 256, (1, 12, 12))}
            else:
                tone = 12000 * np.sin(2 * np.pi * (200 + 50 * n) * np.arange(2000) / 4000)
                entry |= {"log_mel": random.normal(size=(20, 16)), "waveform": tone}
            entries.append(entry)
        table = features_table(modality, dtypes, entries)
        caches[modality].add(ds.dataset(table), [e["id"] for e in entries])
    index = [
        {"sample_id": f"s{n}", "label": "yes" if n % 2 else "no"} | {f"{m}_id": f"{m}{n}" for m in caches}
        for n in range(ROWS)
    ]
    return SampleDataset(pa.Table.from_pylist(index, DATASET), caches)


class Effects:
    """What the code makes of settings: the objects that it really builds of them."""

    def __init__(self, rows: SampleDataset, folder: Path, vectors: SampleDataset) -> None:
        self.rows, self.folder, self.vectors = rows, folder, vectors

    def task(self, model: ModelSettings = MODEL, training: TrainingSettings = TRAINING) -> TrainingTask:
        return TrainingTask(
            model=model,
            training=training,
            features=FEATURE_SETTINGS,
            train=self.rows,
            validation=self.rows,
            tokenizer=make_tokenizer(self.rows, model, dataclasses.replace(training, vocabulary=300)),
            noise={"speech": [(9000 * np.sin(np.arange(3000) ** 1.5)).astype(np.int16)]},
        )

    def trainer(self, task: TrainingTask) -> Any:
        return make_trainer(task, new_model(task), self.folder, (), None)

    def arguments(self, training: TrainingSettings, *names: str) -> list[Any]:
        arguments = self.trainer(self.task(training=training)).args
        return [getattr(arguments, name) for name in names]

    def optimizer(self, training: TrainingSettings) -> Any:
        trainer = self.trainer(self.task(training=training))
        trainer.create_optimizer_and_scheduler(20)
        return trainer

    def model(self, settings: ModelSettings) -> FusionModel:
        return new_model(self.task(settings))

    def batch(self, task: TrainingTask, epochs: int = 1) -> dict[str, torch.Tensor]:
        """All rows, as the training of the task sees them in its epochs."""
        collator = self.trainer(task).data_collator
        return collator([self.rows[epoch, n] for epoch in range(epochs) for n in range(ROWS)])

    def several(self, settings: ModelSettings) -> dict[str, torch.Tensor]:
        """All rows, with three pictures each."""
        task = dataclasses.replace(self.task(settings), several={"image": 3})
        rows = [self.rows[n] for n in range(ROWS)]
        return self.trainer(task).data_collator([row | {"image_more": [row["image"]] * 2} for row in rows])

    def loss(self, training: TrainingSettings) -> float:
        task = self.task(training=training)
        network = new_model(task).train()
        loss = network(**self.batch(self.task())).loss
        assert loss is not None
        return loss.item()

    def mixed(self, training: TrainingSettings) -> list[bytes]:
        model = complete(dataclasses.replace(MODEL, output=Choice("class")), VECTORS.forms)
        task = dataclasses.replace(self.task(model, training), train=self.vectors, features=VECTORS)
        batch = self.trainer(task).data_collator([self.vectors[n] for n in range(32)])
        return [batch[modality].numpy().tobytes() for modality in VECTORS.forms]

    def pictures(self, training: TrainingSettings) -> bytes:
        task = self.task(dataclasses.replace(MODEL, output=Choice("class")), training)
        return self.batch(dataclasses.replace(task, keep=frozenset({"image"})))["image"].numpy().tobytes()

    def linear(self, settings: ModelSettings) -> list[str]:
        model = complete(dataclasses.replace(settings, output=Choice("class")), VECTORS.forms)
        return new_model(dataclasses.replace(self.task(model), train=self.vectors, features=VECTORS)).config.linear

    def rewritten(self, augmentation: TextAugmentation) -> str:
        training = dataclasses.replace(TRAINING, augmentation={"text": augmentation})
        return self.batch(self.task(training=training))["prompt_ids"].numpy().tobytes().hex()

    def augmented(self, augmentation: SpeechAugmentation | ImageAugmentation) -> bytes:
        modality = "speech" if isinstance(augmentation, SpeechAugmentation) else "image"
        training = dataclasses.replace(TRAINING, augmentation={modality: augmentation})
        return self.batch(self.task(training=training))[modality].numpy().tobytes()


def dropout_rates(model: FusionModel) -> list[float]:
    """Of encoders, fusion and language model: the lowest of each part."""
    image = [m.p for m in model.encoders["image"].modules() if isinstance(m, nn.Dropout)]
    speech = [m.p for m in model.encoders["speech"].modules() if isinstance(m, nn.Dropout)]
    fusion = [m.p for m in model.fusion.modules() if isinstance(m, nn.Dropout)]
    attention = [m.rate for m in model.fusion.modules() if isinstance(m, Block)]
    return [min(image), min(speech), min(fusion), min(attention), model.llm.config.attention_dropout]


class TwoMetrics(TextOutput):
    metrics = (Metric("accuracy", exact_match), Metric("mistakes", lambda a, b: float(a != b), higher_is_better=False))


def decision(settings: PromotionSettings) -> list[str]:
    """The reasons about a challenger that is a little better than the champion, and worse than one modality."""

    def table(subset: str, right: int) -> pa.Table:
        answers = ["yes" if n < right else "no" for n in range(100)]
        entries = [
            {"sample_id": f"s{n}", "subset": subset, "label": "yes", "prediction": answer}
            for n, answer in enumerate(answers)
        ]
        return pa.Table.from_pylist(entries, predictions_schema(pa.string()))

    singles, deaf = {"image": table("image", 80)}, FusionCheck(False, "it does not listen")
    ours, champion = table("text+image", 73), table("text+image", 70)
    return decide(ours, champion, singles, "no", settings, TwoMetrics({}), deaf).reasons


def llm_folder(folder: Path) -> str:
    vocabulary = 300
    config = GPT2Config(vocab_size=vocabulary, n_embd=24, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2)
    GPT2LMHeadModel(config).save_pretrained(folder / "llm")
    from training.tokenizer import fit_tokenizer

    fit_tokenizer(["what do you see", "yes", "no"] * 3, vocabulary).save_pretrained(folder / "llm")
    return str(folder / "llm")


def synonyms(folder: Path) -> str:
    (folder / "synonyms.txt").write_text("see, spot\n")
    return str(folder / "synonyms.txt")


def said_otherwise(effects: Effects, settings: TextAugmentation) -> str:
    effects.folder.mkdir(exist_ok=True)
    return effects.rewritten(dataclasses.replace(settings, synonyms=synonyms(effects.folder)))


def tokens_answered(effects: Effects, settings: ModelSettings) -> list[Any]:
    """Of a model whose end of sequence never comes, and whose tokens all are text."""
    task = effects.task(settings)
    network = new_model(task).eval()
    output = network.get_output_embeddings()
    assert output is not None
    with torch.no_grad():
        output.weight.zero_()
        output.weight[10] = 1  # "(" or the like: whatever it is, one character
        output.weight[11] = -1
    answers = network.answer(effects.batch(task), task.tokenizer)
    return [max(len(answer) for answer in answers)]


Effect = Callable[[Effects, Any], Any]

# Setting -> (what it is changed to, what that must change, and the settings that it is changed in, if not the defaults
# above). An effect that is a list has several parts, of which each must change.
CASES: dict[type, dict[str, tuple[Any, Effect] | tuple[Any, Effect, Any]]] = {
    TrainingSettings: {
        "epochs": (3, lambda e, s: e.arguments(s, "num_train_epochs")),
        "batch_size": (2, lambda e, s: e.arguments(s, "per_device_train_batch_size")),
        "learning_rate": (0.1, lambda e, s: [e.optimizer(s).optimizer.defaults["lr"]]),
        "weight_decay": (0.3, lambda e, s: [max(g["weight_decay"] for g in e.optimizer(s).optimizer.param_groups)]),
        "warmup": (0.5, lambda e, s: [e.optimizer(s).lr_scheduler.lr_lambdas[0](5)]),
        "label_smoothing": (0.3, lambda e, s: e.loss(s)),
        "augmentation": (
            {"speech": SpeechAugmentation(gain_db=6, pitch=3), "image": ImageAugmentation(shift=0.3)},
            lambda e, s: [e.batch(e.task(training=s))[m].numpy().tobytes() for m in ("image", "speech")],
        ),
        "objectives": (({"kind": "answer", "weight": 2.0},), lambda e, s: e.loss(s)),
        "mixing": (0.5, lambda e, s: e.mixed(s)),
        "cutmix": (1.0, lambda e, s: e.pictures(s)),
        "adversary": ("fgm", lambda e, s: type(e.trainer(e.task(training=s)).adversary)),
        "gradient_accumulation": (2, lambda e, s: e.arguments(s, "gradient_accumulation_steps")),
        "max_grad_norm": (0.5, lambda e, s: e.arguments(s, "max_grad_norm")),
        "precision": ("bfloat16", lambda e, s: e.arguments(s, "bf16")),
        "gradient_checkpointing": (True, lambda e, s: e.arguments(s, "activation_checkpointing")),
        "compile": (True, lambda e, s: e.trainer(e.task(training=s)).model.compiled is None),
        "packing": (True, lambda e, s: e.trainer(e.task(training=s)).model.packs),
        "seed": (
            1,
            lambda e, s: [
                next(new_model(e.task(training=s)).encoders["image"].parameters()).detach().numpy().tobytes(),
                list(e.trainer(e.task(training=s))._get_train_sampler(range(ROWS))),
                e.trainer(e.task(training=s)).data_collator.seed,
            ],
        ),
        "workers": (1, lambda e, s: e.arguments(s, "dataloader_num_workers")),
        "parallel": (7, lambda e, s: how_many_at_once(s)),
        "checkpoint_steps": (9, lambda e, s: e.arguments(s, "save_steps")),
        "evaluations": (2, lambda e, s: e.arguments(s, "eval_steps")),
        "early_stopping": (2, lambda e, s: e.arguments(s, "load_best_model_at_end", "save_steps")),
        "metric": (
            "cer",
            lambda e, s: [
                *e.arguments(s, "metric_for_best_model", "greater_is_better"),
                e.trainer(e.task(training=s)).evaluate().keys(),
            ],
            dataclasses.replace(TRAINING, early_stopping=2),
        ),
        "vocabulary": (270, lambda e, s: len(make_tokenizer(e.rows, MODEL, s))),
        "baseline_epochs": (
            4,
            lambda e, s: {
                run.name: run.training.epochs for run in plan_runs(MODEL, s, FEATURE_SETTINGS, ["text", "image"], "d")
            }["text"],
        ),
        "report_to": (("tensorboard",), lambda e, s: e.arguments(s, "report_to")),
    },
    ModelSettings: {
        "encoders": ({"image": "small_transformer"}, lambda e, s: type(e.model(s).encoders["image"])),
        "fusion": ("weighted", lambda e, s: type(e.model(s).fusion)),
        "llm": (llm_folder, lambda e, s: type(e.model(s).llm)),
        "output": ("class", lambda e, s: type(e.model(s).output)),
        "width": (
            32,
            lambda e, s: [e.model(s).fusion.stand_in_NTD.shape[2], e.model(s).llm.config.hidden_size],
        ),
        "layers": (2, lambda e, s: e.model(s).llm.config.num_hidden_layers),
        "heads": (
            4,
            lambda e, s: [
                e.model(s).encoders["text"].pool.heads,
                e.model(s).fusion.block.heads,
                e.model(s).llm.config.num_attention_heads,
            ],
        ),
        "tokens": (
            4,
            lambda e, s: [
                e.model(s).fusion.stand_in_NTD.shape[1],
                *(
                    tokens.shape[1]
                    for tokens in e.model(s)(**e.batch(e.task())).tokens.values()  # type: ignore[union-attr]
                ),
            ],
        ),
        "dropout": (0.5, lambda e, s: dropout_rates(e.model(s))),
        "modality_dropout": (0.5, lambda e, s: e.batch(e.task(s), epochs=3)["present"].sum().item()),
        "item_dropout": (0.5, lambda e, s: e.several(s)["image_rows"].tolist()),
        "linear_share": (0.0, lambda e, s: e.linear(s)),
        "max_new_tokens": (9, tokens_answered),
        "prompt": ("See: {text}", lambda e, s: e.model(s).config.template),
        "generation": (GenerationSettings(num_beams=2), lambda e, s: e.model(s).config.generation),
        "abstain_below": (0.5, lambda e, s: Answer("yes", 0.4).to_json(s.abstain_below)),
    },
    PromotionSettings: {
        "metric": ("mistakes", lambda e, s: decision(s)),
        "must_beat": (("champion",), lambda e, s: str(decision(s))),
        "confidence": (0.6, lambda e, s: decision(s)),
        "margin": (0.2, lambda e, s: decision(s)[0]),
        "unused_fusion": ("block", lambda e, s: decision(s)),
        "worst_slice": (0.9, lambda e, s: decision(s)),
    },
    SpeechAugmentation: {
        "speed": (0.3, lambda e, s: e.augmented(s)),
        "pitch": (3.0, lambda e, s: e.augmented(s)),
        "gain_db": (20.0, lambda e, s: e.augmented(s)),
        "noise_snr_db": ((0.0, 10.0), lambda e, s: e.augmented(s)),
        "noise_chance": (1.0, lambda e, s: e.augmented(s), SpeechAugmentation(noise_snr_db=(0, 10), noise_chance=0)),
        "reverb_chance": (1.0, lambda e, s: e.augmented(s)),
        "reverb_seconds": ((0.5, 0.5), lambda e, s: e.augmented(s), SpeechAugmentation(reverb_chance=1)),
        "time_masks": (2, lambda e, s: e.augmented(s)),
        "frequency_masks": (2, lambda e, s: e.augmented(s)),
        "mask_share": (0.9, lambda e, s: e.augmented(s), SpeechAugmentation(time_masks=2)),
    },
    TextAugmentation: {
        "delete": (0.5, lambda e, s: e.rewritten(s)),
        "swap": (0.5, lambda e, s: e.rewritten(s)),
        "typos": (0.5, lambda e, s: e.rewritten(s)),
        "synonyms": (synonyms, lambda e, s: e.rewritten(s)),
        "back_translation": (1.0, lambda e, s: TextAugmenter(s, TRANSLATED).rewritten(SAID, np.random.default_rng(0))),
        "replace": (0.9, lambda e, s: said_otherwise(e, s)),
        "units": (
            "characters",
            lambda e, s: TextAugmenter(s, TEXTS).rewritten({"text": "这只小猫没有看见"}, np.random.default_rng(0)),
            TextAugmentation(swap=0.5),
        ),
    },
    ImageAugmentation: {
        "rotation": (30.0, lambda e, s: e.augmented(s)),
        "scale": (0.3, lambda e, s: e.augmented(s)),
        "shift": (0.3, lambda e, s: e.augmented(s)),
        "operations": (2, lambda e, s: e.augmented(s)),
        "magnitude": (30, lambda e, s: e.augmented(s), ImageAugmentation(operations=3)),
    },
}
DEFAULTS = {
    TrainingSettings: TRAINING,
    ModelSettings: MODEL,
    PromotionSettings: PromotionSettings(),
    SpeechAugmentation: SpeechAugmentation(),
    TextAugmentation: TextAugmentation(),
    ImageAugmentation: ImageAugmentation(),
}


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        pytest.param(kind, field.name, id=f"{kind.__name__}.{field.name}")
        for kind in CASES
        for field in dataclasses.fields(kind)
    ],
)
def test_a_setting_changes_what_it_configures(
    settings: Any, name: str, rows: SampleDataset, vectors: SampleDataset, tmp_path: Path
) -> None:
    assert name in CASES[settings], f"{settings.__name__}.{name} is new: say in CASES what it changes"
    value, effect, *rest = CASES[settings][name]
    before = rest[0] if rest else DEFAULTS[settings]
    after = dataclasses.replace(before, **{name: value(tmp_path) if callable(value) else value})
    effects = Effects(rows, tmp_path / "checkpoints", vectors)
    first, again, second = effect(effects, before), effect(effects, before), effect(effects, after)
    assert first == again, "the same settings have the same effect"
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        assert [number for number, pair in enumerate(zip(first, second, strict=True)) if pair[0] == pair[1]] == []
    assert first != second
