"""What the language model reads: templates and chats, with the soft tokens where they say; the same when it serves."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.training.conftest import FEATURES, MODALITIES, MODEL
from training.building import build_model
from training.collator import make_collator
from training.features import FeatureSettings
from training.model import FusionModel
from training.processor import Processor
from training.prompt import Chat
from training.score import Answerer
from training.settings import MediaLimits, ModelSettings, TrainingSettings
from training.tokenizer import fit_tokenizer
from training.train import make_tokenizer

ASKED = "Question: {text}\nAnswer: "
CHAT = Chat(system="One word.", user="Look: {soft} {text}")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A chat model with random weights."""
    folder = tmp_path_factory.mktemp("llm")
    tokenizer = fit_tokenizer(["What do you see?", "Question: Answer:", " seven nine"] * 3, 320)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    network = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=200, **size))
    network.generation_config.no_repeat_ngram_size = 1  # its own way to write, which ours takes the place of
    network.save_pretrained(folder)
    return str(folder)


def build(llm: str, modalities: tuple[str, ...] = MODALITIES, **settings: Any) -> tuple[FusionModel, Any]:
    model = replace(MODEL, llm=llm, **settings)
    tokenizer = make_tokenizer(None, model, TrainingSettings())  # type: ignore[arg-type]  # has its own texts
    torch.manual_seed(0)
    return build_model(model, FEATURES, tokenizer, modalities, ["seven", "nine"]).eval(), tokenizer


def read(model: FusionModel, tokenizer: Any, row: dict[str, Any]) -> list[Any]:
    """The token ids that the language model reads of a row, and "soft" for each soft token."""
    batch = make_collator(model, tokenizer, FEATURES)([row])
    asked, _ = model._asked(batch, tokenizer)
    own = model.get_input_embeddings()(torch.arange(len(tokenizer)))
    apart = (asked.embeddings_BSD[0][asked.mask_BS[0]][:, None] - own).abs().amax(-1)
    return [int(x.argmin()) if x.min() < 1e-6 else "soft" for x in apart]


def of(rows: list[dict[str, Any]], *modalities: str) -> dict[str, Any]:
    return next(row for row in rows if [m for m in MODALITIES if row[m] is not None] == list(modalities))


def expected(tokenizer: Any, *parts: str | int) -> list[Any]:
    """Of texts, and of so many soft tokens."""
    ids = [["soft"] * p if isinstance(p, int) else tokenizer(p, add_special_tokens=False)["input_ids"] for p in parts]
    return [token for part in ids for token in part]


def test_a_template_is_read_as_it_stands(llm: str, rows: list[dict[str, Any]]) -> None:
    text, soft = "What do you see?", 3 * MODEL.tokens
    assert of(rows, "text", "image")["text"]["text"] == text
    model, tokenizer = build(llm, prompt=ASKED, fusion="cross_attention")  # whose soft tokens are those that are there
    seen = partial(read, model, tokenizer)
    assert seen(of(rows, "text", "image", "speech")) == expected(tokenizer, soft, f"Question: {text}\nAnswer:")
    assert seen(of(rows, "image", "speech")) == expected(tokenizer, soft, "Question:", "\nAnswer:")
    model, tokenizer = build(llm, prompt="See {{ {soft} }}: {text}")
    assert read(model, tokenizer, of(rows, "text", "image")) == expected(tokenizer, "See { ", soft, f" }}: {text}")
    model, tokenizer = build(llm, ("image",), prompt=ASKED)  # a baseline, which does not read the text
    assert read(model, tokenizer, of(rows, "image")) == expected(tokenizer, MODEL.tokens, "Question:", "\nAnswer:")


def test_columns_stand_where_the_template_names_them(llm: str, rows: list[dict[str, Any]]) -> None:
    text, named = "What do you see?", "{soft}{text} The patient is {age}, {the sex}.\nAnswer: "
    row = of(rows, "text", "image", "speech") | {"columns": {"age": "63", "the sex": ""}}
    model, tokenizer = build(llm, prompt=named, fusion="cross_attention")
    soft = 3 * MODEL.tokens
    assert read(model, tokenizer, row) == expected(tokenizer, soft, text, " The patient is", " 63", ",", ".\nAnswer:")
    turn_end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert turn_end not in read(model, tokenizer, row | {"columns": {"age": "<|im_end|>", "the sex": "f"}})
    model, tokenizer = build(llm, ("image",), prompt=named)  # a baseline, which does not read the text
    columns = {"age": "63", "the sex": "f"}
    seen = read(model, tokenizer, of(rows, "image") | {"columns": columns})
    assert seen == expected(tokenizer, MODEL.tokens, " The patient is", " 63", ",", " f", ".\nAnswer:")
    seen = read(*build(llm, prompt=Chat(user="{text} {age}")), row)
    assert str(expected(tokenizer, text, " 63", "<|im_end|>"))[1:-1] in str(seen)


def test_a_column_that_is_too_long_is_told_with_its_row(llm: str, rows: list[dict[str, Any]]) -> None:
    model, tokenizer = build(llm, ("image",), prompt="{soft} It: {note}")
    collate, row, room = make_collator(model, tokenizer, FEATURES), of(rows, "image"), model.prompt_room
    assert room is not None
    words = rf"the column 'note' of {row['sample_id']} has {room + 1} tokens, and .* positions for {room} beside"
    with pytest.raises(ValueError, match=words):
        collate.check_prompts([row | {"columns": {"note": "é" * (count // 2)}} for count in (room - 1, room + 1)])


def test_a_space_before_the_answer_is_the_answers(llm: str) -> None:
    model, tokenizer = build(llm, prompt=ASKED)
    (ids,) = model.output.targets(["seven"], tokenizer).tolist()
    assert ids == [*tokenizer(" seven")["input_ids"], tokenizer.eos_token_id]
    assert model.config.make_output().targets(["seven"], tokenizer).tolist() == [ids]


def test_a_chat_is_framed_by_the_tokenizers_template(llm: str, rows: list[dict[str, Any]]) -> None:
    model, tokenizer = build(llm, prompt=CHAT)
    row, text = of(rows, "text", "image"), "What <|im_end|> now?"
    turns = [{"role": "system", "content": "One word."}, {"role": "user", "content": "Look:@ What do you see?"}]
    whole = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    before, after = whole.split("@")
    assert read(model, tokenizer, row) == expected(tokenizer, before + " ", 3 * MODEL.tokens, after)
    turn_end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    ids = read(model, tokenizer, row | {"text": row["text"] | {"text": text}})
    assert ids.count(turn_end) == 2, "no user ends a turn"
    assert tokenizer.eos_token_id == turn_end and model.output.targets(["nine"], tokenizer)[0, -1] == turn_end


@pytest.mark.parametrize("fusion", ["attention", "cross_attention", "logit"])
@pytest.mark.parametrize("prompt", [ASKED, CHAT, "{age}{text}{soft}"], ids=["template", "chat", "columns"])
def test_it_is_the_same_when_the_model_serves(
    fusion: str, prompt: Any, llm: str, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    model, tokenizer = build(llm, prompt=prompt, fusion=fusion)
    rows = [row | {"columns": {"age": "9" * n}} for n, row in enumerate(rows)]
    batch = make_collator(model, tokenizer, FEATURES)(rows)
    answers = model.scored_answers(batch, tokenizer)
    labels = model.output.targets(["seven"] * len(rows), tokenizer)
    loss = model(**batch, labels=labels).loss
    for bundled in (model, tokenizer, Processor(FEATURES, MediaLimits())):
        bundled.save_pretrained(tmp_path)
    answerer = Answerer(tmp_path)
    for row, answer in zip(rows, answers, strict=True):  # alone, so without the padding
        (served,) = answerer([row])
        assert served.prediction == answer.prediction
        assert served.probability == pytest.approx(answer.probability, rel=1e-4)
    assert answerer._model(**batch, labels=labels).loss.item() == pytest.approx(loss.item())


def test_columns_are_masked_as_those_of_the_samples_are(llm: str, tmp_path: Path) -> None:
    model, tokenizer = build(llm, prompt="{age}{text}{soft}")
    features = FeatureSettings(**{**FEATURES.plain(), "text": {"personal_data": "mask"}})
    for bundled in (model, tokenizer, Processor(features, MediaLimits())):
        bundled.save_pretrained(tmp_path)
    row = Answerer(tmp_path).read({"text": "Is it?"}, {"age": " ask anna@example.org "})
    assert row["columns"] == {"age": "ask [EMAIL]"}


def test_a_template_takes_room(llm: str) -> None:
    rooms = [build(llm, prompt=prompt)[0].prompt_room for prompt in (None, "{text}", "{text}" + "?" * 7)]
    assert rooms[0] is not None and rooms == [rooms[0], rooms[0], rooms[0] - 7]


def test_every_tensor_learns(make_model: Callable[..., Any], rows: list[dict[str, Any]]) -> None:
    """Of a class, too, which needs the language model's embeddings for nothing but the template."""
    model, batch = make_model(rows, output="class", prompt="{soft}So: {text}", encoders={})
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):  # a new language model passes on what it reads until its first step
        optimizer.step()
        optimizer.zero_grad()
        model(**batch).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("{image}?", r"'\{image\}\?', expected \{soft\}, \{text\} and columns as its names, which \{image\} is none"),
        (3, r"prompt is 3, expected a template, or \{system: TEXT, user: TEMPLATE\}"),
        ({"usr": "{text}"}, "prompt: "),
        ({"user": "{speech}"}, r"which \{speech\} is none of"),
        ("{text}{text}", "each name once"),
        ("{text!r}", "is none of"),
        ("{}", "is none of"),
        ("a } b", "a brace that is text is written twice"),
        (Chat(user="{text}"), "expected one string: `llm: tiny` has no chat template"),
    ],
)
def test_what_is_no_prompt_is_refused(prompt: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ModelSettings(prompt=prompt)


def test_a_prompt_and_what_the_language_model_reads_must_agree(llm: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no \{text\}, which the language model reads: add it, or take another enc"):
        build(llm, prompt="{soft}What is it?")
    with pytest.raises(ValueError, match=r"\{text\}, which the language model does not read: set model.encoders.text"):
        build(llm, prompt=ASKED, encoders={"text": "small_transformer"})
    model, tokenizer = build(llm, prompt="{soft}What is it?", encoders={"text": "small_transformer"})
    assert model.config.template == ["soft", tokenizer("What is it?")["input_ids"]]
    tokenizer.chat_template = None
    for saved in (model.llm, tokenizer):
        saved.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model.prompt has turns, and .* does not take them: .*; write prompt as one"):
        build(str(tmp_path), prompt=CHAT)
