"""The contract of variants over every kind in the catalogue: they answer as the full model does, from smaller files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from training.catalog import OUTPUTS, VARIANTS
from training.family import Choice
from training.settings import ModelSettings
from training.variants.base import (
    FILE,
    WEIGHTS,
    Variant,
    choose_variants,
    load_bundle,
    name_of,
    own_weights,
    write_variant,
)

CPU = torch.device("cpu")
KINDS = VARIANTS.names()
SIZES = {"int8": 0.5, "int8_weights": 0.5, "pruned": 0.6}  # of the full model's file, at most
NEAR = {"int8": 0.02, "int8_weights": 0.01, "onnx": 1e-4}  # how far probabilities may lie off


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose layers are large enough that their scales are little beside them."""
    from tests.training.conftest import save_bundle

    return save_bundle(tmp_path_factory.mktemp("full") / "bundle", output=Choice("class"), width=64)


@pytest.fixture(scope="module")
def made(full: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Kind -> the bundle of the variant of it."""
    folder, bundles = tmp_path_factory.mktemp("variants"), {}
    for kind in KINDS:
        bundles[kind] = folder / kind
        write_variant(VARIANTS.choose(kind), full, bundles[kind])
    return bundles


@pytest.fixture(scope="module")
def batches(full: Path, rows: list[dict[str, Any]]) -> Callable[[], list[Any]]:
    """All rows together, which have each subset of the modalities, and each alone; and the tokenizer."""
    from tests.training.conftest import FEATURES
    from training.collator import make_collator
    from training.model import FusionModel

    model = FusionModel.from_pretrained(full)
    collate = make_collator(model, tokenizer_of(full), FEATURES)
    return [collate(rows), *(collate([row]) for row in rows)]


def tokenizer_of(bundle: Path) -> Any:
    from transformers import AutoTokenizer

    from training.model_config import FusionConfig

    return AutoTokenizer.from_pretrained(bundle, config=FusionConfig.from_pretrained(bundle))


def probabilities(bundle: Path, batches: list[Any]) -> torch.Tensor:
    """(rows, classes), in the order of the classes."""
    model, tokenizer = load_bundle(bundle, CPU), tokenizer_of(bundle)
    answers = [answer for batch in batches for answer in model.scored_answers(batch, tokenizer)]
    return torch.tensor([[chance for _, chance in sorted(answer.best)] for answer in answers])


@pytest.mark.parametrize("kind", KINDS)
def test_a_variant_answers_as_the_full_model_does_whatever_a_row_has(kind, full, made, batches):
    wanted, said = probabilities(full, batches), probabilities(made[kind], batches)
    assert wanted.shape == said.shape == (14, 2) and (wanted.std(0) > 0.01).all()
    if kind in NEAR:
        torch.testing.assert_close(said, wanted, rtol=0, atol=NEAR[kind])
    else:
        assert (said - wanted).abs().max() > 0.001, "half of the weights are gone"
    places = [load_bundle(bundle, CPU).pooled_x_m(batches[0]) for bundle in (full, made[kind])]
    assert places[0].shape == places[1].shape
    again = probabilities(made[kind], batches)
    assert torch.equal(said, again), "loaded once more it says the same, bit for bit"


@pytest.mark.parametrize("kind", SIZES)
def test_files_are_smaller(kind, full, made):
    assert (made[kind] / WEIGHTS).stat().st_size < SIZES[kind] * (full / "model.safetensors").stat().st_size
    assert not (made[kind] / "model.safetensors").exists()


def test_pruned_weights_are_the_largest_ones_and_come_back_as_they_were(full, made):
    before, after = (own_weights(load_bundle(bundle, CPU)) for bundle in (full, made["pruned"]))
    assert before.keys() == after.keys()
    pruned = 0
    for name, weight in before.items():
        kept = after[name] != 0
        assert torch.equal(weight[kept], after[name][kept])
        if kept.any() and not kept.all() and weight.ndim > 1:
            pruned += 1
            assert weight[~kept].abs().max() <= weight[kept].abs().min()
            assert int((~kept).sum()) == weight.numel() // 2
    assert pruned > 10


def test_a_served_process_reads_a_variant_as_any_bundle(made, tmp_path):
    from tests.training.conftest import FEATURES
    from training.model_registry import example_row
    from training.score import Answerer

    text = example_row(FEATURES, {})["text"]
    for kind in KINDS:
        answerer = Answerer(made[kind])
        (answer,) = answerer([answerer.read({"text": text})])
        assert answer.prediction in ("seven", "nine") and len(answerer.x_m([answerer.read({"text": text})])[0]) == 64
        assert kind in (made[kind] / "README.md").read_text()


def test_a_damaged_file_is_told(made, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(made["int8"], tmp_path / "damaged")
    tensors = load_file(tmp_path / "damaged" / WEIGHTS)
    tensors.pop(next(name for name in tensors if "/" not in name))
    save_file(tensors, tmp_path / "damaged" / WEIGHTS)
    with pytest.raises(ValueError, match=r"holds no such model as config\.json says"):
        load_bundle(tmp_path / "damaged", CPU)


def test_what_is_not_installed_is_named(made, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"variant onnx needs onnx, onnxruntime: pip install 'triptych\[variants\]'"):
        load_bundle(made["onnx"], CPU)
    VARIANTS.make(Choice("pruned")).check_installed("pruned")


@pytest.mark.parametrize(
    ("settings", "several", "why"),
    [
        ({"output": "text"}, {}, "output text writes its answers step by step"),
        ({"output": "class", "fusion": "logit"}, {}, "fusion logit reads each modality of a row by itself"),
        ({"output": "class"}, {"image": 3}, "align.several gives rows of image as many contents"),
    ],
)
def test_what_a_graph_cannot_hold_is_refused_with_the_reason(settings, several, why):
    model = ModelSettings(**settings)
    output = OUTPUTS.make(model.output, {})
    assert why in VARIANTS.make(Choice("onnx")).refusal(model, output, several)
    for kind in set(KINDS) - {"onnx"}:
        assert VARIANTS.make(Choice(kind)).refusal(model, output, several) is None


def test_an_own_variant_is_loaded_by_its_name(full, tmp_path, monkeypatch):
    (tmp_path / "own_variants.py").write_text(
        "from training.variants.base import WeightsVariant, own_weights\n\n\n"
        "class HalfVariant(WeightsVariant):\n"
        "    def stored(self, model):\n"
        "        weights = own_weights(model).items()\n"
        "        return {n: x.half() if x.is_floating_point() else x for n, x in weights}\n\n"
        "    def restore(self, model, tensors):\n"
        "        return tensors\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    write_variant(VARIANTS.choose("own_variants:HalfVariant"), full, tmp_path / "half")
    assert json.loads((tmp_path / "half" / FILE).read_text())["variant"] == "own_variants:HalfVariant"
    halved, whole = (own_weights(load_bundle(bundle, CPU)) for bundle in (tmp_path / "half", full))
    assert all(torch.equal(halved[n], x.half().to(x.dtype)) for n, x in whole.items() if x.is_floating_point())


def test_what_forgot_nearly_all_is_refused_and_what_did_not_is_not(rows, make_model, tokenizer, tmp_path):
    """On a model that knows its rows, of which each counts six times."""
    from assets.variants import verdict
    from tests.training.conftest import FEATURES
    from training.bootstrap import compare
    from training.processor import Processor
    from training.settings import MediaLimits, PromotionSettings

    model, batch = make_model(rows, output=Choice("class"))
    optimizer = torch.optim.AdamW(model.train().parameters(), 5e-3)
    for _ in range(60):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    bundle = tmp_path / "bundle"
    model.eval().save_pretrained(bundle)
    tokenizer.save_pretrained(bundle)
    Processor(FEATURES, MediaLimits()).save_pretrained(bundle)
    labels, metric = [row["label"] for row in rows] * 6, model.output.metric()
    full = model.scored_answers(batch, tokenizer) * 6
    assert metric.value(labels, full) == 1
    for kind, passes in (({"kind": "pruned", "sparsity": 0.99}, False), ("int8", True)):
        choice = VARIANTS.choose(kind)
        name = name_of(choice)
        write_variant(choice, bundle, tmp_path / name)
        answers = load_bundle(tmp_path / name, CPU).scored_answers(batch, tokenizer) * 6
        beside = compare(metric, labels, answers, full)
        passed, why = verdict(name, beside, metric, PromotionSettings())
        assert passed == passes
        assert why.startswith(f"{name} is {'not shown to be ' if passes else ''}worse than the full model: accuracy")
    lost = compare(metric, labels, ["7"] * len(labels), full)
    assert verdict("x", lost, metric, PromotionSettings(margin=0.6))[0], "within the margin"
    assert not verdict("x", lost, metric, PromotionSettings(margin=0.05))[0]


def test_variants_have_names_and_each_stands_once():
    chosen = choose_variants(["int8", {"kind": "pruned", "sparsity": 0.7}, "pruned"])
    assert [name_of(choice) for choice in chosen] == ["int8", "pruned-0.7", "pruned"]
    assert choose_variants("onnx") == (Choice("onnx"),)
    with pytest.raises(ValueError, match="variants has pruned twice"):
        choose_variants(["pruned", {"kind": "pruned", "sparsity": 0.5}])
    with pytest.raises(ValueError, match=r"sparsity is 1\.0, expected above 0, below 1"):
        choose_variants([{"kind": "pruned", "sparsity": 1}])
    assert all(issubclass(VARIANTS.load(kind), Variant) for kind in KINDS)
