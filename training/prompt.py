"""What the language model reads: `model.prompt`, a template with places for the soft tokens, for the text and for
columns of the samples (`attributes` of the table `samples`).

    prompt: "{soft}Question: {text}\\nAnswer: "                     # read as it stands
    prompt: {system: "Answer in one word.", user: "{soft}{text}"}  # turns, framed by the tokenizer's chat template
    prompt: "{soft}{text} The patient is {age}.\\nAnswer: "         # with the value of the column `age`

Without `{soft}` the soft tokens stand at the beginning, of the user's turn where there are turns. A space before the
text, a column's value or the answer is read as theirs, since most tokenizers know a word with the space before it. Of a
column that a sample has no value in nothing is read.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import TYPE_CHECKING, Any

from training.catalog import MODALITIES
from training.validation import FORBID_EXTRA, check, validated

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    from training.model_config import FusionConfig

SOFT = "soft"
_OPEN, _CLOSE = "\ue000", "\ue001"  # of private use: around names, in what a chat template frames
_ANSWER = f"{_OPEN}answer{_CLOSE}"


@dataclass(frozen=True, kw_only=True)
class Chat:
    """The turns before the assistant's, which is the answer."""

    __pydantic_config__ = FORBID_EXTRA
    user: str  # a template
    system: str | None = None


def read_prompt(value: Any, modalities: Sequence[str]) -> str | Chat:
    """As the project file says it; checked.

    Raises:
        ValueError: it is neither a template nor turns, or names a modality that is none of these, or one of its names
            twice. Whether there is such a column is not known here.
    """
    check(isinstance(value, str | Mapping | Chat), "prompt", value, "a template, or {system: TEXT, user: TEMPLATE}")
    try:
        prompt = validated(Chat, value) if isinstance(value, Mapping) else value
    except ValueError as error:
        raise ValueError(f"prompt: {error}") from None
    _check_names(prompt, modalities)
    return prompt


def _check_names(prompt: str | Chat, modalities: Sequence[str]) -> None:
    template, known = _template(prompt), [SOFT, *modalities]
    others = set(MODALITIES.names()).difference(known)
    try:
        fields = [field for field in Formatter().parse(template) if field[1] is not None]
    except ValueError as error:
        raise ValueError(f"prompt is {template!r}: {error}; a brace that is text is written twice") from None
    for _, name, form, conversion in fields:
        there = ", ".join(f"{{{n}}}" for n in known)
        plain = bool(name) and name not in others and not form and not conversion
        check(plain, "prompt", template, f"{there} and columns as its names, which {{{name}}} is none of")
    names = [name for _, name, _, _ in fields]
    check(len(names) == len(set(names)), "prompt", template, "each name once")


def named(prompt: str | Chat) -> list[str]:
    """The names in a checked prompt, in order."""
    return [name for _, name, _, _ in Formatter().parse(_template(prompt)) if name is not None]


def columns(names: Iterable[str]) -> tuple[str, ...]:
    """Those of the names in a prompt that are columns."""
    return tuple(name for name in names if name not in (SOFT, *MODALITIES.names()))


def answer_lead(prompt: str | Chat | None) -> str:
    """What an answer begins with, before its label."""
    return " " if isinstance(prompt, str) and prompt.endswith(" ") else ""


def prompt_tokens(
    prompt: str | Chat, tokenizer: "PreTrainedTokenizerBase", config: "FusionConfig"
) -> tuple[list[Any], dict[str, str]]:
    """A checked prompt as the model of that configuration reads it: `template` and `leads` of `FusionConfig`.

    Raises:
        ValueError: there are turns, and the tokenizer has no chat template for them; or it names a text that the
            language model does not read, or leaves out one that it does.
    """
    from training.tokenizer import control

    _check_reads(prompt, config)
    template = _template(prompt) if SOFT in named(prompt) else f"{{{SOFT}}}{_template(prompt)}"
    fields = Formatter().parse(template)
    text = "".join(literal + ("" if name is None else f"{_OPEN}{name}{_CLOSE}") for literal, name, _, _ in fields)
    parts: list[Any] = []
    if isinstance(prompt, Chat):
        text = _framed(prompt, text, tokenizer)
    else:  # what a tokenizer puts before a text, a chat template writes itself
        text, parts = text.removesuffix(answer_lead(prompt)), [list(control(tokenizer).before)]
    leads, pieces = dict[str, str](), re.split(f"{_OPEN}(.+?){_CLOSE}", text)
    for n in range(0, len(pieces), 2):
        literal, name = pieces[n], pieces[n + 1] if n + 1 < len(pieces) else SOFT
        if name != SOFT:
            leads[name], literal = " " if literal.endswith(" ") else "", literal.removesuffix(" ")
        parts += [tokenizer(literal, add_special_tokens=False)["input_ids"], *pieces[n + 1 : n + 2]]
    read = (SOFT, *config.modalities, *columns(named(prompt)))  # a baseline reads fewer modalities
    return [part for part in parts if (part if isinstance(part, list) else part in read)], leads


def _check_reads(prompt: str | Chat, config: "FusionConfig") -> None:
    texts = set(named(prompt)).intersection(config.modalities)
    for name in texts - {config.prompt}:
        raise ValueError(
            f"model.prompt has {{{name}}}, which the language model does not read: set model.encoders.{name} to llm"
        )
    if config.prompt is not None and not texts:
        raise ValueError(
            f"model.prompt has no {{{config.prompt}}}, which the language model reads: add it, or take another encoder "
            f"as model.encoders.{config.prompt}"
        )


def turn_end(prompt: str | Chat | None, tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """The token that ends the assistant's turn by the chat template; None: that is not said."""
    from training.tokenizer import control

    if not isinstance(prompt, Chat):
        return None
    after = _framed(prompt, prompt.user, tokenizer, _ANSWER).partition(_ANSWER)[2]
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    ends = (number for number in ids if number in control(tokenizer).ids)
    return next((str(tokenizer.convert_ids_to_tokens(number)) for number in ends), None)


def _template(prompt: str | Chat) -> str:
    return prompt.user if isinstance(prompt, Chat) else prompt


def _framed(chat: Chat, user: str, tokenizer: "PreTrainedTokenizerBase", answer: str | None = None) -> str:
    """The turns up to where the answer begins, or with it."""
    from jinja2 import TemplateError

    turns = [{"role": "user", "content": user}]
    if chat.system is not None:
        turns.insert(0, {"role": "system", "content": chat.system})
    if answer is not None:
        turns.append({"role": "assistant", "content": answer})
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer is None))
    except (TemplateError, ValueError) as error:
        raise ValueError(
            f"model.prompt has turns, and the language model's tokenizer does not take them: {str(error)[:200]}; write "
            "prompt as one string, or take a model.llm that was trained on chats"
        ) from error
