"""Text: normalised, its language found, segmented into words (`training.language`)."""

import unicodedata
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from training import personal_data
from training.media import too_large
from training.messages import one_line
from training.modalities.base import Modality
from training.settings import MediaLimits, TextAugmentation, TextCleaning


class TextModality(Modality):
    name = "text"
    described = "normalised, segmented, without stop words"
    version = 4
    packages = ("ftfy", "jieba", "py3langid", "regex")
    columns: ClassVar = {
        "text": pa.large_string(),
        "characters": pa.int64(),
        "language": pa.string(),
        "words": pa.list_(pa.string()),
        "content_words": pa.list_(pa.string()),
    }
    extra: ClassVar = {"text": pa.large_string()}
    limits: ClassVar = {"max_characters": "characters"}
    in_python = True
    default_featurizer = "tokens"
    is_text = as_string = True
    column_words: ClassVar = {
        "text": "the text, normalised",
        "characters": "before it was normalised",
        "language": "ISO 639-1, or und (undetermined)",
        "words": "the text segmented",
        "content_words": "lower case, without stop words",
    }
    media_type = "text/plain"
    file_suffixes = (".txt",)
    noise_levels = (0.05, 0.1, 0.2, 0.4)
    noise_words = "share of characters dropped or swapped"
    Options = TextCleaning
    Augmentation = TextAugmentation

    def __init__(self, options: TextCleaning | None = None) -> None:
        super().__init__(options or TextCleaning())

    def decode(self, data: bytes, limits: MediaLimits, size: int | None = None) -> Any:
        from training.language import clean_text

        text = data.decode("utf-8", "surrogatepass")  # JSON's escapes can spell half of a pair, which is replaced
        if len(text) > limits.max_characters:
            raise too_large(f"{len(text)} characters", "max_characters", limits.max_characters)
        return clean_text(text, self.options)

    def describe(self, content: Any) -> dict[str, Any]:
        return {name: getattr(content, name) for name in (*self.columns, "warnings")}

    def extras(self, content: Any) -> dict[str, Any]:
        return {"text": content.text}

    def nbytes(self, content: Any) -> int:
        return 4 * len(content.text)

    def sketch(self, content: Any) -> str:
        return one_line(content.text, 200)

    def pieces(self, content: Any) -> list[str]:
        return list(content.words)

    def keeping(self, content: Any, kept: np.ndarray) -> Any:
        from training.language import clean_text

        text, at = content.text, 0
        left = []
        for word, is_kept in zip(content.words, kept, strict=True):
            if (start := text.find(word, at)) < 0:
                continue
            left.append(text[at : start + (len(word) if is_kept else 0)])
            at = start + len(word)
        said = "".join([*left, text[at:]])
        return clean_text(said, self.options) if said.strip() else None

    def noisy(self, content: Any, level: float, random: np.random.Generator) -> Any:
        """That share of the characters, drawn one by one, is dropped, or changes places with the next."""
        from training.language import clean_text

        text, hit = list(content.text), random.random(len(content.text)) < level
        for n in np.flatnonzero(hit):
            if n + 1 < len(text) and random.random() < 0.5:
                text[n], text[n + 1] = text[n + 1], text[n]
            else:
                text[n] = ""
        said = "".join(text)
        return clean_text(said if said.strip() else content.text[:1], self.options)

    def example(self) -> bytes:
        return b"What do you see?"

    def identity(self) -> Any:
        """The version of the character database, which decides normalisation; and what finds personal data."""
        if self.options.personal_data == "keep":
            return unicodedata.unidata_version
        return [unicodedata.unidata_version, personal_data.identity()]

    @property
    def counted(self) -> Mapping[str, str]:
        if self.options.personal_data != "mask":
            return {}
        signs = {kind: f"[{kind.lower() if self.options.lowercase else kind.upper()}]" for kind in personal_data.KINDS}
        without = {kind: f"length(replace(text, '{sign}', ''))" for kind, sign in signs.items()}
        return {f"masked_{kind}": f"(length(text) - {without[kind]}) // {len(signs[kind])}" for kind in signs}
