"""Pretrained encoders of Hugging Face, and what they make of a content, with the model's own preprocessing
(`training.preprocessing`; their files: `training.model_files`).

What a content gives does not depend on what else is computed with it: only inputs of one shape share a batch, and a
recording is padded to a multiple of half a second, or to what the model must have.

Shapes: B inputs of one shape, S positions, C channels, H and W cells, D width of the encoder, N tokens.
"""

import copy
import functools
import math
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from training.device import chosen_device
from training.model_files import digest
from training.preprocessing import PREPROCESSING, SPEECH_INPUTS, loading

if TYPE_CHECKING:
    from torch import Tensor

_loading = threading.Lock()


class Tower:
    """How the networks of one modality are run, and what is made of what they say."""

    part: ClassVar[str]  # of a model of several modalities (CLIP, CLAP): the encoder of this one
    takes: ClassVar[tuple[str, ...]]  # names of the tensor that such an encoder reads

    def of(self, model: Any) -> Any:
        """The encoder in a model. Raises ValueError where it reads something else."""
        if hasattr(model, self.part):
            model = getattr(model, self.part)
        elif model.config.is_encoder_decoder:
            model = model.get_encoder()
        if model.main_input_name not in self.takes:
            raise ValueError(
                f"({model.config.model_type}) reads {model.main_input_name}, where {' or '.join(self.takes)} is wanted"
            )
        return model

    def states(self, network: Any, tensors: Mapping[str, "Tensor"], layer: int = -1) -> "Tensor":
        """Hidden states (B, S, D), or (B, C, H, W) of a convolutional encoder."""
        return self._run(network, tensors, layer)

    @staticmethod
    def _run(network: Any, tensors: Mapping[str, "Tensor"], layer: int) -> "Tensor":
        if layer == -1:
            return network(**tensors).last_hidden_state
        hidden = network(**tensors, output_hidden_states=True).hidden_states
        if not -len(hidden) <= layer < len(hidden):
            raise ValueError(f"layer is {layer}, and the encoder has hidden states 0 to {len(hidden) - 1}")
        return hidden[layer]

    def averaged(self, states_SD: "Tensor", tokens: int) -> "Tensor":
        """States of a whole content to N tokens (N, D)."""
        return averages(states_SD, tokens)


class TextTower(Tower):
    part, takes = "text_model", ("input_ids",)


class ImageTower(Tower):
    part, takes = "vision_model", ("pixel_values",)

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


class SpeechTower(Tower):
    part, takes = "audio_model", SPEECH_INPUTS

    def states(self, network: Any, tensors: Mapping[str, "Tensor"], layer: int = -1) -> "Tensor":
        positions = getattr(network.config, "max_source_positions", None)
        if positions is None or "input_features" not in tensors:
            return super().states(network, tensors, layer)
        wanted = tensors["input_features"].shape[-1] // 2  # Whisper: its second convolution halves them
        network = network if wanted == positions else _shortened(network, wanted)
        return self._run(network, {"input_features": tensors["input_features"]}, layer)


TOWERS: dict[str, Tower] = {"text": TextTower(), "image": ImageTower(), "speech": SpeechTower()}


def new_network(modality: str, config: Mapping[str, Any]) -> Any:
    """The encoder that the plain values of a configuration describe, with random weights, in float32."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModel

    import training.torch_models  # noqa: F401 - which makes its kinds known

    made = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
    return TOWERS[modality].of(AutoModel.from_config(made, trust_remote_code=False, dtype=torch.float32))


class PretrainedEncoder:
    """A frozen encoder with its preprocessing, in eval mode and float32, on an accelerator where there is one."""

    def __init__(self, modality: str, folder: Path) -> None:
        """Raises ValueError where the folder holds no such model."""
        import torch
        from transformers import AutoModel

        import training.torch_models  # noqa: F401 - which makes its kinds known

        self.folder, self._widths = folder, dict[int, int]()
        self.preprocessing, self.tower = PREPROCESSING[modality](folder), TOWERS[modality]
        with loading(folder, self.preprocessing.what):
            model = AutoModel.from_pretrained(
                folder, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
            )
            self.config = model.config  # of the whole, from which `new_network` makes the encoder
            network = self.tower.of(model)
        self.device = chosen_device()
        self.network: Any = network.eval().requires_grad_(False).to(self.device)

    def width(self, layer: int = -1) -> int:
        """D of the embeddings. Raises ValueError where the network does not read what its preprocessing makes."""
        if -1 not in self._widths:
            try:
                self._widths[-1] = self._width(-1)
            except (IndexError, RuntimeError, TypeError, ValueError) as error:
                why = " ".join(str(error).split())[:300]
                raise ValueError(
                    f"model {str(self.folder)!r} does not read what its own preprocessing makes of "
                    f"{self.preprocessing.what}: {why}"
                ) from error
        if layer not in self._widths:
            self._widths[layer] = self._width(layer)
        return self._widths[layer]

    def _width(self, layer: int) -> int:
        return self.embed([self.preprocessing.example], 1, layer, 1)[0].shape[1]

    def embed(self, contents: Sequence[Any], tokens: int, layer: int, batch_size: int) -> list[np.ndarray]:
        """float16 (N, D) of each content.

        Args:
            tokens: N.
            layer: of the hidden states (0: before the first layer); -1 is the encoder's own end.
            batch_size: inputs that go through the encoder at once.
        """
        import torch

        inputs = [(n, part) for n, content in enumerate(contents) for part in self.preprocessing.inputs(content)]
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
                    said = real_states(self.tower.states(self.network, tensors, layer), [part.real for part in parts])
                    states |= dict(zip(batch, said, strict=True))
            whole: list[list[Tensor]] = [[] for _ in contents]
            for place, (number, _) in enumerate(inputs):
                whole[number].append(states[place])
            most = torch.finfo(torch.float16).max
            embedded = [self.tower.averaged(torch.cat(parts), tokens).clamp(-most, most) for parts in whole]
            return list(torch.stack(embedded).to("cpu", torch.float16).numpy()) if embedded else []


def real_states(states: "Tensor", real: Iterable[float]) -> Iterator["Tensor"]:
    """The states (S, D) of each input without those of padding.

    Args:
        states: (B, S, D) or (B, D, H, W).
        real: share of each input that is none, from the start.
    """
    if states.ndim == 4:
        states = states.flatten(2).transpose(1, 2)
    for states_SD, share in zip(states, real, strict=True):
        yield states_SD[: max(1, math.ceil(len(states_SD) * share - 1e-6))]


def load_encoder(modality: str, folder: Path) -> PretrainedEncoder:
    """The encoder of a modality; the same object each time.

    Raises:
        ValueError: the folder holds no such model.
    """
    with _loading:  # threads would each load it
        return _load(modality, folder, digest(folder))


@functools.lru_cache(maxsize=4)
def _load(modality: str, folder: Path, content: str) -> PretrainedEncoder:
    return PretrainedEncoder(modality, folder)


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
