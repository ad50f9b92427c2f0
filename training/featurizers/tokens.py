"""Tokens: a text as the ids of a tokenizer that needs no fitting: UTF-8 bytes, or one of Hugging Face.

Shapes: B rows, S tokens.
"""

import functools
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training.back_translation import BackTranslation
from training.featurizers.base import FeatureShape, Featurizer
from training.media import MediaError
from training.validation import FORBID_EXTRA, check

if TYPE_CHECKING:
    from torch import Tensor

BYTES = "bytes"
OTHERS = "back_translations"  # tensor: other texts that say the same, a JSON list in UTF-8
_AT_ONCE = 2**20  # bytes of texts that are translated together
_FILES = ("tokenizer*", "vocab*", "merges*", "special_tokens*", "added_tokens*", "*.model", "chat_template*")


@dataclass(frozen=True, kw_only=True)
class TokensOptions:
    __pydantic_config__ = FORBID_EXTRA
    tokenizer: str = BYTES  # "bytes" (UTF-8), or a Hugging Face name or local folder
    max_tokens: int = 512  # of a text, that a model reads; all are stored
    # What else could be said instead of each text, for `training.augmentation` to draw from; null: nothing
    back_translation: BackTranslation | None = None

    def __post_init__(self) -> None:
        check(self.max_tokens >= 1, "max_tokens", self.max_tokens, "at least 1")


class TokensFeaturizer(Featurizer):
    form = "ids"
    described = "token ids"
    version = 3
    read = "input_ids"
    at_batch = ("max_tokens",)
    located = ("tokenizer", "back_translation")
    for_training = ("back_translation",)
    Options = TokensOptions

    def __init__(self, options: TokensOptions) -> None:
        super().__init__(options)
        name = options.tokenizer
        self.prompt_tokens = options.max_tokens
        self.packages = () if name == BYTES else ("transformers", "tokenizers")
        self._folder = Path(name) if name != BYTES and Path(name).is_dir() else None
        if options.back_translation is not None:
            self.packages = tuple(sorted({*self.packages, "transformers", "torch"}))
            self.at_once, self.runs_model, self.beside = _AT_ONCE, True, (OTHERS,)

    @property
    def tensors(self) -> Mapping[str, str]:
        return {"input_ids": "int32"} | dict.fromkeys(self.beside, "uint8")

    def featurize(self, content: Any) -> dict[str, np.ndarray]:
        (tensors,) = self.featurize_all([content])
        assert not isinstance(tensors, MediaError)
        return tensors

    def featurize_all(self, contents: Sequence[Any]) -> "list[dict[str, np.ndarray] | MediaError]":
        tensors: list[Any] = [self._tokens(content) for content in contents]
        if self.options.back_translation is not None:
            said = self.options.back_translation.said_otherwise([content.text for content in contents])
            for one, others in zip(tensors, said, strict=True):
                one[OTHERS] = np.frombuffer(json.dumps(others, ensure_ascii=False).encode(), np.uint8)
        return tensors

    def most_workers(self) -> int | None:
        """The models translate one batch after the other."""
        return None if self.options.back_translation is None else 1

    def prepare(self) -> None:
        if self.options.back_translation is not None:
            self.options.back_translation.prepare()

    def _tokens(self, content: Any) -> dict[str, np.ndarray]:
        if self.options.tokenizer == BYTES:
            return {"input_ids": np.frombuffer(content.text.encode(), np.uint8).astype(np.int32)}
        from training.tokenizer import encode

        return {"input_ids": np.asarray(encode(self._tokenizer(), content.text), dtype=np.int32)}

    def shape(self) -> FeatureShape:
        return FeatureShape(self.form, 256 if self.options.tokenizer == BYTES else len(self._tokenizer()))

    def batch(self, rows: Sequence[np.ndarray | None]) -> "tuple[Tensor, Tensor]":
        """int64 (B, S), padded on the right with 0, and a mask (B, S); S is at least 1."""
        from training.padding import padded

        return padded([() if row is None else row[: self.options.max_tokens] for row in rows], 0)

    def augmenter(self, settings: Any, noise: Sequence[np.ndarray]) -> Any:
        from training.rewriting import TextAugmenter

        return TextAugmenter(settings, self)

    def identity(self) -> Any:
        """A local folder is known by its files, wherever it lies."""
        own, pair = self._tokenizer_identity(), self.options.back_translation
        return own if pair is None else [own, pair.identity()]

    def _tokenizer_identity(self) -> str:
        if self._folder is None:
            return str(self.options.tokenizer)
        digest = hashlib.sha256()
        for path in _tokenizer_files(self._folder):
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
        return digest.hexdigest()

    def cut(self) -> tuple[str, str]:
        most = self.options.max_tokens
        return f"input_ids_shape[1] > {most}", f"longer than {most} tokens (max_tokens), of which the first are used"

    def save(self, folder: Path) -> None:
        if self._folder is not None:
            for path in _tokenizer_files(self._folder):
                shutil.copyfile(path, folder / path.name)
        elif self.options.tokenizer != BYTES:
            self._tokenizer().save_pretrained(folder)

    def restore(self, folder: Path) -> None:
        if self.options.tokenizer != BYTES:
            self._folder = folder

    def _tokenizer(self) -> Any:
        return _load(str(self._folder or self.options.tokenizer))


@functools.lru_cache(maxsize=4)
def _load(name: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name, trust_remote_code=False)


def _tokenizer_files(folder: Path) -> list[Path]:
    return sorted({path for pattern in _FILES for path in folder.glob(pattern) if path.is_file()})
