"""What the project file says under `pretraining`. Needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from training.catalog import PRETRAINED_ENCODERS
from training.settings import TINY, ModelSettings
from training.validation import FORBID_EXTRA, check

READS_PROMPT = "llm"  # the encoder of what the language model reads itself
TOLD = ("grid", "frames", "ids", "symbols")  # forms of features of which hidden parts can be told


@dataclass(frozen=True, kw_only=True)
class PretrainingSettings:
    """How encoders learn from rows without labels, before the models are trained that start from them."""

    __pydantic_config__ = FORBID_EXTRA
    masked: float = 0.5  # share of each input that is hidden and has to be told from the rest; 0: nothing is
    contrastive: float = 1.0  # weight of finding what else a row has, beside that; 0: it is not asked
    epochs: float = 20.0
    batch_size: int = 64
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        check(0 <= self.masked <= 0.9, "masked", self.masked, "0 to 0.9")
        check(self.contrastive >= 0, "contrastive", self.contrastive, "0 or more")
        check(self.masked > 0 or self.contrastive > 0, "masked", self.masked, "over 0 where contrastive is 0")
        check(self.epochs > 0, "epochs", self.epochs, "over 0")
        check(self.batch_size >= 2, "batch_size", self.batch_size, "at least 2")
        check(self.learning_rate > 0, "learning_rate", self.learning_rate, "over 0")


def learning(model: ModelSettings, forms: Mapping[str, str]) -> list[str]:
    """The modalities whose encoders can learn without labels: not those that stay as they are, nor what `llm: tiny`
    reads itself, whose words are of the training rows and their labels.

    Args:
        model: with an encoder for each modality (`training.settings.complete`).
        forms: modality -> form of its features.
    """
    found = []
    for modality, choice in model.encoders.items():
        is_frozen = choice.kind in PRETRAINED_ENCODERS and choice.options.get("train", "frozen") == "frozen"
        if not is_frozen and not (choice.kind == READS_PROMPT and model.llm.model == TINY):
            found.append(modality)
    return found


def check_pretraining(settings: PretrainingSettings, model: ModelSettings, forms: Mapping[str, str]) -> None:
    """Raises ValueError where nothing could be learned."""
    there: Any = learning(model, forms)
    told = [modality for modality in there if settings.masked > 0 and forms[modality] in TOLD]
    if not told and (len(there) < 2 or settings.contrastive == 0):
        kinds = ", ".join(f"{modality}: {choice.kind}" for modality, choice in model.encoders.items())
        raise ValueError(
            f"pretraining has nothing to learn with the encoders {kinds}: masked needs one that learns and reads "
            f"{', '.join(TOLD)}; contrastive two that learn. A frozen one does not, nor the one that reads text by "
            "`llm: tiny` (model.encoders.text: small_transformer does)"
        )
