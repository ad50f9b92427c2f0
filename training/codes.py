"""The codes of contents as further words of a language model's vocabulary: how it reads and writes them.

The embeddings and the rows of the output layer of these words are the head's, so that a language model learns them
however it is trained itself: frozen, by LoRA or whole.

Shapes: B rows, S positions of the context, K codes, D width of the language model, V words: one that begins the
contents of each part, then the codes of each part and, where they may be fewer, one that ends them.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LogitsProcessorList

from training.codecs.options import Alphabet
from training.outputs.base import Asked
from training.sampling import SampledModel, choosing
from training.settings import GenerationSettings


class Words(NamedTuple):
    """Of a part."""

    begin: int
    first: int  # code 0
    codes: int
    length: int  # most codes of a content
    end: int | None  # None: every content has `length` codes


def words_of(alphabets: Mapping[str, Alphabet]) -> tuple[dict[str, Words], int]:
    """Part -> its words, and how many words there are."""
    words, at = {}, len(alphabets)
    for number, (name, alphabet) in enumerate(alphabets.items()):
        end = None if alphabet.is_fixed else at + alphabet.codes
        words[name] = Words(number, at, alphabet.codes, alphabet.length, end)
        at += alphabet.codes + (end is not None)
    return words, at


class CodeWords(nn.Module):
    """The model's head."""

    def __init__(self, width: int, words: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.out = nn.Linear(width, words)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to logits (..., V)."""
        logits: Tensor = self.out(x.to(self.out.weight.dtype))
        return logits


def targets_of(coded: list[tuple[Words, np.ndarray]]) -> Tensor:
    """(B, 1 + K): the word that begins each, then its codes and its end, padded by -100."""
    rows = []
    for words, codes in coded:
        end = [] if words.end is None else [words.end]
        rows.append(torch.tensor([words.begin, *(int(code) + words.first for code in codes), *end]))
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)


def forced_logits(model: Any, embeddings_BSD: Tensor, mask_BS: Tensor, targets: Tensor) -> Tensor:
    """What is said of each of the targets but the first, where all before it are given (B, K, V)."""
    read_BK = targets[:, :-1].clamp(min=0)
    written_BKD = model.head.embedding(read_BK).to(embeddings_BSD.dtype)
    sequence = torch.cat([embeddings_BSD, written_BKD], dim=1)
    mask = torch.cat([mask_BS, targets[:, :-1] != -100], dim=1)
    return model.head(model.read(sequence, mask).last_hidden_state[:, -read_BK.shape[1] :])


def written(asked: Asked, words: Words, rows_R: Tensor) -> list[np.ndarray]:
    """The codes that the language model writes behind the context of these rows, one after the other; greedily, or as
    `model.generation` draws them. At least one of each."""
    is_drawn = isinstance(asked.model, SampledModel)
    model: Any = asked.model.model if isinstance(asked.model, SampledModel) else asked.model
    how = GenerationSettings(**model.config.generation)
    seeds = asked.model.seeds_B[rows_R.cpu()] if isinstance(asked.model, SampledModel) else None
    processors = LogitsProcessorList([]) if seeds is None or not is_drawn else choosing(how, seeds)
    begin_R = torch.full_like(rows_R, words.begin)
    embeddings, mask = asked.embeddings_BSD[rows_R], asked.mask_BS[rows_R]
    last = model.head.embedding(begin_R)[:, None].to(embeddings.dtype)
    read, cache, ended = torch.cat([embeddings, last], dim=1), None, torch.zeros_like(begin_R, dtype=torch.bool)
    steps: list[Tensor] = []
    for step in range(words.length + (words.end is not None)):
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -read.shape[1] :]
        said = model.llm(
            inputs_embeds=read, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        cache = said.past_key_values
        logits = model.head(said.last_hidden_state[:, -1]).float()[:, words.first :][
            :, : words.codes + (words.end is not None)
        ]
        if step == 0:
            logits = logits[:, : words.codes]
        so_far = torch.stack(steps, 1) if steps else begin_R.new_zeros(len(begin_R), 0)
        chosen = processors(so_far, logits).argmax(-1)  # type: ignore[arg-type]
        ended = ended | (chosen == words.codes)
        steps.append(chosen.masked_fill(ended, words.codes))
        if ended.all():
            break
        read = model.head.embedding(chosen + words.first)[:, None].to(embeddings.dtype)
    codes = torch.stack(steps, 1).cpu().numpy()
    return [row[row < words.codes][: words.length] for row in codes]
