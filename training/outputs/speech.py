"""The answer is speech that the model says."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from training.catalog import DEFAULT_CODECS
from training.outputs.contents import ContentsOutput, codec_choice
from training.validation import FORBID_EXTRA

if TYPE_CHECKING:
    import numpy as np

    from training.codecs.options import Source


class SpeechOutput(ContentsOutput):
    """At the rate of `features.speech`, which keep the waveforms."""

    modality = "speech"

    @dataclass(frozen=True, kw_only=True)
    class Options:
        __pydantic_config__ = FORBID_EXTRA
        codec: Any = DEFAULT_CODECS["speech"]  # a kind of CODECS, as the project file says it
        format: Literal["wav", "flac"] = "wav"  # of the files

        def __post_init__(self) -> None:
            object.__setattr__(self, "codec", codec_choice(self.codec, "speech"))

    def as_file(self, content: "np.ndarray", source: "Source") -> str:
        from training.media_files import recording_url

        return recording_url(content, source.rate, self.options.format)
