"""Models of torchvision and bundles of torchaudio with weights from a local file, in the form of Hugging Face, so that
all that reads pretrained encoders reads them: `write_folder` writes configuration, preprocessing and weights.

    {kind: embedding, model: torchvision/resnet18, weights: resnet18.pth}     # a state dict: .pth, .pt or .safetensors
    {kind: embedding, model: torchaudio/WAV2VEC2_BASE, weights: wav2vec2.pth}

The preprocessing is that of the bundle (rate, normalisation) or of the weights (`weights.transforms()`, but that the
middle of a picture with odd sides may lie a pixel beside), the default ones unless the model is named with others:
torchvision/resnet50/IMAGENET1K_V1. What lies behind the last feature map or
layer (pooling, classifier) is left out. Nothing is downloaded.

Shapes: B inputs, C channels, H and W cells, S positions, D width.
"""

import difflib
import os
import pickle
import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPImageProcessorPil,
    PreTrainedConfig,
    PreTrainedModel,
    Wav2Vec2FeatureExtractor,
)
from transformers.image_utils import PILImageResampling
from transformers.modeling_outputs import BaseModelOutput

from training.preprocessing import quietly

_HEADS = ("avgpool", "classifier", "fc", "head", "heads")  # where what follows the feature map begins
_OF_TRAINING = ("aux", "mask_generator", "logit_generator")  # what bundles were trained with, or tuned for
_UNLIKE = ("googlenet", "inception", "maxvit")  # whose parts do not simply follow each other
_PREFIXES = ("module.", "model.", "wav2vec2.")  # that wrappers leave in names
_RENAMED = {  # since files of bundles were written
    ".weight_g": ".parametrizations.weight.original0",
    ".weight_v": ".parametrizations.weight.original1",
}


class TorchvisionConfig(PreTrainedConfig):
    model_type = "torchvision"
    name: str = ""  # of torchvision's registry
    image_size: int = 224  # that a vision transformer has positions for


class TorchaudioConfig(PreTrainedConfig):
    model_type = "torchaudio"
    name: str = ""  # of a bundle in torchaudio.pipelines


class _Wrapped(PreTrainedModel):
    network: nn.Module

    def _init_weights(self, module: nn.Module) -> None:
        """The networks do so themselves."""

    def states(self, values: Tensor) -> Iterator[Tensor]:
        """After each part of the network; the last are what it says."""
        raise NotImplementedError

    def _output(self, values: Tensor, output_hidden_states: bool) -> BaseModelOutput:
        states = list(self.states(values))
        return BaseModelOutput(states[-1], tuple(states) if output_hidden_states else None)


class TorchvisionModel(_Wrapped):
    """Feature maps (B, D, H, W) of a convolutional network or Swin; of a vision transformer (B, S, D), the class token
    first."""

    config_class = TorchvisionConfig
    main_input_name = "pixel_values"

    def __init__(self, config: TorchvisionConfig) -> None:
        super().__init__(config)
        self.network = _vision_network(config)
        self.post_init()

    def states(self, values: Tensor) -> Iterator[Tensor]:
        network: Any = self.network
        if hasattr(network, "conv_proj"):  # a vision transformer
            x_BSD = network._process_input(values)
            x_BSD = torch.cat([network.class_token.expand(len(x_BSD), -1, -1), x_BSD], dim=1)
            x_BSD = network.encoder.dropout(x_BSD + network.encoder.pos_embedding)
            for layer in network.encoder.layers:
                yield x_BSD
                x_BSD = layer(x_BSD)
            yield network.encoder.ln(x_BSD)
            return
        is_last = hasattr(network, "permute")  # Swin: channels come last until its end
        x = values
        for name, part in network.named_children():
            for step in part if name == "features" else [part]:
                x = step(x)
                if not is_last or name == "permute":
                    yield x
                elif name == "features":
                    yield x.permute(0, 3, 1, 2)

    def forward(self, pixel_values: Tensor, output_hidden_states: bool = False, **_: Any) -> BaseModelOutput:
        return self._output(pixel_values, output_hidden_states)


class TorchaudioModel(_Wrapped):
    """Hidden states (B, S, D) of a Wav2Vec 2.0, HuBERT or WavLM."""

    config_class = TorchaudioConfig
    main_input_name = "input_values"

    def __init__(self, config: TorchaudioConfig) -> None:
        super().__init__(config)
        self.network = _audio_network(config.name)
        self.post_init()

    def states(self, values: Tensor) -> Iterator[Tensor]:
        network: Any = self.network
        features_BSD, _ = network.feature_extractor(values, None)
        transformer = network.encoder.transformer
        x_BSD = transformer._preprocess(network.encoder.feature_projection(features_BSD))
        bias: Tensor | None = None
        for layer in transformer.layers:
            yield x_BSD
            x_BSD, bias = layer(x_BSD, None, position_bias=bias)
        yield x_BSD if transformer.layer_norm_first else transformer.layer_norm(x_BSD)

    def forward(self, input_values: Tensor, output_hidden_states: bool = False, **_: Any) -> BaseModelOutput:
        return self._output(input_values, output_hidden_states)


for _config, _model in ((TorchvisionConfig, TorchvisionModel), (TorchaudioConfig, TorchaudioModel)):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)


def write_folder(model: str, file: Path, folder: Path) -> None:
    """Puts a model with the weights of a file in place, as Hugging Face has them; whole or not at all.

    Args:
        model: torchvision/NAME, torchvision/NAME/WEIGHTS or torchaudio/BUNDLE.

    Raises:
        ValueError: there is no such model, or the file cannot be read or holds other weights.
    """
    kind, _, name = model.partition("/")
    preprocessing: Any = picture_processor(name) if kind == "torchvision" else speech_processor(name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary, quietly():
        made, network = Path(temporary) / "model", name.partition("/")[0]
        if kind == "torchvision":
            wrapped: _Wrapped = TorchvisionModel(
                TorchvisionConfig(name=network, image_size=preprocessing.crop_size["height"])
            )
        else:
            wrapped = TorchaudioModel(TorchaudioConfig(name=network))
        _load(wrapped.network, file, model)
        wrapped.save_pretrained(made)
        preprocessing.save_pretrained(made)
        try:
            os.rename(made, folder)
        except OSError:
            if not folder.is_dir():  # else another process was first
                raise


def picture_processor(name: str) -> CLIPImageProcessorPil:
    """As `weights.transforms()`: resized to a short side, the middle cut out, normalised."""
    import torchvision

    network, _, entry = name.partition("/")
    names = [n for n in torchvision.models.list_models(module=torchvision.models) if not n.startswith(_UNLIKE)]
    _check_known(f"torchvision/{network}", network, names)
    entries = torchvision.models.get_model_weights(network).__members__
    _check_known(f"torchvision/{name}", entry or "DEFAULT", list(entries))
    preset = entries[entry or "DEFAULT"].transforms()
    return CLIPImageProcessorPil(
        size={"shortest_edge": preset.resize_size[0]},
        crop_size={"height": preset.crop_size[0], "width": preset.crop_size[0]},
        resample=getattr(PILImageResampling, preset.interpolation.name),
        image_mean=list(preset.mean),
        image_std=list(preset.std),
    )


def speech_processor(name: str) -> Wav2Vec2FeatureExtractor:
    bundle = _bundle(name)
    return Wav2Vec2FeatureExtractor(
        sampling_rate=int(bundle.sample_rate), do_normalize=bundle._normalize_waveform, return_attention_mask=False
    )


def _bundle(name: str) -> Any:
    from torchaudio import pipelines

    bundles = {n: bundle for n, bundle in vars(pipelines).items() if isinstance(bundle, pipelines.Wav2Vec2Bundle)}
    _check_known(f"torchaudio/{name}", name, list(bundles))
    return bundles[name]


def _check_known(model: str, name: str, names: list[str]) -> None:
    if name not in names:
        close = difflib.get_close_matches(name, names, 1)
        meant = f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"
        raise ValueError(f"model is {model!r}: there is no {name!r} that can be read here; {meant}")


def _vision_network(config: TorchvisionConfig) -> nn.Module:
    """Without its head, under the names of torchvision's own."""
    import torchvision
    from torchvision.ops import StochasticDepth

    sized = {"image_size": config.image_size} if config.name.startswith("vit_") else {}
    network = torchvision.models.get_model(config.name, weights=None, **sized)
    if hasattr(network, "conv_proj"):
        network.heads = nn.Identity()
    else:
        parts = dict(takewhile(lambda part: part[0] not in _HEADS, network.named_children()))
        if isinstance(network, torchvision.models.DenseNet):
            parts["relu"] = nn.ReLU()  # which its `forward` has
        network = nn.Sequential(OrderedDict(parts))
    for module in network.modules():
        if isinstance(module, StochasticDepth):
            module.p = 0.0  # what is left out at random would have no gradient
    return network


def _audio_network(name: str) -> nn.Module:
    from torchaudio import models

    bundle = _bundle(name)  # which gives its model with a download only
    make = models.wavlm_model if bundle._model_type == "WavLM" else models.wav2vec2_model
    return make(**bundle._params | {"encoder_layer_drop": 0.0, "aux_num_out": None})


def _load(network: nn.Module, file: Path, model: str) -> None:
    """Raises ValueError where the file does not hold the network's weights, beside those of a head."""
    own, given = network.state_dict(), dict[str, Tensor]()
    for name, tensor in _read(file).items():
        for prefix in _PREFIXES:
            name = name.removeprefix(prefix)
        for old, new in _RENAMED.items():
            name = name.replace(old, new) if name.replace(old, new) in own else name
        if name.partition(".")[0] not in (*_HEADS, *_OF_TRAINING):
            given[name] = tensor
    counts = {name for name in own if name.endswith("num_batches_tracked")}  # old files have none
    lacking = sorted(own.keys() - given.keys() - counts)
    wrong = sorted(name for name in own.keys() & given.keys() if own[name].shape != given[name].shape)
    if found := lacking[:3] or sorted(given.keys() - own.keys())[:3] or wrong[:3]:
        how = "lacks" if lacking else "has in another shape" if found == wrong[:3] else "has beside them"
        raise ValueError(f"weights is {str(file)!r}, and holds no weights of {model}: it {how} {', '.join(found)}")
    network.load_state_dict(given, strict=False)


def _read(file: Path) -> Mapping[str, Tensor]:
    """A state dict, by itself or as what a training loop keeps it in."""
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        why = " ".join(str(error).split())[:200]
        raise ValueError(f"weights is {str(file)!r}, which cannot be read as a state dict: {why}") from error
    for name in ("state_dict", "model"):
        content = content.get(name, content) if isinstance(content, Mapping) else content
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"weights is {str(file)!r}, which holds no state dict: save `model.state_dict()`")
    return content
