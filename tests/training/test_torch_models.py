"""Models of torchvision and torchaudio with weights from a file: they say what the originals say."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import torchaudio
import torchvision
from safetensors.torch import save_file

from training.catalog import ENCODERS
from training.features import FeatureSettings
from training.model_files import digest, model_folder
from training.preprocessing import Picture, Recording
from training.pretrained import PretrainedEncoder
from training.processor import Processor
from training.settings import MediaLimits, ModelSettings, TrainingSettings
from training.spec import plan_runs

PIXELS = np.kron(np.random.default_rng(0).integers(0, 256, (5, 5, 3), np.uint8), np.ones((60, 60, 1), np.uint8))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))


def _of_head(network: torch.nn.Module, values: torch.Tensor) -> torch.Tensor:
    """What the classifier of a network is given."""
    given: list[torch.Tensor] = []
    parts = dict(network.named_children())
    head = next(parts[name] for name in ("fc", "classifier", "heads", "head") if name in parts)
    head.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].flatten(1)))
    network(values)
    return given[0]


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "efficientnet_b0",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("vit_b_16", "convnext_tiny", "swin_t")),
    ],
)
@torch.inference_mode()
def test_torchvision_says_what_it_says_by_itself(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = torchvision.models.get_model(name).eval()
    torch.save(original.state_dict(), tmp_path / "weights.pth")
    encoder = PretrainedEncoder("image", model_folder(f"torchvision/{name}", str(tmp_path / "weights.pth")))
    values = torchvision.models.get_model_weights(name).DEFAULT.transforms()(PIL.Image.fromarray(PIXELS))[None]
    (part,) = encoder.preprocessing.inputs(Picture(PIXELS))
    one_level = 1 / 255 / 0.224  # of a few pixels, by the rounding of bicubic interpolation
    torch.testing.assert_close(part.tensors["pixel_values"], values, rtol=0, atol=1.01 * one_level)
    states = encoder.tower.states(encoder.network, {"pixel_values": values})
    pooled = states[:, 0] if states.ndim == 3 else states.mean((2, 3))
    torch.testing.assert_close(pooled, _of_head(original, values))


@pytest.mark.slow
@torch.inference_mode()
def test_torchaudio_says_what_it_says_by_itself(tmp_path: Path) -> None:
    bundle = torchaudio.pipelines.WAV2VEC2_BASE
    torch.manual_seed(0)
    original = torchaudio.models.wav2vec2_model(**bundle._params).eval()
    torch.save(original.state_dict(), tmp_path / "weights.pth")
    encoder = PretrainedEncoder("speech", model_folder("torchaudio/WAV2VEC2_BASE", str(tmp_path / "weights.pth")))
    samples = np.random.default_rng(0).standard_normal(bundle.sample_rate).astype(np.float32)
    (part,) = encoder.preprocessing.inputs(Recording(samples, bundle.sample_rate))
    torch.testing.assert_close(part.tensors["input_values"], torch.from_numpy(samples)[None])
    states = encoder.tower.states(encoder.network, part.tensors)
    torch.testing.assert_close(states, original(part.tensors["input_values"])[0])
    (first,) = original.extract_features(part.tensors["input_values"], num_layers=1)[0]
    torch.testing.assert_close(encoder.tower.states(encoder.network, part.tensors, 1), first)


def test_weights_are_known_by_their_content_whatever_holds_them(tmp_path: Path) -> None:
    state = torchvision.models.squeezenet1_1().state_dict()
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "loop.pt")
    torch.save({name: tensor for name, tensor in state.items() if "classifier" not in name}, tmp_path / "headless.pth")
    save_file(state, tmp_path / "whole.safetensors")
    torch.save({name: tensor + 1 for name, tensor in state.items()}, tmp_path / "other.pth")

    def marks(file: str) -> tuple[str, ...]:
        said: dict[str, Any] = {"model": "torchvision/squeezenet1_1", "weights": str(tmp_path / file)}
        features = FeatureSettings(image={"kind": "embedding", **said})
        choice = ENCODERS.choose({"kind": "huggingface", **said}, "grid")
        read = FeatureSettings().with_encoders({"image": choice})
        assert read.plain() == {"image": {"kind": "processed", **said}}
        model = ModelSettings(encoders={"image": choice})
        runs = plan_runs(model, TrainingSettings(), read, ["image"], "d")
        steps = [Processor(f, MediaLimits()).fingerprint("image") for f in (features, read)]
        return digest(model_folder(*said.values())), steps[0], runs[0].fingerprint

    first = marks("loop.pt")
    assert first == marks("headless.pth") == marks("whole.safetensors")
    assert not set(first).intersection(marks("other.pth"))
    made = list((tmp_path / "cache" / "triptych").iterdir())
    assert len(made) == 4 and all((folder / "model.safetensors").is_file() for folder in made), "and nothing is left"


@pytest.mark.parametrize(
    ("model", "weights", "words"),
    [
        ("torchvision/resnet19", "squeeze.pth", "there is no 'resnet19' that can be read here; did you mean resnet1"),
        ("torchvision/inception_v3", "squeeze.pth", "there is no 'inception_v3' that can be read here"),
        ("torchvision/resnet18/IMAGENET", "squeeze.pth", "there is no 'IMAGENET' .*; did you mean IMAGENET1K_V1"),
        ("torchaudio/WAV2VEC_BASE", "squeeze.pth", "did you mean WAV2VEC2_BASE"),
        ("torchvision/resnet18", "squeeze.pth", r"holds no weights of torchvision/resnet18: it lacks bn1.bias, bn1"),
        ("torchvision/squeezenet1_1", "wide.pth", "it has in another shape features.0.weight"),
        ("torchvision/squeezenet1_1", "more.pth", "it has beside them features.99.weight"),
        ("torchvision/squeezenet1_1", "text.pth", "which cannot be read as a state dict"),
        ("torchvision/squeezenet1_1", "text.safetensors", "which cannot be read as a state dict"),
        ("torchvision/squeezenet1_1", "number.pth", "holds no state dict: save `model.state_dict"),
        ("torchvision/squeezenet1_1", "nowhere.pth", "there is no such file"),
        ("torchvision/squeezenet1_1", "", "which needs weights: FILE"),
        ("google/vit", "squeeze.pth", "expected torchvision/NAME or torchaudio/NAME, since weights is"),
    ],
)
def test_what_is_no_such_model_is_told(model: str, weights: str, words: str, tmp_path: Path) -> None:
    state = torchvision.models.squeezenet1_1().state_dict() if weights.endswith(("e.pth", "x.pth")) else {}
    for name, content in (
        ("squeeze.pth", state),
        ("wide.pth", state | {"features.0.weight": torch.zeros(1)}),
        ("more.pth", state | {"features.99.weight": torch.zeros(1)}),
        ("number.pth", 3),
    ):
        torch.save(content, tmp_path / name)
    for name in ("text.pth", "text.safetensors"):
        (tmp_path / name).write_text("no weights")
    options = {"model": model, "weights": str(tmp_path / weights) if weights else ""}
    with pytest.raises(ValueError, match=rf"features\.image: .*{words}"):
        Processor(FeatureSettings(image={"kind": "embedding", **options}), MediaLimits()).prepare("image")
