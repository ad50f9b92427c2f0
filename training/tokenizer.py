"""The language model's tokenizer: fitted on the training texts for `tiny`, else the model's own; and how it reads texts
and labels that users wrote."""

import functools
import re
from collections.abc import Iterable
from typing import NamedTuple

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from training.model_files import llm_folder
from training.settings import SMALLEST_VOCABULARY

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"


def fit_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `vocabulary` tokens; decoding gives back any Unicode text exactly.

    Raises:
        ValueError: `vocabulary` has no room for all bytes.
    """
    if vocabulary < SMALLEST_VOCABULARY:
        least = f"at least {SMALLEST_VOCABULARY}: all bytes and 3 special tokens"
        raise ValueError(f"vocabulary is {vocabulary}, expected {least}")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return _of_tiny(bpe)


def read_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """One that `fit_tokenizer` made elsewhere, of its JSON (`Tokenizer.to_str`). Raises ValueError: it is none."""
    try:
        return _of_tiny(Tokenizer.from_str(text))
    except Exception as error:  # tokenizers raises no other class
        raise ValueError(f"what was sent as a tokenizer is none: {error}") from None


def _of_tiny(bpe: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a causal language model, by Hugging Face name or local folder; pads with eos if it has no pad.

    Raises:
        ValueError: it is not there, and cannot be fetched.
    """
    folder = llm_folder(name, weights=False)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(missing_model(name, error)) from error
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:  # without either: see `training.llm.load_llm`
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerBase, text: str, around: bool = True) -> list[int]:
    """Token ids of a text that a user wrote: a control token that it spells ("<|eos|>", "[CLS]") is text, too.

    Args:
        around: with the special tokens that the tokenizer puts around a text by itself.
    """
    marks = control(tokenizer)
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    if read := marks.ids.intersection(ids):  # they are words of the vocabulary, too: then spelled with a space
        spelled = "|".join(re.escape(str(token)) for token in tokenizer.convert_ids_to_tokens(sorted(read)))
        apart = re.sub(spelled, lambda match: f"{match[0][0]} {match[0][1:]}", text)
        again = tokenizer(apart, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        ids = [number for number in again if number not in marks.ids]
    return [*marks.before, *ids, *marks.after] if around else ids


def windows(tokenizer: PreTrainedTokenizerBase, text: str, most: int) -> list[list[int]]:
    """Token ids of a text in parts of at most `most` tokens, each with the special tokens that belong around a text;
    all but the last are of `window_length`."""
    marks, ids = control(tokenizer), encode(tokenizer, text, around=False)
    room = window_length(tokenizer, most) - len(marks.before) - len(marks.after)
    parts = [ids[start : start + room] for start in range(0, max(1, len(ids)), room)]
    return [[*marks.before, *part, *marks.after] for part in parts]


def window_length(tokenizer: PreTrainedTokenizerBase, most: int) -> int:
    """Tokens of a whole part of `windows`: `most`, or what a single token takes with those around it."""
    marks = control(tokenizer)
    return max(int(most), 1 + len(marks.before) + len(marks.after))


class Control(NamedTuple):
    """What a tokenizer means by more than text."""

    ids: frozenset[int]
    before: tuple[int, ...]  # what the tokenizer puts before a text
    after: tuple[int, ...]


@functools.lru_cache(maxsize=8)
def control(tokenizer: PreTrainedTokenizerBase) -> Control:
    """The tokens that mean more than their text: special ones, and those that the chat template is made of."""
    template = str(tokenizer.chat_template or "")
    ids = set(tokenizer.all_special_ids)
    for number, token in tokenizer.added_tokens_decoder.items():
        is_mark = any(not char.isalnum() and not char.isspace() for char in token.content)  # and no word or space
        if token.special or (is_mark and token.content in template):
            ids.add(number)
    if tokenizer.unk_token_id not in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        ids.discard(tokenizer.unk_token_id)  # what is not in the vocabulary
    word = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    start = next((n for n in range(len(whole)) if whole[n : n + len(word)] == word), 0)
    return Control(frozenset(ids), tuple(whole[:start]), tuple(whole[start + len(word) :]))


def missing_model(name: str, error: Exception) -> str:
    """What to do about a model whose files are there, and cannot be loaded."""
    why = " ".join(str(error).split())[:300]
    return (
        f"model.llm is {name!r}, and its files cannot be loaded: {why}. There have to be config.json, the weights and "
        "the tokenizer of one model; or use `llm: tiny`, which needs none"
    )
