"""The contract of a codec: pictures or recordings to a few discrete codes, and back.

Shapes: K codes of a content.
"""

import json
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from training.catalog import CODECS
from training.codecs.options import Alphabet, Source
from training.descent import train

_WEIGHTS, _SETTINGS, _MODEL = "codec.safetensors", "codec.json", "model"


class Codec(nn.Module):
    """Contents are NumPy arrays as `Source.tensor` has them; what `decode` gives has the same form. Its weights are
    part of a model that answers with it, and are never trained with that.

    A subclass is made of a source and its options, with new weights, or those of a pretrained model.
    """

    source: Source
    alphabet: Alphabet  # that its options say of the source
    pretrained: Any  # a model of transformers that is all of it, where there is one

    def fit(self, contents: Sequence[np.ndarray], log: Callable[[str], None] = print, seed: int = 0) -> None:
        """Learns from the contents that are to be answered with. Leaves torch's global generator as it was."""

    def learn(
        self, loss_of: Callable[[Tensor], Tensor], contents: int, steps: int, log: Callable[[str], None], seed: int
    ) -> None:
        """Steps by the loss of the contents of these numbers."""
        self.requires_grad_(True)
        train(self, lambda rows, _: loss_of(rows), contents, steps, log, seed)
        self.requires_grad_(False)

    @abstractmethod
    def encode(self, contents: Sequence[np.ndarray]) -> list[np.ndarray]:
        """int64 (K,) of each, K at least 1; what one gives does not depend on the others."""

    @abstractmethod
    def decode(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The contents that codes stand for, whatever codes they are."""

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


def save_codec(codec: Codec, choice: Any, source: Source, modality: str, folder: Path) -> None:
    """Weights and what makes the codec anew, in a folder. Args: `choice` as the project file says it."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"modality": modality, "codec": CODECS.choose(choice, modality).plain(), "source": asdict(source)}
    (folder / _SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    if hasattr(codec, "pretrained"):
        codec.pretrained.save_pretrained(folder / _MODEL)
    else:
        save_file({name: tensor.contiguous() for name, tensor in codec.state_dict().items()}, folder / _WEIGHTS)


def load_codec(folder: Path) -> Codec:
    """Of `save_codec`."""
    settings = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
    choice, is_pretrained = settings["codec"], (folder / _MODEL).is_dir()
    choice = {**choice, "model": str(folder / _MODEL)} if is_pretrained else choice
    codec = make_codec(choice, Source(**settings["source"]), settings["modality"])
    if not is_pretrained:
        codec.load_state_dict(load_file(folder / _WEIGHTS))
    return codec.eval()


def make_codec(choice: Any, source: Source, modality: str) -> Codec:
    """A codec of new weights, or of those of its pretrained model. Args: `choice` as the project file says it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the same contents make the same codec
        codec: Codec = CODECS.make(CODECS.choose(choice, modality), source, scope=modality)
    return codec.requires_grad_(False).eval()


def batched(contents: Sequence[np.ndarray], size: int = 256) -> list[Sequence[np.ndarray]]:
    return [contents[at : at + size] for at in range(0, len(contents), size)]
