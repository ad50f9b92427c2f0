"""Text: normalised, its language found, segmented into words (`training.language`)."""

import unicodedata
from collections.abc import Mapping
from typing import Any, ClassVar

import pyarrow as pa

from training import personal_data
from training.media import too_large
from training.messages import one_line
from training.modalities.base import Modality
from training.settings import MediaLimits, TextCleaning


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
    Options = TextCleaning

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
