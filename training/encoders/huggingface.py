"""Pretrained encoders of Hugging Face inside the model: frozen, adapted by LoRA, or trained whole.

They read features of the kind `processed` (`training.preprocessing`), and make of them what `embedding` features of the
same model would be: means of the hidden states; a linear layer reads these, as it reads embeddings.

Shapes: B rows, C channels, H and W pixels, F rows over time, M numbers of a row, S tokens or states, R parts that go
through the network at once, N tokens of a content, D width of the network, T tokens of the model.
"""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from training.adaptation import adapt
from training.encoders.base import Encoder, Start, all_real
from training.encoders.linear import LinearEncoder
from training.encoders.options import Huggingface
from training.featurizers.base import FeatureShape
from training.layers import ModelShape
from training.model_files import digest, model_files, model_folder
from training.preprocessing import Batch
from training.pretrained import TOWERS, PretrainedEncoder, Said, averaged, new_network

# Of a configuration, in training: a layer that is left out at random would have no gradient, and what is hidden of an
# input is said by `training.augmentation`.
_STEADY = {"layerdrop": 0.0, "encoder_layerdrop": 0.0, "apply_spec_augment": False}
_AT_ONCE = 32  # inputs


class HuggingfaceEncoder(Encoder):
    """The network, then a linear layer over N means of its states."""

    modality: ClassVar[str]

    def __init__(self, source: FeatureShape, shape: ModelShape, options: Huggingface, facts: Mapping[str, Any]) -> None:
        super().__init__(source, shape)
        self.options, self.facts, self.window = options, facts, source.size
        self.network = new_network(self.modality, facts["config"])
        self.linear = LinearEncoder(FeatureShape("vectors", facts["width"]), shape)

    def forward(self, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.linear(*all_real(self.vectors(values, mask)))

    def vectors(self, values: Tensor, mask: Tensor | None) -> Tensor:
        """What `embedding` features would be (B, N, D)."""
        return averaged(TOWERS[self.modality], self.said(values, mask), self.options.tokens)

    def said(self, values: Tensor, mask: Tensor | None) -> Iterator[Said]:
        """What the network says of the rows, each a content."""
        raise NotImplementedError

    def run(self, batch: Batch) -> Iterator[Said]:
        # A network in training may look at its whole batch (batch norm); else memory bounds how many go through.
        size = len(batch.parts) if self.network.training else _AT_ONCE
        for start in range(0, len(batch.parts), size):
            chosen = slice(start, start + size)
            some = Batch(batch.parts[chosen], {n: t[chosen] for n, t in batch.tensors.items()}, batch.real[chosen])
            yield Said.of(some, TOWERS[self.modality].states(self.network, some.tensors))

    @classmethod
    def start(cls, options: Huggingface) -> Start:
        folder = model_folder(options.model, options.weights)
        model_files(folder)  # says in plain words what is not there
        return _start(cls.modality, folder, digest(folder))

    def take(self, start: Start, name: str, values: Tensor, mask: Tensor | None) -> None:
        # What is not trained is not copied: all models that are made in this process share it.
        self.network.load_state_dict(start.weights, assign=self.options.train != "full")
        adapt(self.network, self.options, name)
        self._hold_unread(values, mask)

    def _hold_unread(self, values: Tensor, mask: Tensor | None) -> None:
        """Parameters that no state depends on (a pooler, a mask token) are not trained: they would get no gradient."""
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        if not trained:
            return
        self.network.eval()  # an example of one moves no statistics, and draws nothing
        total = self.vectors(values, mask).square().sum()
        self.network.train(self.training)
        for parameter, gradient in zip(trained, torch.autograd.grad(total, trained, allow_unused=True), strict=True):
            parameter.requires_grad_(gradient is not None)


@functools.lru_cache(maxsize=4)
def _start(modality: str, folder: Path, content: str) -> Start:
    """What encoders in the model start from, once for each content of the files; a model and its baselines read them
    one after another."""
    encoder = PretrainedEncoder(modality, folder)
    config = encoder.config.to_dict()
    config |= {name: value for name, value in _STEADY.items() if name in config}
    facts = {"config": config, "width": encoder.width(), **encoder.preprocessing.facts()}
    return Start(facts, {name: weight.cpu() for name, weight in encoder.network.state_dict().items()})


class HuggingfaceGridEncoder(HuggingfaceEncoder):
    """Pictures (B, C, H, W) from 0, which is black, to 1."""

    modality = "image"

    def said(self, values: Tensor, mask: Tensor | None = None) -> Iterator[Said]:
        low_C, high_C = (values.new_tensor(self.facts[name])[:, None, None] for name in ("low", "high"))
        pixels = {"pixel_values": low_C + values * (high_C - low_C)}
        return self.run(Batch([(row, 0) for row in range(len(values))], pixels, [1.0] * len(values)))


class HuggingfaceFramesEncoder(HuggingfaceEncoder):
    """What is read over time (B, F, M + 1), in parts of `window` rows; the last number of a row counts what of it is no
    padding. Only parts of one length go through the network together: many networks read padding, whatever hides it."""

    modality = "speech"

    def said(self, values: Tensor, mask: Tensor | None) -> Iterator[Said]:
        assert mask is not None
        parts_RFM, mask_RF, parts = _parts(values, mask, self.window)
        lengths = mask_RF.sum(1).tolist()
        for length in sorted(set(lengths)):
            places = [place for place, of in enumerate(lengths) if of == length]
            tensors, real = self._inputs(parts_RFM[places, :length])
            yield from self.run(Batch([parts[place] for place in places], tensors, real))

    def _inputs(self, parts_RFM: Tensor) -> tuple[dict[str, Tensor], list[float]]:
        """The tensors that the network takes, and the share of each part that is no padding."""
        shape, real_R = self.facts["shape"], parts_RFM[..., -1].sum(1).round()
        axis = shape.index(-1)
        others = [size for size in shape if size != -1]
        read = parts_RFM[..., :-1].flatten(1).unflatten(1, (-1, *others)).movedim(1, axis + 1)
        count = read.shape[axis + 1]
        tensors = {self.facts["input"]: read}
        if self.facts["masked"]:
            tensors["attention_mask"] = (torch.arange(count, device=read.device) < real_R[:, None]).long()
        if self.facts["is_longer"] is not None:
            tensors["is_longer"] = torch.full((len(read), 1), self.facts["is_longer"], device=read.device)
        return tensors, (real_R.double() / count).tolist()  # its rounding is within what `Said` allows


class HuggingfaceIdsEncoder(HuggingfaceEncoder):
    """Token ids (B, S) of the network's own tokenizer, in parts of `window` tokens."""

    modality = "text"

    def __init__(self, source: FeatureShape, shape: ModelShape, options: Huggingface, facts: Mapping[str, Any]) -> None:
        super().__init__(source, shape, options, facts)
        embedded = self.network.get_input_embeddings().num_embeddings
        if source.width > embedded:
            raise ValueError(
                f"model {options.model!r} has {embedded} embeddings, and its tokenizer {source.width} tokens: the two "
                "are not of one model"
            )

    def said(self, values: Tensor, mask: Tensor | None) -> Iterator[Said]:
        assert mask is not None
        ids_RS, mask_RS, parts = _parts(values.masked_fill(~mask, self.facts["pad"]), mask, self.window)
        lengths = mask_RS.sum(1).tolist()
        longest = max(lengths)
        tensors = {"input_ids": ids_RS[:, :longest], "attention_mask": mask_RS[:, :longest].long()}
        return self.run(Batch(parts, tensors, [length / longest for length in lengths]))


def _parts(values: Tensor, mask_BF: Tensor, size: int) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
    """Values and mask of what goes through the network at once (R, F, ...); row and number in it of each part."""
    if mask_BF.shape[1] <= size:
        return values, mask_BF, [(row, 0) for row in range(len(values))]
    more = -mask_BF.shape[1] % size
    values = functional.pad(values, (0, 0) * (values.ndim - 2) + (0, more)).unflatten(1, (-1, size))
    mask = functional.pad(mask_BF, (0, more)).unflatten(1, (-1, size))
    there = mask.any(2)
    return values[there], mask[there], [(row, part) for row, part in there.nonzero().tolist()]
