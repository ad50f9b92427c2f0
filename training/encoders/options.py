"""The options of encoders; here, where nothing is heavy, since project files are checked by them."""

from dataclasses import dataclass
from typing import Literal

from training.adaptation import Adaptation
from training.validation import check


@dataclass(frozen=True, kw_only=True)
class Huggingface(Adaptation):
    # Has to be given: a Hugging Face name, a local folder of the same form, torchvision/NAME or torchaudio/BUNDLE.
    model: str = ""
    weights: str = ""  # of the last two: a local file with the state dict
    train: Literal["frozen", "lora", "full"] = "frozen"
    tokens: int = 4  # of a content: means over as many stretches, or cells of a picture

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.tokens >= 1, "tokens", self.tokens, "at least 1")
