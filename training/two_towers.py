"""Models with a tower for each of two modalities, which place contents in one space: CLIP, SigLIP, CLAP and their like.

Shapes: B inputs of one shape, P numbers of a place.
"""

import functools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training import model_files
from training.device import chosen_device
from training.images import Image
from training.preprocessing import PREPROCESSING, Picture, Preprocessing, Recording, loading
from training.recordings import Speech

if TYPE_CHECKING:
    from torch import Tensor

_PLACES = {"text": "get_text_features", "image": "get_image_features", "speech": "get_audio_features"}
_BATCH = 16  # inputs that go through a tower at once
_loading = threading.Lock()


class TwoTowers:
    """A frozen model in eval mode and float32, on an accelerator where there is one, with its own preprocessing: of a
    picture it reads what it was trained to read, its middle. What is longer than it reads at once is placed at the mean
    of its parts."""

    def __init__(self, folder: Path, modalities: Sequence[str]) -> None:
        """Raises ValueError where the folder holds no such model."""
        import torch
        from transformers import AutoModel

        self._preprocessing: dict[str, Preprocessing] = {m: PREPROCESSING[m](folder) for m in modalities}
        what = " and ".join(modalities)
        with loading(folder, what):
            model: Any = AutoModel.from_pretrained(
                folder, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
            )
        if missing := [m for m in modalities if not hasattr(model, _PLACES[m])]:
            raise ValueError(
                f"model {str(folder)!r} ({model.config.model_type}) has no place for {missing[0]}: a model of {what} "
                "is wanted, such as CLIP (text and image) or CLAP (text and speech)"
            )
        self._device = chosen_device()
        self._model = model.eval().requires_grad_(False).to(self._device)

    def place(self, modality: str, contents: Sequence[Any]) -> list[np.ndarray | None]:
        """float32 (P,) of length 1 of each content, as its modality decodes it; None: none that is finite."""
        import torch

        preprocessing = self._preprocessing[modality]
        sums: list[Any] = [0] * len(contents)
        with torch.inference_mode():
            for batch in preprocessing.batches([_raw(c) for c in contents], _BATCH, self._device):
                for (n, _), place_P in zip(batch.parts, self._run(modality, batch.tensors), strict=True):
                    sums[n] = sums[n] + place_P
        lengths = [float(np.linalg.norm(place_P)) for place_P in sums]
        return [place_P / size if 0 < size < np.inf else None for place_P, size in zip(sums, lengths, strict=True)]

    def _run(self, modality: str, tensors: "dict[str, Tensor]") -> np.ndarray:
        """Places of length 1 (B, P)."""
        from torch.nn import functional

        said = getattr(self._model, _PLACES[modality])(**tensors)
        return functional.normalize(getattr(said, "pooler_output", said).float(), dim=-1).cpu().numpy()


def _raw(content: Any) -> Any:
    """What preprocessing takes."""
    if isinstance(content, Image):
        return Picture(content.array, crop=True)
    return Recording(content.waveform, content.sample_rate) if isinstance(content, Speech) else str(content.text)


def identity(model: str) -> str:
    """The content of the model's files. Raises ValueError: it is not there."""
    return model_files.digest(model_files.model_folder(model))


def load(model: str, modalities: tuple[str, ...]) -> TwoTowers:
    """The model of a name or folder; the same object each time. Raises ValueError."""
    with _loading:
        return _load(model_files.model_folder(model), modalities, identity(model))


@functools.lru_cache(maxsize=2)
def _load(folder: Path, modalities: tuple[str, ...], content: str) -> TwoTowers:
    return TwoTowers(folder, modalities)
