"""The answer is a picture that the model draws."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from training.catalog import DEFAULT_CODECS
from training.outputs.contents import ContentsOutput, codec_choice
from training.validation import FORBID_EXTRA

if TYPE_CHECKING:
    import numpy as np

    from training.codecs.options import Source


class ImageOutput(ContentsOutput):
    """Of the size of `features.image`."""

    modality = "image"

    @dataclass(frozen=True, kw_only=True)
    class Options:
        __pydantic_config__ = FORBID_EXTRA
        codec: Any = DEFAULT_CODECS["image"]  # a kind of CODECS, as the project file says it
        format: Literal["png", "jpeg", "webp"] = "png"  # of the files

        def __post_init__(self) -> None:
            object.__setattr__(self, "codec", codec_choice(self.codec, "image"))

    def as_file(self, content: "np.ndarray", source: "Source") -> str:
        from training.media_files import picture_url

        return picture_url(content, self.options.format)
