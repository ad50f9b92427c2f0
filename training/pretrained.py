"""Pretrained encoders of Hugging Face, and what they make of a content (their files: `training.model_files`).

Preprocessing is the model's own. What a content gives does not depend on what else is computed with it: only inputs of
one shape share a batch, and a recording is padded to a multiple of half a second, or to what the model must have.

Shapes: B inputs of one shape, S positions, C channels, H and W cells, D width of the encoder, N tokens.
"""

import contextlib
import copy
import functools
import inspect
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from training.model_files import digest
from training.spectra import resample

if TYPE_CHECKING:
    from torch import Tensor

_SECONDS = 30.0  # of speech that go through an encoder at once, if it does not say
_STEP_SECONDS = 0.5  # lengths of speech are rounded up to a multiple: few lengths make large batches
_LONGEST_TEXT = 512  # tokens that go through an encoder at once, if it does not say
_loading = threading.Lock()


class _Input(NamedTuple):
    """A part of a content that goes through the encoder at once."""

    tensors: dict[str, "Tensor"]  # what the model takes, a batch of one
    real: float  # share of the positions that are not padding, from the start


class PretrainedEncoder(ABC):
    """A frozen encoder with its preprocessing, in eval mode and float32, on an accelerator where there is one."""

    part: str  # of a model of several modalities (CLIP, CLAP): the encoder of this one
    what: str  # that it reads, for a person
    takes: tuple[str, ...]  # names of the tensor that such an encoder reads

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModel

        self.folder, self._widths = folder, dict[int, int]()
        try:
            with _quiet():
                self.preprocess = self.load_preprocess()
                model = AutoModel.from_pretrained(
                    folder, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
                )
        except (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError) as error:
            why = " ".join(str(error).split())[:300]
            raise ValueError(f"model {str(folder)!r} cannot be loaded as an encoder of {self.what}: {why}") from error
        if hasattr(model, self.part):
            model = getattr(model, self.part)
        elif model.config.is_encoder_decoder:
            model = model.get_encoder()
        if model.main_input_name not in self.takes:
            raise ValueError(
                f"model {str(folder)!r} ({model.config.model_type}) reads {model.main_input_name}: it is no encoder of "
                f"{self.what}, which would read {' or '.join(self.takes)}"
            )
        self.device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        self.model: Any = model.eval().requires_grad_(False).to(self.device)

    @abstractmethod
    def load_preprocess(self) -> Any:
        """The model's own preprocessing, from its folder."""

    @property
    @abstractmethod
    def example(self) -> Any:
        """A small content."""

    def width(self, layer: int) -> int:
        """D of the embeddings."""
        if layer not in self._widths:
            self._widths[layer] = self.embed([self.example], 1, layer, 1)[0].shape[1]
        return self._widths[layer]

    @abstractmethod
    def inputs(self, content: Any) -> Iterator[_Input]:
        """A content, in as many parts as the encoder needs to read it whole."""

    def averaged(self, states_SD: "Tensor", tokens: int) -> "Tensor":
        """States of a whole content to N tokens (N, D)."""
        return averages(states_SD, tokens)

    def states(self, tensors: dict[str, "Tensor"], layer: int) -> "Tensor":
        """Hidden states (B, S, D), or (B, C, H, W) of a convolutional encoder."""
        return self._run(self.model, tensors, layer)

    @staticmethod
    def _run(model: Any, tensors: dict[str, "Tensor"], layer: int) -> "Tensor":
        if layer == -1:
            return model(**tensors).last_hidden_state
        hidden = model(**tensors, output_hidden_states=True).hidden_states
        if not -len(hidden) <= layer < len(hidden):
            raise ValueError(f"layer is {layer}, and the encoder has hidden states 0 to {len(hidden) - 1}")
        return hidden[layer]

    def embed(self, contents: Sequence[Any], tokens: int, layer: int, batch_size: int) -> list[np.ndarray]:
        """float16 (N, D) of each content.

        Args:
            tokens: N.
            layer: of the hidden states (0: before the first layer); -1 is the encoder's own end.
            batch_size: inputs that go through the encoder at once.
        """
        import torch

        inputs = [(number, part) for number, content in enumerate(contents) for part in self.inputs(content)]
        alike: dict[Any, list[int]] = {}  # shapes -> places in `inputs`
        for place, (_, part) in enumerate(inputs):
            shapes = tuple((name, tuple(tensor.shape)) for name, tensor in sorted(part.tensors.items()))
            alike.setdefault(shapes, []).append(place)
        states: dict[int, Tensor] = {}
        with torch.inference_mode():
            for places in alike.values():
                for start in range(0, len(places), batch_size):
                    batch = places[start : start + batch_size]
                    parts = [inputs[place][1] for place in batch]
                    tensors = {
                        name: torch.cat([part.tensors[name] for part in parts]).to(self.device)
                        for name in parts[0].tensors
                    }
                    states |= dict(zip(batch, self._real(self.states(tensors, layer), parts), strict=True))
            whole: list[list[Tensor]] = [[] for _ in contents]
            for place, (number, _) in enumerate(inputs):
                whole[number].append(states[place])
            most = torch.finfo(torch.float16).max
            embedded = [self.averaged(torch.cat(parts), tokens).clamp(-most, most) for parts in whole]
            return list(torch.stack(embedded).to("cpu", torch.float16).numpy()) if embedded else []

    @staticmethod
    def _real(states: "Tensor", parts: list[_Input]) -> Iterator["Tensor"]:
        """The states (S, D) of each part without those of padding."""
        if states.ndim == 4:
            states = states.flatten(2).transpose(1, 2)
        for states_SD, part in zip(states, parts, strict=True):
            yield states_SD[: max(1, math.ceil(len(states_SD) * part.real - 1e-6))]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without bars, and without a list of the weights that an encoder does not need."""
    from transformers.utils import logging

    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()


def load_encoder(modality: str, folder: Path) -> PretrainedEncoder:
    """The encoder of a modality; the same object each time.

    Raises:
        ValueError: the folder holds no such model.
    """
    with _loading:  # threads would each load it
        return _load(modality, folder, digest(folder))


@functools.lru_cache(maxsize=4)
def _load(modality: str, folder: Path, content: str) -> PretrainedEncoder:
    return _ENCODERS[modality](folder)


class TextEncoder(PretrainedEncoder):
    part, what, takes = "text_model", "texts", ("input_ids",)

    def load_preprocess(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)

    @property
    def example(self) -> str:
        return "a"

    def inputs(self, content: str) -> Iterator[_Input]:
        import torch

        from training.tokenizer import windows

        told = getattr(self.model.config, "max_position_embeddings", None) or _LONGEST_TEXT + 2
        most = min(self.preprocess.model_max_length, told - 2)  # some count positions from 2
        for ids in windows(self.preprocess, content, most):
            ids_BS = torch.tensor([ids or [self.preprocess.pad_token_id or 0]])  # of a text that cleaning left empty
            yield _Input({"input_ids": ids_BS, "attention_mask": torch.ones_like(ids_BS)}, 1.0)


class ImageEncoder(PretrainedEncoder):
    part, what, takes = "vision_model", "pictures", ("pixel_values",)

    def load_preprocess(self) -> Any:
        from transformers import AutoImageProcessor

        return AutoImageProcessor.from_pretrained(self.folder, trust_remote_code=False)

    @property
    def example(self) -> np.ndarray:
        return np.zeros((32, 32, 3), np.uint8)

    def inputs(self, content: np.ndarray) -> Iterator[_Input]:
        import PIL.Image

        made = self.preprocess(images=[PIL.Image.fromarray(content)], return_tensors="pt")
        yield _Input({"pixel_values": made["pixel_values"]}, 1.0)

    def averaged(self, states_SD: "Tensor", tokens: int) -> "Tensor":
        """The class token first, where there is one, then means over cells of a grid; alone, it stands for all."""
        import torch
        from torch.nn import functional

        side = math.isqrt(len(states_SD))
        first_KD, cells_SD = states_SD[: len(states_SD) - side**2], states_SD[len(states_SD) - side**2 :]
        if len(first_KD) and tokens == 1:
            return first_KD[:1]
        cells = tokens - 1 if len(first_KD) else tokens
        rows = max(n for n in range(1, math.isqrt(cells) + 1) if cells % n == 0)
        grid_DHW = cells_SD.T.unflatten(1, (side, side))
        means_ND = functional.adaptive_avg_pool2d(grid_DHW, (rows, cells // rows)).flatten(1).T
        return torch.cat([first_KD[: tokens - cells], means_ND])


class Recording(NamedTuple):
    waveform: np.ndarray  # float32 (samples,)
    rate: int  # Hz
    pad: bool = False  # with silence, to what the encoder reads at once


class SpeechEncoder(PretrainedEncoder):
    part, what, takes = "audio_model", "speech", ("input_features", "input_values")

    def load_preprocess(self) -> Any:
        from transformers import AutoFeatureExtractor

        extractor = AutoFeatureExtractor.from_pretrained(self.folder, trust_remote_code=False)
        if not getattr(extractor, "sampling_rate", None):
            raise ValueError(f"its preprocessing ({type(extractor).__name__}) knows no sampling rate")
        return extractor

    @property
    def example(self) -> Recording:
        return Recording(np.zeros(8000, np.float32), 16_000)

    def inputs(self, content: Recording) -> Iterator[_Input]:
        rate = self.preprocess.sampling_rate
        waveform = resample(content.waveform, content.rate, rate)
        window = round(self._seconds * rate)
        step = window if content.pad else round(_STEP_SECONDS * rate)
        for start in range(0, max(1, len(waveform)), window):
            part = waveform[start : start + window]
            padded = min(window, math.ceil(len(part) / step) * step)
            made, real = self._made(part, rate, padded)
            names = (*self.takes, "attention_mask", "is_longer")
            yield _Input({name: made[name] for name in names if name in made}, real)

    def _made(self, waveform: np.ndarray, rate: int, padded: int) -> tuple[Any, float]:
        if self._fixed:
            return self.preprocess(waveform, sampling_rate=rate, return_tensors="pt"), 1.0
        made = self.preprocess(
            waveform, sampling_rate=rate, padding="max_length", max_length=padded, return_tensors="pt"
        )
        return made, len(waveform) / padded

    @functools.cached_property
    def _fixed(self) -> bool:
        """Whether the preprocessing makes the same length of every recording, by repeating it or in its own way."""
        parameters = inspect.signature(self.preprocess.__call__).parameters
        return "padding" not in parameters or hasattr(self.preprocess, "nb_max_samples")

    @functools.cached_property
    def _seconds(self) -> float:
        """What it reads at once."""
        rate, extractor = self.preprocess.sampling_rate, self.preprocess
        if samples := getattr(extractor, "nb_max_samples", None) or getattr(extractor, "n_samples", None):
            return samples / rate
        return extractor.max_length / 100 if self._fixed and hasattr(extractor, "max_length") else _SECONDS

    def states(self, tensors: dict[str, "Tensor"], layer: int) -> "Tensor":
        positions = getattr(self.model.config, "max_source_positions", None)
        if positions is None or "input_features" not in tensors:
            return super().states(tensors, layer)
        wanted = tensors["input_features"].shape[-1] // 2  # Whisper: its second convolution halves them
        model = self.model if wanted == positions else _shortened(self.model, wanted)
        return self._run(model, {"input_features": tensors["input_features"]}, layer)


_ENCODERS: dict[str, type[PretrainedEncoder]] = {"text": TextEncoder, "image": ImageEncoder, "speech": SpeechEncoder}


def _shortened(encoder: Any, positions: int) -> Any:
    """Whisper's encoder for fewer positions than it was trained with: it shares the weights, and reads the first
    position embeddings only."""
    from torch import nn

    short = copy.copy(encoder)
    short._modules = dict(encoder._modules)
    short.config = copy.copy(encoder.config)
    short.config.max_source_positions = positions
    short.embed_positions = nn.Embedding.from_pretrained(encoder.embed_positions.weight[:positions])
    return short


def averages(states_SD: "Tensor", tokens: int) -> "Tensor":
    """Means of N equal stretches (N, D); a position on a border counts for both sides by its share."""
    import torch

    from training.layers import stretches

    lengths_B = torch.tensor([len(states_SD)], device=states_SD.device)
    return stretches(lengths_B, len(states_SD), tokens)[0].to(states_SD.dtype) @ states_SD
