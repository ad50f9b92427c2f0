"""Language models of other makes than `tiny`: in which dtype they train, and which are refused, and in what words."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    BloomConfig,
    BloomForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

from training.building import build_model, check_model
from training.catalog import FUSIONS, OUTPUTS
from training.collator import make_collator
from training.features import FeatureSettings
from training.llm import check_llm, is_causal
from training.model import FusionModel
from training.processor import Processor
from training.score import Answerer
from training.settings import LlmSettings, MediaLimits, ModelSettings, TrainingSettings, complete
from training.tokenizer import fit_tokenizer, load_tokenizer

MODALITIES = ("text", "image", "speech")
FEATURES = FeatureSettings(  # of the fixture `rows`
    image={"size": 16, "color": "grey"},
    speech={"sample_rate": 8000, "mels": 16, "coefficients": 8, "max_seconds": 5},
)
MODEL = ModelSettings(width=16, layers=1, heads=2, tokens=2, max_new_tokens=8)
TOKENIZER = fit_tokenizer(["What do you see?", "Is it bright?", "yes", "no"] * 5, 300)
LLAMA = {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
MODELS: dict[str, Callable[[dict[str, int]], Any]] = {
    "llama": lambda size: LlamaForCausalLM(LlamaConfig(**size, **LLAMA, hidden_size=32, tie_word_embeddings=True)),
    # Its tokenizer has a token for padding of its own.
    "qwen2": lambda size: Qwen2ForCausalLM(
        Qwen2Config(**size | {"vocab_size": size["vocab_size"] + 1}, **LLAMA, hidden_size=32, num_key_value_heads=2)
    ),
    # Embeddings that are scaled as they are read.
    "gemma": lambda size: GemmaForCausalLM(
        GemmaConfig(**size, **LLAMA, hidden_size=32, head_dim=8, num_key_value_heads=2)
    ),
    "mistral": lambda size: MistralForCausalLM(MistralConfig(**size, **LLAMA, hidden_size=32, num_key_value_heads=2)),
    "gpt2": lambda size: GPT2LMHeadModel(GPT2Config(**size, n_embd=32, n_layer=2, n_head=4)),  # learned positions
    "gpt_neox": lambda size: GPTNeoXForCausalLM(GPTNeoXConfig(**size, **LLAMA, hidden_size=32)),
    # Embeddings of another width than what lies behind them; positions by distance, so any number of them.
    "opt": lambda size: OPTForCausalLM(
        OPTConfig(
            **size, hidden_size=32, word_embed_proj_dim=16, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4
        )
    ),
    "bloom": lambda size: BloomForCausalLM(BloomConfig(**size, hidden_size=32, n_layer=2, n_head=4)),
    "bert": lambda size: BertForMaskedLM(BertConfig(**size, **LLAMA, hidden_size=32)),
    "t5": lambda size: T5ForConditionalGeneration(
        T5Config(**size, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
    ),
    "vit": lambda size: ViTModel(ViTConfig(**LLAMA, hidden_size=32)),
}
CAUSAL = ("llama", "gpt2", "gpt_neox", "opt", "bloom", "gemma")


def save_llm(folder: Path, kind: str, dtype: torch.dtype = torch.float32, **config: Any) -> str:
    """A new model with random weights, as Hugging Face lays it out; its tokenizer has no token for padding."""
    torch.manual_seed(0)
    special = {"bos_token_id": TOKENIZER.bos_token_id, "eos_token_id": TOKENIZER.eos_token_id}
    MODELS[kind]({"vocab_size": len(TOKENIZER)} | special | config).to(dtype).save_pretrained(folder)
    tokens = {"bos_token": TOKENIZER.bos_token, "eos_token": TOKENIZER.eos_token}
    PreTrainedTokenizerFast(tokenizer_object=TOKENIZER.backend_tokenizer, **tokens).save_pretrained(folder)
    return str(folder)


def build(llm: Any, **settings: Any) -> tuple[FusionModel, Any]:
    model = replace(MODEL, llm=llm, **settings)
    tokenizer = load_tokenizer(model.llm.model)
    torch.manual_seed(0)
    return build_model(model, FEATURES, tokenizer, MODALITIES, ["7", "9"]), tokenizer


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [*((kind, torch.float32) for kind in CAUSAL), ("llama", torch.bfloat16), ("gpt2", torch.float16)],
    ids=str,
)
@pytest.mark.parametrize("output", ["text", "class"])
def test_a_stored_model_trains_and_answers_in_float32(
    kind: str, output: str, dtype: torch.dtype, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    stored = load_file(Path(save_llm(tmp_path / "llm", kind, dtype)) / "model.safetensors")
    model, tokenizer = build(str(tmp_path / "llm"), output=output)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    embeddings = model.get_input_embeddings().weight
    assert {tensor.dtype for tensor in stored.values()} == {dtype}
    assert any(torch.equal(tensor.float(), embeddings) for tensor in stored.values())
    collate = make_collator(model, tokenizer, FEATURES)
    batch = collate(rows) | {"labels": model.output.targets([row["label"] for row in rows], tokenizer)}
    optimizer, losses = torch.optim.Adam(model.parameters(), 1e-3), []
    for precision in (torch.float32, torch.bfloat16, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            losses.append(model(**batch).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[2] < losses[0]
    answers = model.eval().answer(batch, tokenizer)
    assert [model.answer(collate([row]), tokenizer)[0] for row in rows] == answers  # padding is never read
    model.save_pretrained(tmp_path / "saved")
    again = FusionModel.from_pretrained(tmp_path / "saved").eval()
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
    torch.testing.assert_close(again(**batch).logits, model(**batch).logits, rtol=0, atol=0)
    assert again.answer(batch, tokenizer) == answers


@pytest.mark.parametrize("train", ["frozen", "lora", "full"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "gemma", "mistral"])
def test_what_is_trained_is_stored_and_answers_elsewhere(
    kind: str, train: str, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    folder = save_llm(tmp_path / "llm", kind, torch.bfloat16)
    output = "text" if kind in ("llama", "gemma") else "class"
    model, tokenizer = build({"model": folder, "train": train}, output=output)
    collate = make_collator(model, tokenizer, FEATURES)
    batch = collate(rows) | {"labels": model.output.targets([row["label"] for row in rows], tokenizer)}
    optimizer, of_llm = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2), set[str]()
    for _ in range(2):
        model.train()(**batch).loss.backward()
        of_llm |= {name for name, p in model.llm.named_parameters() if p.grad is not None and p.grad.any()}
        optimizer.step()
        optimizer.zero_grad()
    whole = {name for name, p in model.llm.named_parameters() if p.requires_grad}
    assert of_llm == whole and {".lora_" in name for name in whole} == {
        "frozen": set(), "lora": {True}, "full": {False}
    }[train]  # fmt: skip
    bundle, logits = tmp_path / "bundle", model.eval()(**batch).logits
    model.save_pretrained(bundle)
    stored = load_file(bundle / "model.safetensors")
    assert {name for name in stored if name.startswith("llm.")} == {f"llm.{name}" for name in whole}
    shutil.rmtree(folder)  # the folder answers by itself
    for loaded in (FusionModel.from_pretrained(bundle), AutoModel.from_pretrained(bundle)):
        assert not loaded.training
        torch.testing.assert_close(loaded(**batch).logits, logits, rtol=0, atol=0)
    assert loaded.answer(batch, tokenizer) == model.answer(batch, tokenizer)
    loaded.merged().save_pretrained(tmp_path / "merged")
    assert not (tmp_path / "merged" / "base").exists()
    again = FusionModel.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(again(**batch).logits, logits, rtol=1e-4, atol=1e-4)
    assert again.config.llm_base == model.config.llm_base and again.config.llm_base["model"] == folder
    if train == "lora":
        with pytest.raises(ValueError, match=r"llm is not there, and it held the language model .*llm: bring it back"):
            model.save_pretrained(tmp_path / "later")
        with (bundle / "base" / "model.safetensors").open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"x")
        with pytest.raises(ValueError, match=r"base holds other files than those of the language model .*llm \(sha256"):
            FusionModel.from_pretrained(bundle)


def test_how_a_language_model_cannot_be_trained_is_told_without_its_weights(tmp_path: Path) -> None:
    folder = save_llm(tmp_path / "llm", "gpt2")
    (weights := tmp_path / "llm" / "model.safetensors").write_text("nothing that could be read")
    output = OUTPUTS.make(MODEL.output, {})
    check_llm(LlmSettings(model=folder, train="lora", targets=("c_attn",)), output)
    with pytest.raises(ValueError, match=r"model.llm: targets q_proj: no layer .* added to c_attn, c_proj, c_fc$"):
        check_llm(LlmSettings(model=folder, train="lora", targets=("q_proj",)), output)
    with pytest.raises(ValueError, match=r"model.llm: model is .*nowhere': there is no such folder"):
        check_llm(LlmSettings(model=str(tmp_path / "nowhere")), output)
    weights.unlink()
    with pytest.raises(ValueError, match=r"model.llm is .* has no weights as safetensors"):
        check_llm(LlmSettings(model=folder), output)
    with pytest.raises(ValueError, match="train is 'lora', expected full where model is tiny"):
        LlmSettings(train="lora")


@pytest.mark.parametrize("kind", ["llama", "opt", "gemma"])
def test_soft_tokens_start_at_the_size_of_the_models_own_tokens(
    kind: str, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    llm = save_llm(tmp_path / "llm", kind)
    for fusion in FUSIONS.names():
        model, tokenizer = build(llm, fusion=fusion)
        own = model.get_input_embeddings()(torch.arange(len(TOKENIZER))).square().mean().sqrt().item()
        batch = make_collator(model.eval(), tokenizer, FEATURES)(rows)
        x_m = model.fuse(*model.encode(**batch))
        assert x_m.square().mean(-1).sqrt().flatten().tolist() == pytest.approx([own] * x_m[..., 0].numel(), rel=0.1)
    with torch.no_grad():
        model.soft_norm.weight.mul_(2)  # it is learned ...
    model.save_pretrained(tmp_path / "saved")
    again = FusionModel.from_pretrained(tmp_path / "saved").eval()  # ... and stored
    torch.testing.assert_close(again.fuse(*again.encode(**batch)), 2 * x_m, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("output", ["text", "class"])
def test_a_masked_language_model_would_see_the_answer(output: str, tmp_path: Path) -> None:
    llm = save_llm(tmp_path, "bert", torch.bfloat16)
    with pytest.raises(
        ValueError, match=r"\(bert\), which is not causal: .* later tokens.*; set model.llm to a causal"
    ):
        build(llm, output=output)


def test_what_is_causal_is_tried_out_and_not_told_by_the_name() -> None:
    size = {"vocab_size": 300, "hidden_size": 32, **LLAMA}
    torch.manual_seed(0)
    assert not is_causal(BertLMHeadModel(BertConfig(**size)).eval())
    before = torch.random.get_rng_state()
    assert is_causal(BertLMHeadModel(BertConfig(**size, is_decoder=True)).eval())
    assert not torch.equal(before, torch.random.get_rng_state())  # by the weights of the model ...
    model, before = LlamaForCausalLM(LlamaConfig(**size)).eval(), torch.random.get_rng_state()
    assert is_causal(model) and torch.equal(before, torch.random.get_rng_state())  # ... and not by the trial


@pytest.mark.parametrize(
    ("kind", "words"), [("t5", "an encoder-decoder: .* have to be one sequence"), ("vit", "no causal")]
)
@pytest.mark.parametrize("output", ["text", "class"])
def test_another_kind_of_model_is_refused_in_words(kind: str, words: str, output: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"model.llm is .*\({kind}\), {words}.*; set model.llm to a causal"):
        build(save_llm(tmp_path, kind), output=output)


def test_a_folder_that_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    save_llm(tmp_path, "llama")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model.llm is .*, and its files cannot be loaded: .*safetensors"):
        build(str(tmp_path))


def test_the_tokenizer_of_another_model_is_named(tmp_path: Path) -> None:
    llm = save_llm(tmp_path / "few", "llama", vocab_size=2, bos_token_id=0, eos_token_id=1)
    with pytest.raises(
        ValueError, match=r"the eos_token '<\|eos\|>' of .* is token 2, and the model has embeddings of 2"
    ):
        build(llm)
    llm = save_llm(tmp_path / "endless", "llama")
    PreTrainedTokenizerFast(tokenizer_object=TOKENIZER.backend_tokenizer).save_pretrained(llm)
    with pytest.raises(ValueError, match=r"the tokenizer of .* has no eos_token, so no answer could end"):
        build(llm)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, None),
        ({"prompt": "{soft}{text} " + "?" * 50}, r"has 64 positions, and soft .*_tokens \(8\) take 65 of them beside"),
        ({"max_new_tokens": 60}, r"model.max_new_tokens \(60\) take 66 of them beside what rows bring: lower these"),
        ({"tokens": 30}, "take 98 of them"),
        ({"prompt": {"user": "{text}"}}, "model.prompt has turns, and .* does not take them"),
        ({"prompt": "{soft}"}, r"no \{text\}, which the language model reads"),
        ({"prompt": "{text}", "encoders": {"text": "small_transformer"}}, "which the language model does not read"),
        ({"max_new_tokens": 2}, r"the training label 'no, yes, no' has \d tokens, and answers end after"),
    ],
)
def test_what_a_training_would_end_at_is_checked_without_weights(
    settings: dict[str, Any], words: str | None, tmp_path: Path
) -> None:
    folder = save_llm(tmp_path / "llm", "gpt2", n_positions=64)
    (tmp_path / "llm" / "model.safetensors").write_text("nothing that could be read")
    model = complete(replace(MODEL, llm=folder, **settings), {m: FEATURES.forms[m] for m in MODALITIES})
    check = partial(check_model, model, TrainingSettings(), FEATURES, ["7", "no, yes, no"])
    if words is None:
        check()
    else:
        with pytest.raises(ValueError, match=words):
            check()


def test_a_prompt_that_is_longer_than_the_positions_is_named(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    model, tokenizer = build(save_llm(tmp_path / "llm", "gpt2", n_positions=40))
    room = 40 - 3 * MODEL.tokens - 8  # beside soft tokens and answer
    assert model.prompt_room == room
    (row,) = (row for row in rows if row["text"] and row["image"] and not row["speech"])
    collate = make_collator(model, tokenizer, FEATURES)

    def asked(tokens: int) -> dict[str, Any]:
        text = "q" * tokens
        assert len(tokenizer(text)["input_ids"]) == tokens
        return row | {"text": row["text"] | {"text": text}, "sample_id": "s17"}

    assert len(model.eval().answer(collate([asked(room)]), tokenizer)) == 1
    with pytest.raises(
        ValueError, match=rf"the text of s17 has {room + 1} tokens.* features.text.max_tokens to {room} or"
    ):
        collate.check_prompts([asked(room), asked(room + 1)])
    model.save_pretrained(tmp_path / "bundle")
    tokenizer.save_pretrained(tmp_path / "bundle")
    Processor(FEATURES, MediaLimits()).save_pretrained(tmp_path / "bundle")
    answerer = Answerer(tmp_path / "bundle")
    with pytest.raises(
        ValueError, match=rf"^text: the text of this row has {room + 1} tokens, .* positions for {room} "
    ):
        answerer.read({"text": "q" * (room + 1)})
    assert len(answerer([answerer.read({"text": "q" * room})])) == 1
