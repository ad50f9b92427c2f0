"""What the project file says of codecs, and what they are made for. Needs no torch."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from training.model_files import model_folder
from training.spectra import NO_WAVEFORM
from training.validation import FORBID_EXTRA, check

if TYPE_CHECKING:
    from training.features import FeatureSettings

STRETCH = 4  # frames of a spectrum that codes stand for
_CELLS = 8  # of a side of a picture, where the reduction is not said
_MODELS = ("encodec", "dac", "mimi")  # `model_type`
_LARGEST = 512  # pixels of a side: what is larger has thousands of codes


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a codec reads and gives: the tensor of that name in a feature row of its modality."""

    tensor: str  # pixels: uint8 (channels, size, size); waveform: int16 (samples,) at `rate`
    channels: int = 0
    size: int = 0
    rate: int = 0  # Hz

    @classmethod
    def of(cls, features: "FeatureSettings", modality: str) -> "Source":
        """Raises ValueError: these features keep nothing that could be made a file of again."""
        tensors, options = features.featurizer(modality).tensors, features.options(modality)
        if modality == "image" and "pixels" in tensors:
            expected = f"at most {_LARGEST}, where pictures are answers"
            check(options.size <= _LARGEST, "features.image.size", options.size, expected)
            return cls(tensor="pixels", channels=options.channels, size=options.size)
        if modality == "speech" and "waveform" in tensors:
            return cls(tensor="waveform", rate=options.sample_rate)
        kind = features.choice(modality).kind
        if modality == "speech" and hasattr(options, "keep_waveform"):
            raise ValueError(f"speech is learned from features.speech ({kind}), and {NO_WAVEFORM}")
        kinds = {"image": "pixels", "speech": "log_mel or mfcc, with keep_waveform: true"}
        raise ValueError(
            f"features.{modality} is {kind}, of which no {modality} can be made again: a model that answers with "
            f"{modality} needs {kinds.get(modality, 'another output: there is no codec for it')}"
        )


@dataclass(frozen=True, kw_only=True)
class Alphabet:
    """The codes of a codec."""

    codes: int  # they are numbers from 0 and below this
    length: int  # most codes of a content
    is_fixed: bool  # every content has so many


@dataclass(frozen=True, kw_only=True)
class Autoencoder:
    __pydantic_config__ = FORBID_EXTRA
    # Pixels of a side that one code stands for; null: the least with which a picture has 64 codes or fewer
    reduction: Literal[2, 4, 8, 16, 32, 64] | None = None
    width: int = 32  # channels of its outermost layers; those within have more
    steps: int = 1500  # of its training, which is once for the same pictures
    levels: tuple[int, ...] = (4, 4, 4, 4)  # of each of the numbers that a code stands for; their product: the codes

    def __post_init__(self) -> None:
        _check(self.width, self.steps, self.levels)

    def halvings(self, source: Source) -> int:
        """How often the size of a picture is halved."""
        if self.reduction is not None:
            return self.reduction.bit_length() - 1
        return max(1, math.ceil(math.log2(source.size / _CELLS)))

    def grid(self, source: Source) -> int:
        """Codes of a side."""
        return -(-source.size // 2 ** self.halvings(source))

    def alphabet(self, source: Source) -> Alphabet:
        return Alphabet(codes=math.prod(self.levels), length=self.grid(source) ** 2, is_fixed=True)


@dataclass(frozen=True, kw_only=True)
class Mel:
    __pydantic_config__ = FORBID_EXTRA
    mels: int = 64
    window_ms: float = 32.0
    hop_ms: float = 16.0
    seconds: float = 2.0  # what is longer is learned, and said, up to here
    groups: int = 2  # codes of every four hops
    width: int = 128
    steps: int = 1500
    levels: tuple[int, ...] = (4, 4, 4, 4)
    iterations: int = 32  # of Griffin and Lim

    def __post_init__(self) -> None:
        _check(self.width, self.steps, self.levels)
        for name in ("mels", "groups", "iterations"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        check(0 < self.seconds <= 60, "seconds", self.seconds, "over 0, up to 60")
        check(0 < self.hop_ms <= self.window_ms / 2, "hop_ms", self.hop_ms, "over 0, up to half of window_ms")

    def hop(self, source: Source) -> int:
        """Samples of a frame."""
        return max(1, round(self.hop_ms * source.rate / 1000))

    def stretches(self, source: Source) -> int:
        """Of the longest recording."""
        return max(1, round(self.seconds * source.rate / self.hop(source) / STRETCH))

    def alphabet(self, source: Source) -> Alphabet:
        return Alphabet(codes=math.prod(self.levels), length=self.stretches(source) * self.groups, is_fixed=False)


@dataclass(frozen=True, kw_only=True)
class Huggingface:
    __pydantic_config__ = FORBID_EXTRA
    model: str = ""  # name or local folder, in safetensors: EnCodec, DAC or Mimi
    codebooks: int = 2  # the first so many, read one after the other for each frame
    seconds: float = 2.0  # what is longer is learned, and said, up to here

    def __post_init__(self) -> None:
        check(self.codebooks >= 1, "codebooks", self.codebooks, "at least 1")
        check(0 < self.seconds <= 60, "seconds", self.seconds, "over 0, up to 60")

    def config(self) -> Any:
        """Of the model. Raises ValueError: it is not there, or is another thing."""
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(model_folder(self.model), trust_remote_code=False)
        if config.model_type not in _MODELS:
            raise ValueError(f"codec model {self.model} is a {config.model_type}, expected {', '.join(_MODELS)}")
        books: Any = getattr(config, "num_quantizers", None) or getattr(config, "n_codebooks", self.codebooks)
        check(self.codebooks <= books, "codec codebooks", self.codebooks, f"at most the {books} of {self.model}")
        return config

    def alphabet(self, source: Source) -> Alphabet:
        config = self.config()
        frames = math.ceil(self.seconds * config.sampling_rate / hop_of(config)) + 1
        codes = self.codebooks * config.codebook_size
        return Alphabet(codes=codes, length=frames * self.codebooks, is_fixed=False)


def hop_of(config: Any) -> int:
    """Samples of a frame of a pretrained codec."""
    if config.model_type == "dac":
        return int(config.hop_length)
    return math.ceil(config.sampling_rate / config.frame_rate)


def _check(width: int, steps: int, levels: Any) -> None:
    check(width >= 8, "width", width, "at least 8")
    check(steps >= 1, "steps", steps, "at least 1")
    check(len(levels) >= 1 and all(level >= 2 for level in levels), "levels", levels, "numbers of at least 2")
