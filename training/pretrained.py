"""Pretrained encoders of Hugging Face, and what they make of a content, with the model's own preprocessing
(`training.preprocessing`; their files: `training.model_files`).

What a content gives does not depend on what else is computed with it: only inputs of one shape share a batch, and a
recording is padded to a multiple of half a second, or to what the model must have.

Shapes: C contents, B inputs of one shape, S positions, H and W cells, D width of the encoder, N tokens.
"""

import copy
import functools
import math
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from training.device import chosen_device
from training.model_files import digest
from training.preprocessing import PREPROCESSING, SPEECH_INPUTS, Batch, loading

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
        """Hidden states (B, S, D), or (B, D, H, W) of a convolutional encoder."""
        return self._run(network, tensors, layer)

    @staticmethod
    def _run(network: Any, tensors: Mapping[str, "Tensor"], layer: int) -> "Tensor":
        if layer == -1:
            return network(**tensors).last_hidden_state
        hidden = network(**tensors, output_hidden_states=True).hidden_states
        if not -len(hidden) <= layer < len(hidden):
            raise ValueError(f"layer is {layer}, and the encoder has hidden states 0 to {len(hidden) - 1}")
        return hidden[layer]

    def averaged(self, states_BSD: "Tensor", lengths: Sequence[int], tokens: int) -> "Tensor":
        """States of whole contents, of which the first `lengths` are not of padding, to N tokens (B, N, D)."""
        return averages(states_BSD, lengths, tokens)


class TextTower(Tower):
    part, takes = "text_model", ("input_ids",)


class ImageTower(Tower):
    part, takes = "vision_model", ("pixel_values",)

    def averaged(self, states_BSD: "Tensor", lengths: Sequence[int], tokens: int) -> "Tensor":
        """The class token first, where there is one, then means over cells of a grid; alone, it stands for all."""
        import torch
        from torch.nn import functional

        side = math.isqrt(states_BSD.shape[1])
        first = states_BSD.shape[1] - side**2
        if first and tokens == 1:
            return states_BSD[:, :1]
        cells = tokens - 1 if first else tokens
        rows = max(n for n in range(1, math.isqrt(cells) + 1) if cells % n == 0)
        grid_BDHW = states_BSD[:, first:].transpose(1, 2).unflatten(2, (side, side))
        means_BND = functional.adaptive_avg_pool2d(grid_BDHW, (rows, cells // rows)).flatten(2).transpose(1, 2)
        return torch.cat([states_BSD[:, : tokens - cells], means_BND], dim=1)


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

        if not contents:
            return []
        batches = self.preprocessing.batches(contents, batch_size, self.device)
        with torch.inference_mode():
            said = (Said.of(b, self.tower.states(self.network, b.tensors, layer)) for b in batches)
            most = torch.finfo(torch.float16).max
            embedded_CND = averaged(self.tower, said, tokens).clamp(-most, most)
            return list(embedded_CND.to("cpu", torch.float16).numpy())


class Said(NamedTuple):
    """What an encoder says of inputs: parts of contents that went through it together."""

    parts: Sequence[tuple[int, int]]  # content, and number of the part in it, of each input
    states_BSD: "Tensor"
    lengths: list[int]  # states that are not of padding, from the start

    @classmethod
    def of(cls, batch: Batch, states: "Tensor") -> "Said":
        """Of states (B, S, D) or (B, D, H, W)."""
        states_BSD = states.flatten(2).transpose(1, 2) if states.ndim == 4 else states
        count = states_BSD.shape[1]
        return cls(batch.parts, states_BSD, [max(1, math.ceil(count * share - 1e-6)) for share in batch.real])


def averaged(tower: Tower, said: Iterable[Said], tokens: int) -> "Tensor":
    """N tokens of each content (C, N, D), from what an encoder says of all its parts, in any order.

    Contents of one part, which most are, are averaged together: on a GPU each by itself would take longer than the
    encoder.
    """
    import torch

    said = list(said)
    counts = Counter(content for some in said for content, _ in some.parts)
    contents: list[int] = []
    means: list[Tensor] = []
    longer: dict[int, dict[int, Tensor]] = {}
    for parts, states_BSD, lengths in said:
        whole = [n for n, (content, _) in enumerate(parts) if counts[content] == 1]
        if whole:
            contents += [parts[n][0] for n in whole]
            chosen_BSD = states_BSD if len(whole) == len(parts) else states_BSD[whole]
            means.append(tower.averaged(chosen_BSD, [lengths[n] for n in whole], tokens))
        for n, (content, part) in enumerate(parts):
            if counts[content] > 1:
                longer.setdefault(content, {})[part] = states_BSD[n, : lengths[n]]
    for content, states in longer.items():
        joined_SD = torch.cat([states[part] for part in sorted(states)])
        contents.append(content)
        means.append(tower.averaged(joined_SD[None], [len(joined_SD)], tokens))
    return torch.cat(means)[np.argsort(contents)]


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


def averages(states_BSD: "Tensor", lengths: Sequence[int], tokens: int) -> "Tensor":
    """Means of N equal stretches (B, N, D) of the first `lengths` states; a position on a border counts for both sides
    by its share."""
    import torch

    from training.layers import stretches

    lengths_B = torch.tensor(lengths, device=states_BSD.device)
    return stretches(lengths_B, states_BSD.shape[1], tokens).to(states_BSD.dtype) @ states_BSD
