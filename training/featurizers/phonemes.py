"""Phonemes: how espeak-ng says a text in the text's own language, as the characters of the International Phonetic
Alphabet (`training.espeak`).

Shapes: B rows, S characters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from training.featurizers.base import FeatureShape, Featurizer
from training.media import MediaError
from training.validation import FORBID_EXTRA, check

if TYPE_CHECKING:
    from torch import Tensor

_UNTOLD = "en"  # how a text is said whose language nobody knows
# The blocks of Unicode that IPA takes its characters from: Latin, IPA extensions to combining marks, Greek, phonetic
# extensions, punctuation.
_BLOCKS = (range(0x20, 0x7F), range(0xA0, 0x180), range(0x250, 0x400), range(0x1D00, 0x1DC0), range(0x2010, 0x2040))
_OTHER = 1  # 0 pads
_IDS = {chr(code): n for n, code in enumerate((code for block in _BLOCKS for code in block), _OTHER + 1)}


@dataclass(frozen=True, kw_only=True)
class PhonemesOptions:
    __pydantic_config__ = FORBID_EXTRA
    max_tokens: int = 1024  # characters of a text that a model reads; all are stored

    def __post_init__(self) -> None:
        check(self.max_tokens >= 1, "max_tokens", self.max_tokens, "at least 1")


class PhonemesFeaturizer(Featurizer):
    form = "symbols"
    described = "phonemes by espeak-ng"
    version = 1
    packages = ("espeakng-loader",)
    read = "phonemes"
    at_batch = ("max_tokens",)
    tensors: Mapping[str, str] = {"phonemes": "int32"}
    Options = PhonemesOptions

    def featurize(self, content: Any) -> dict[str, np.ndarray]:
        from training.espeak import phonemes

        language = _UNTOLD if content.language == "und" else content.language
        try:
            said = phonemes(content.text, language)
        except ValueError as error:
            raise MediaError("unsupported", f"{error}: set features.text.language to one that it has") from None
        if not said:
            raise MediaError("empty", "espeak-ng has nothing to say of it")
        return {"phonemes": np.array([_IDS.get(character, _OTHER) for character in said], np.int32)}

    def shape(self) -> FeatureShape:
        return FeatureShape(self.form, len(_IDS) + _OTHER + 1)

    def batch(self, rows: Sequence[np.ndarray | None]) -> "tuple[Tensor, Tensor]":
        """int64 (B, S), padded on the right with 0, and a mask (B, S); S is at least 1."""
        from training.padding import padded

        return padded([() if row is None else row[: self.options.max_tokens] for row in rows], 0)

    def cut(self) -> tuple[str, str]:
        most = self.options.max_tokens
        return f"phonemes_shape[1] > {most}", f"longer than {most} phonemes (max_tokens), of which the first are used"
