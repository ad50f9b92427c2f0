"""Texts that say the same in other words: each is translated into another language, and back (Sennrich et al. 2016).

By any pair of translation models of transformers. Its result is stored with a text's features, keyed by content, so a
text is translated once; training draws from what is stored.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from training.device import chosen_device
from training.model_files import digest, model_folder
from training.validation import FORBID_EXTRA, check

_MOST = 512  # tokens of a text, where its model does not say fewer
_BATCH = 16  # texts that are translated at once
_BEAMS = 4
_LONGER = 2  # times as many tokens as a text has, and some, its translation may have
_SOME = 16


@dataclass(frozen=True, kw_only=True)
class BackTranslation:
    __pydantic_config__ = FORBID_EXTRA
    there: str = ""  # has to be given, as `back`: a Hugging Face name, or a local folder, of a model and its tokenizer
    back: str = ""
    variants: int = 2  # texts that are kept of each, at most: from as many translations, the likeliest ones
    # What stands before each text, where a model wants that: "translate English to German: ", ">>fra<< "
    before_there: str = ""
    before_back: str = ""

    def __post_init__(self) -> None:
        for name in ("there", "back"):
            value = getattr(self, name)
            check(
                value != "", f"back_translation.{name}", value, "a translation model: a Hugging Face name or a folder"
            )
        check(1 <= self.variants <= 16, "back_translation.variants", self.variants, "1 to 16")

    def located(self, locate: Callable[[str], str]) -> "BackTranslation":
        return replace(self, there=locate(self.there), back=locate(self.back))

    def identity(self) -> Any:
        """What a fingerprint knows: the models by their content. Raises ValueError: one is not there."""
        models = [digest(model_folder(name)) for name in (self.there, self.back)]
        return [*models, self.variants, self.before_there, self.before_back]

    def prepare(self) -> None:
        """Loads the models. Raises ValueError: one cannot be loaded, or does not translate."""
        for name in (self.there, self.back):
            _load(str(model_folder(name)), chosen_device().type)

    def said_otherwise(self, texts: Sequence[str]) -> list[list[str]]:
        """Of each text others that say the same, none twice; none of a text that is too long for the models."""
        there = self._translated(self.there, [self.before_there + text for text in texts], self.variants)
        flat = [(n, said) for n, several in enumerate(there) for said in several]
        again = self._translated(self.back, [self.before_back + said for _, said in flat], 1)
        found: list[list[str]] = [[] for _ in texts]
        for (n, _), said in zip(flat, again, strict=True):
            found[n] += [one for one in said if one not in (texts[n], *found[n])]
        return found

    @staticmethod
    def _translated(name: str, texts: Sequence[str], variants: int) -> list[list[str]]:
        import torch

        model, tokenizer = _load(str(model_folder(name)), chosen_device().type)
        ids = [tokenizer(text)["input_ids"] for text in texts]
        most = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None) or _MOST, _MOST)
        found: list[list[str]] = [[] for _ in texts]
        for numbers in _alike([len(one) for one in ids], most):
            read = torch.tensor([ids[n] for n in numbers], device=model.device)
            room = {"max_new_tokens": min(most, _LONGER * read.shape[1] + _SOME)}
            beams = {"num_beams": max(_BEAMS, variants), "num_return_sequences": variants}
            with torch.inference_mode():
                written = model.generate(
                    input_ids=read, attention_mask=torch.ones_like(read), do_sample=False, **room, **beams
                )
            words = [said.strip() for said in tokenizer.batch_decode(written, skip_special_tokens=True)]
            for at, n in enumerate(numbers):
                found[n] = list(dict.fromkeys(filter(None, words[at * variants : (at + 1) * variants])))
        return found


def _alike(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Batches of texts of one length, so that none is padded, and what becomes of one depends on no other."""
    for length in sorted(set(lengths)):
        numbers = [n for n, own in enumerate(lengths) if own == length and 0 < length <= most]
        for start in range(0, len(numbers), _BATCH):
            yield numbers[start : start + _BATCH]


@functools.lru_cache(maxsize=2)
def _load(folder: str, device: str) -> tuple[Any, Any]:
    """Model and tokenizer, once in a process."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=False, use_safetensors=True)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(
            f"back_translation: {Path(folder).name} is no translation model that can be loaded "
            f"({str(error).partition(chr(10))[0]}); tokenizers of Marian need `pip install sentencepiece`"
        ) from error
    return model.eval().to(device), tokenizer
