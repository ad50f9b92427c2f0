"""The whole model on tiny rows: what trains, what does not matter, what comes back after saving."""

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel

from training.building import build_model
from training.catalog import FUSIONS
from training.collator import Collator, make_collator
from training.data import Row
from training.features import FeatureSettings
from training.layers import Readout
from training.model import FusionModel
from training.settings import ModelSettings
from training.tokenizer import fit_tokenizer

MODALITIES = ("text", "image", "speech")
FEATURES = FeatureSettings(
    text={"max_tokens": 20},
    image={"size": 12, "color": "grey"},
    speech={"mels": 10, "coefficients": 4},
)
TOKENIZER = fit_tokenizer(["what do you see and hear", "yes", "no"] * 3, 300)
SMALL_TRANSFORMERS = dict.fromkeys(MODALITIES, "small_transformer")


def make_model(modalities: tuple[str, ...] = MODALITIES, **settings: Any) -> FusionModel:
    torch.manual_seed(0)
    small: dict[str, Any] = {"width": 16, "layers": 1, "heads": 2, "tokens": 2, "max_new_tokens": 4}
    return build_model(ModelSettings(**(small | settings)), FEATURES, TOKENIZER, modalities, ["yes", "no"]).eval()


def make_rows(subsets: Any = None) -> list[Row]:
    """A row for every non-empty subset of the modalities, with texts and speech of different lengths."""
    random = np.random.default_rng(0)
    if subsets is None:
        subsets = [s for n in (1, 2, 3) for s in itertools.combinations(MODALITIES, n)]
    rows = []
    for n, subset in enumerate(subsets):
        row: Row = dict.fromkeys(MODALITIES)
        row |= {"sample_id": str(n), "label": "yes" if n % 2 else "no", "epoch": 0}
        if "text" in subset:
            text = "what do you see and hear"[: 5 + 3 * n]
            row["text"] = {"text": text, "input_ids": np.frombuffer(text.encode(), np.uint8).astype(np.int32)}
        if "image" in subset:
            row["image"] = {"pixels": random.integers(0, 256, (1, 12, 12), dtype=np.uint8)}
        if "speech" in subset:
            row["speech"] = {"log_mel": random.normal(size=(3 + 5 * n, 10)).astype(np.float32)}
        rows.append(row)
    return rows


def make_batch(model: FusionModel, rows: list[Row], **changes: Any) -> dict[str, Tensor]:
    collator = make_collator(model, TOKENIZER, FEATURES)
    collator.targets = partial(model.output.targets, tokenizer=TOKENIZER)
    for name, value in changes.items():
        setattr(collator, name, value)
    return collator(rows)


@pytest.mark.parametrize("fusion", FUSIONS.names())
@pytest.mark.parametrize("encoders", [{}, SMALL_TRANSFORMERS], ids=["cnn", "transformer"])
@pytest.mark.parametrize("output", ["text", "class"])
def test_everything_learns(fusion: str, encoders: dict[str, str], output: str) -> None:
    """Three steps that cover every subset give every trainable tensor a gradient that is not zero."""
    model = make_model(fusion=fusion, encoders=encoders, output=output).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    waiting = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rows = make_rows()
    for part in (rows[:3], rows[3:6], rows[6:] * 2):
        optimizer.zero_grad()
        model(**make_batch(model, part)).loss.backward()
        waiting = {name: p for name, p in waiting.items() if p.grad is None or not p.grad.abs().sum() > 0}
        optimizer.step()
    assert not waiting, f"never trained: {sorted(waiting)}"


@pytest.mark.parametrize("fusion", FUSIONS.names())
def test_bfloat16_is_near(fusion: str) -> None:
    """As `training.precision: bfloat16` computes; gradients reach the same parameters."""
    model = make_model(fusion=fusion, encoders=SMALL_TRANSFORMERS).train()
    batch = make_batch(model, make_rows())
    exact = model(**batch).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch).loss
    assert loss.item() == pytest.approx(exact.item(), rel=0.05)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_count_of_parameters() -> None:
    width, inner, heads_of_fusion, layers, vocabulary = 16, 64, 1, 1, len(TOKENIZER)
    model = make_model()
    counted = {name: sum(p.numel() for p in module.parameters()) for name, module in model.named_children()}
    linear = width * width + width
    block = 2 * 2 * width + 3 * linear + linear + (2 * width * width + 2 * width) + (2 * width * width + width)
    assert counted["fusion"] == 2 * 3 * 2 * width + heads_of_fusion * block
    assert counted["projectors"] == 3 * (2 * width + linear)
    layer = 4 * width * width + 3 * width * inner + 2 * width
    assert counted["llm"] == 2 * vocabulary * width + layers * layer + width
    assert counted["to_llm"] == 0
    pool = 2 * width + 2 * width + (2 * width * width + 2 * width) + linear
    image = 9 * 8 + 2 * 8 + 9 * 8 * 8 + 2 * 8 + (4 * 8 * width + width)
    speech = 9 * 4 + 2 * 4 + 9 * 4 * 8 + 2 * 8 + 9 * 8 * 16 + 2 * 16 + (16 * 2 * width + width)
    assert counted["encoders"] == (linear + pool) + image + speech


@pytest.mark.parametrize("kind", ["small_transformer"])
def test_a_token_is_not_drowned_by_its_place(kind: str) -> None:
    """With the weights that a new model has, one token of twelve tells the class, wherever it stands."""
    model = make_model(("text",), encoders={"text": kind}, width=32)
    encoder, head = model.encoders["text"], nn.Linear(2 * 32, 4)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], 3e-3)
    for _ in range(50):
        ids_BS, told_B, rows_B = torch.randint(10, 50, (32, 12)), torch.randint(4, (32,)), torch.arange(32)
        ids_BS[rows_B, torch.randint(12, (32,))] = told_B
        values = model.get_input_embeddings()(ids_BS) if encoder.reads_prompt else ids_BS
        tokens_BTD, _ = encoder(values, torch.ones(32, 12, dtype=torch.bool))
        loss = functional.cross_entropy(head(tokens_BTD.flatten(1)), told_B)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5  # of nothing learned 1.39


@pytest.mark.parametrize("encoders", [{}, SMALL_TRANSFORMERS], ids=["cnn", "transformer"])
@pytest.mark.parametrize("fusion", FUSIONS.names())
def test_what_a_row_lacks_is_never_read(fusion: str, encoders: dict[str, str]) -> None:
    model = make_model(fusion=fusion, encoders=encoders)
    batch = make_batch(model, make_rows())
    logits = model(**batch).logits
    for n, (modality, names) in enumerate({"image": ["image"], "speech": ["speech", "speech_mask"]}.items(), start=1):
        absent = ~batch["present"][:, n]
        assert absent.any(), modality
        for name in names:
            garbage = batch[name].clone()
            garbage[absent] = True if garbage.dtype == torch.bool else torch.nan
            torch.testing.assert_close(model(**(batch | {name: garbage})).logits, logits, rtol=0, atol=0)
    if "text" in batch:
        absent = ~batch["present"][:, 0]
        garbage = batch["text"].clone()
        garbage[absent] = 65
        torch.testing.assert_close(model(**(batch | {"text": garbage})).logits, logits, rtol=0, atol=0)


@pytest.mark.parametrize("fusion", FUSIONS.names())
@pytest.mark.parametrize("encoders", [{}, SMALL_TRANSFORMERS], ids=["cnn", "transformer"])
def test_a_row_is_answered_alone_as_in_a_batch(encoders: dict[str, str], fusion: str) -> None:
    model = make_model(encoders=encoders, fusion=fusion)
    rows = make_rows()
    together = model(**make_batch(model, rows))
    collator = make_collator(model, TOKENIZER, FEATURES)
    answers = model.answer(collator(rows), TOKENIZER)
    for n, row in enumerate(rows):
        alone = model(**make_batch(model, [row])).logits[0]
        torch.testing.assert_close(together.logits[n, : len(alone)], alone, rtol=1e-4, atol=1e-5)
        assert model.answer(collator([row]), TOKENIZER) == [answers[n]]


def test_answers_are_what_the_logits_say() -> None:
    """Greedy decoding takes the likeliest first token of teacher forcing: prompt, positions and padding agree."""
    model = make_model()
    rows = make_rows()
    batch = make_batch(model, rows)
    first = model(**batch).logits[:, 0].argmax(-1)
    ids = []
    x_m = model.fuse(*model.encode(**{name: tensor for name, tensor in batch.items() if name != "labels"}))
    embeddings, mask = model.context(x_m, batch["prompt_ids"], batch["prompt_mask"])
    ids = model.llm.generate(
        inputs_embeds=embeddings, attention_mask=mask.long(), max_new_tokens=1, do_sample=False, pad_token_id=0
    )
    assert ids[:, 0].tolist() == first.tolist()


def test_context_is_soft_tokens_then_prompt_padded_on_the_left() -> None:
    model = make_model()
    batch = make_batch(model, make_rows([("text",), ("text", "image"), ("image",)]))
    x_m = model.fuse(*model.encode(**{name: tensor for name, tensor in batch.items() if name != "labels"}))
    embeddings, mask = model.context(x_m, batch["prompt_ids"], batch["prompt_mask"])
    for n in range(3):
        real = embeddings[n][mask[n]]
        prompt = model.get_input_embeddings()(batch["prompt_ids"][n][batch["prompt_mask"][n]])
        torch.testing.assert_close(real, torch.cat([x_m[n], prompt]), rtol=0, atol=0)
        assert mask[n].tolist() == sorted(mask[n].tolist())


@pytest.mark.parametrize("fusion", FUSIONS.names())
def test_shuffled_soft_tokens_are_another_rows(fusion: str) -> None:
    model = make_model(fusion=fusion)
    batch = make_batch(model, make_rows([("image",), ("image",), ("image", "speech")]))
    logits, order = model(**batch).logits, torch.tensor([1, 2, 0])
    shuffled = model(**batch, shuffle=order).logits
    torch.testing.assert_close(shuffled[:, 0], logits[order, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("output", ["text", "class"])
@pytest.mark.parametrize("encoders", [{}, SMALL_TRANSFORMERS], ids=["cnn", "transformer"])
def test_a_saved_model_answers_the_same(tmp_path: Path, output: str, encoders: dict[str, str]) -> None:
    model = make_model(output=output, encoders=encoders)
    model.train()  # moves the running statistics of batch normalisation
    model(**make_batch(model, make_rows() * 2))
    model.eval()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file() and not list(tmp_path.glob("*.bin"))
    loaded = FusionModel.from_pretrained(tmp_path).eval()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=0, atol=0)
    batch = make_batch(model, make_rows())
    assert loaded.answer(batch, TOKENIZER) == model.answer(batch, TOKENIZER)
    torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("output", ["text", "class"])
def test_any_causal_language_model(tmp_path: Path, output: str) -> None:
    """A local folder, of another family and width; its weights are taken, and can be frozen."""
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=len(TOKENIZER), n_embd=24, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2)
    llm = GPT2LMHeadModel(config)
    llm.save_pretrained(tmp_path)
    model = make_model(llm={"model": str(tmp_path), "train": "frozen"}, output=output)
    torch.testing.assert_close(model.get_input_embeddings().weight, llm.transformer.wte.weight)
    assert not any(p.requires_grad for p in model.llm.parameters()) and model.to_llm.weight.requires_grad
    rows = make_rows()
    assert len(model.answer(make_batch(model, rows), TOKENIZER)) == len(rows)
    model.save_pretrained(tmp_path / "fused")
    loaded = FusionModel.from_pretrained(tmp_path / "fused").eval()
    batch = make_batch(model, rows)
    torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits)
    with pytest.raises(ValueError, match=r"model.llm: model is .*nowhere.*: there is no such folder"):
        make_model(llm=str(tmp_path / "nowhere"))


def test_fewer_modalities_have_no_parameters_for_the_others() -> None:
    model = make_model(("image",), encoders=SMALL_TRANSFORMERS)
    assert list(model.encoders) == ["image"] and model.fusion.stand_in_NTD.shape[0] == 1
    batch = make_batch(model, make_rows())
    assert set(batch) == {"present", "image", "labels"}
    assert len(model.answer(batch, TOKENIZER)) == 7  # rows without an image, too


@pytest.mark.parametrize("size", [8, 9, 28, 64])
def test_images_of_any_size_and_a_single_training_row(size: int) -> None:
    features = FeatureSettings(image={"size": size})
    model = build_model(ModelSettings(width=16, heads=2, layers=1, tokens=6), features, TOKENIZER, ("image",)).train()
    row = make_rows([("image",)])[0] | {"image": {"pixels": np.zeros((3, size, size), np.uint8)}}
    collator = Collator(TOKENIZER, features, ("image",), targets=partial(model.output.targets, tokenizer=TOKENIZER))
    assert model(**collator([row])).loss.isfinite()


@pytest.mark.parametrize("frames", [1, 2, 31])
def test_speech_of_any_length(frames: int) -> None:
    model = make_model(("speech",)).train()
    row = make_rows([("speech",)])[0] | {"speech": {"log_mel": np.ones((frames, 10), np.float32)}}
    assert model(**make_batch(model, [row])).loss.isfinite()


def test_a_new_model_is_a_linear_one_of_the_mean_of_what_it_reads() -> None:
    """Before its first step: the new decoder passes on what it reads, and all positions count the same."""
    model = make_model(output="class", layers=2, fusion="interleaved")
    assert model.head is not None
    x_BSD, mask_BS = torch.randn(3, 5, 16), torch.arange(5) >= torch.tensor([[0], [2], [4]])
    read = model.read(x_BSD, mask_BS).last_hidden_state
    normalised = x_BSD / (x_BSD.square().mean(2, keepdim=True) + model.config.llm_config.rms_norm_eps).sqrt()
    torch.testing.assert_close(read[mask_BS], normalised[mask_BS])
    means = torch.stack([row[real].mean(0) for row, real in zip(read, mask_BS, strict=True)])
    torch.testing.assert_close(model.head(read, mask_BS), model.head.linear(means))


def test_a_readout_learns_where_to_look() -> None:
    """One position of five says the class, by a mark that the others do not bear."""
    torch.manual_seed(0)
    head = Readout(8, 2)
    head.reset_parameters()
    optimizer = torch.optim.Adam(head.parameters(), 0.1)
    for _ in range(100):
        x_BSD, classes_B, where_B = torch.randn(64, 5, 8), torch.randint(2, (64,)), torch.randint(5, (64,))
        x_BSD[range(64), where_B, 0], x_BSD[range(64), where_B, 1] = classes_B * 2.0 - 1, 5.0
        loss = torch.nn.functional.cross_entropy(head(x_BSD, torch.ones(64, 5, dtype=torch.bool)), classes_B)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.2 and head.direction[1] > 1
