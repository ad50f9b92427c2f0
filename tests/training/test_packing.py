"""Rows that a language model reads one after the other in training: they say and teach what padded ones do."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, MambaConfig, MambaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tests.training.test_llm import FEATURES, MODELS, build, save_llm
from training import packing
from training.collator import make_collator
from training.llm import check_llm
from training.packing import keeps_rows_apart, packed
from training.settings import LlmSettings

_SHAPE = {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}
_HEADS: dict[str, Any] = _SHAPE | {"num_key_value_heads": 2, "head_dim": 8}
MODELS |= {
    "qwen3": lambda size: Qwen3ForCausalLM(Qwen3Config(**size, **_HEADS)),
    # Sums of every layer, one of which attends to the nearest tokens alone.
    "gemma2": lambda size: Gemma2ForCausalLM(Gemma2Config(**size, **_HEADS, sliding_window=4)),
    "mamba": lambda size: MambaForCausalLM(MambaConfig(**size, hidden_size=32, num_hidden_layers=2)),
}


@pytest.mark.parametrize("length", [1, 256])
@pytest.mark.parametrize(
    ("kind", "output", "llm", "settings"),
    [
        ("llama", "text", {}, {"fusion": "interleaved"}),
        ("qwen2", "text", {"train": "frozen"}, {}),
        ("qwen3", "class", {"train": "lora"}, {}),
        ("gpt2", "text", {"train": "lora"}, {"prompt": "{soft}{text} {speaker}: "}),
        ("gemma", "class", {}, {"fusion": "logit"}),
        ("gemma2", "text", {"train": "lora"}, {"fusion": "logit"}),
        ("mistral", "text", {"train": "frozen"}, {}),
    ],
)
def test_packed_rows_say_and_teach_what_padded_ones_do(
    kind: str,
    output: str,
    llm: dict[str, Any],
    settings: dict[str, Any],
    length: int,
    rows: Any,
    tmp_path: Path,
    monkeypatch: Any,
) -> None:
    model, tokenizer = build({"model": save_llm(tmp_path, kind), **llm}, output=output, **settings)
    rows = [row | {"columns": {"speaker": "a " * n}} for n, row in enumerate(rows)]
    labels = [("7", "9")[n % 2] if output == "class" else "yes " * (1 + n % 3) for n in range(len(rows))]
    batch = make_collator(model, tokenizer, FEATURES)(rows)
    assert not batch["present"].all(), "modalities are missing"
    batch["labels"] = model.output.targets(labels, tokenizer)
    found = []
    monkeypatch.setattr(packing, "LENGTH", length)
    for packs in (False, True):
        for twice in (False, True):
            model.packs = packs
            model.train()
            if twice:
                model.activation_checkpointing_enable()
            model.zero_grad()
            said = model(**batch)
            said.loss.backward()
            real = batch["labels"] != -100 if output == "text" else ...
            grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
            found.append((said.loss, said.logits[real], grads))
            model.activation_checkpointing_disable()
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=2e-6)
    assert any(gradient.any() for gradient in found[0][2].values())


def test_no_row_is_cut_and_little_is_padding() -> None:
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 60, (64,), generator=draw)
    lengths[3] = 400
    mask_BS = torch.arange(400) >= 400 - lengths[:, None]
    at_BS, positions_PL = packed(mask_BS, 256)
    places = at_BS[mask_BS].tolist()
    assert len(set(places)) == len(places) == lengths.sum(), "each token has a place of its own"
    assert positions_PL.numel() < 1.05 * lengths.sum()
    for row, length in zip(at_BS, lengths.tolist(), strict=True):
        place = row[-length:]
        assert place.tolist() == list(range(int(place[0]), int(place[0]) + length)), "in order"
        assert len(set((place // positions_PL.shape[1]).tolist())) == 1, "in one sequence"
        assert positions_PL.flatten()[place].tolist() == list(range(length))


@pytest.mark.parametrize("kind", ["llama", "gemma2", "bloom", "mamba", "opt"])
def test_a_model_that_mixes_rows_is_told_from_one_that_keeps_them_apart(kind: str, tmp_path: Path) -> None:
    folder = save_llm(tmp_path, kind)
    settings = LlmSettings(model=folder)
    model, _ = build(folder)
    before = torch.random.get_rng_state()
    apart = keeps_rows_apart(model.llm.eval())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert apart == (kind in ("llama", "gemma2"))
    if apart:
        check_llm(settings, model.output, packing=True)
    else:
        check_llm(settings, model.output)
        with pytest.raises(ValueError, match=r"^training.packing: the language model .* set it to false$"):
            check_llm(settings, model.output, packing=True)
