"""Frozen pretrained encoders of many families, and what is no encoder."""

import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import close_session
from safetensors.torch import load_file

from tests.training.tiny_encoders import CASES, CONTENTS, noise
from training.features import FeatureSettings
from training.model_files import digest, model_folder
from training.preprocessing import Batch, Picture
from training.pretrained import Said, averages, load_encoder
from training.processor import Processor
from training.settings import MediaLimits
from training.tokenizer import load_tokenizer


@pytest.mark.parametrize(("family", "modality"), CASES)
def test_an_embedding_depends_on_its_content_alone(family: str, modality: str, tiny_encoder: Any) -> None:
    encoder, contents = load_encoder(modality, tiny_encoder(family)), CONTENTS[modality]
    together = encoder.embed(contents, 4, -1, 2)
    width = encoder.width(-1)
    for embedding_ND, content in zip(together, contents, strict=True):
        assert embedding_ND.shape == (4, width) and embedding_ND.dtype == np.float16
        np.testing.assert_allclose(embedding_ND, encoder.embed([content], 4, -1, 2)[0], atol=2e-3)
    assert not any(np.allclose(together[0], other, atol=1e-3) for other in together[1:])
    (alone,), (first,) = (encoder.embed(contents[:1], 1, layer, 2) for layer in (-1, 1))
    assert alone.shape == (1, width) and len(first) == 1
    with pytest.raises(ValueError, match="layer is 99"):
        encoder.embed(contents[:1], 1, 99, 2)


@pytest.mark.parametrize(("family", "modality"), CASES)
def test_batches_hold_what_the_preprocessing_makes_of_each_content(
    family: str, modality: str, tiny_encoder: Any
) -> None:
    preprocessing, contents = load_encoder(modality, tiny_encoder(family)).preprocessing, CONTENTS[modality]
    batches = list(preprocessing.batches(contents, 2, torch.device("cpu")))
    assert all(len(batch.parts) == len(batch.real) <= 2 for batch in batches)
    found = {
        named: ({name: tensor[n : n + 1] for name, tensor in batch.tensors.items()}, batch.real[n])
        for batch in batches
        for n, named in enumerate(batch.parts)
    }
    parts = {(n, k): part for n, c in enumerate(contents) for k, part in enumerate(preprocessing.inputs(c))}
    assert found.keys() == parts.keys()
    for named, (tensors, real) in found.items():
        assert real == parts[named].real and tensors.keys() == parts[named].tensors.keys()
        assert all(tensor.equal(parts[named].tensors[name]) for name, tensor in tensors.items())


def test_what_a_recording_is_padded_with_does_not_count(tiny_encoder: Any) -> None:
    """Of 0.5 s and of 0.06 s within as much silence: the first has 25 positions, the second three."""
    encoder = load_encoder("speech", tiny_encoder("whisper"))
    (part,) = encoder.preprocessing.inputs(noise(0.06))
    assert part.tensors["input_features"].shape == (1, 80, 50)
    assert Said.of(Batch([(0, 0)], part.tensors, [part.real]), torch.zeros(1, 25, 16)).lengths == [3]
    (whole,) = encoder.preprocessing.inputs(noise(0.6, pad=True))
    assert whole.tensors["input_features"].shape == (1, 80, 3000) and whole.real == 0.6 / 30
    long = [part.tensors["input_features"].shape[-1] for part in encoder.preprocessing.inputs(noise(31))]
    assert long == [3000, 100], "nothing is cut off: what is too long is read in parts"


def test_whisper_reads_short_recordings_as_long_ones_up_to_what_follows(tiny_encoder: Any) -> None:
    """The shortened encoder is the same network: on features of full length, cut after the convolutions, it agrees."""
    encoder = load_encoder("speech", tiny_encoder("whisper"))
    features = torch.randn(1, 80, 3000)
    with torch.inference_mode():
        whole = encoder.tower.states(encoder.network, {"input_features": features}, 0)
        short = encoder.tower.states(encoder.network, {"input_features": features[..., :100]}, 0)
    torch.testing.assert_close(short[:, :49], whole[:, :49])


@pytest.mark.parametrize(("family", "is_cropped"), [("clip", True), ("vit", False)])
def test_the_ends_of_a_long_picture_are_seen(family: str, is_cropped: bool, tiny_encoder: Any) -> None:
    """CLIP's preprocessing takes the middle of a picture, ViT's all of it."""
    encoder = load_encoder("image", tiny_encoder(family))
    pixels = np.full((20, 90, 3), 100, np.uint8)
    ends = pixels.copy()
    ends[:, 15:25] = 255  # left of the middle, right of what a crop of the square would still take off
    (whole, other), (middle, same) = (
        encoder.embed([Picture(pixels, crop), Picture(ends, crop)], 4, -1, 2) for crop in (False, True)
    )
    assert not np.allclose(whole, other, atol=1e-2)
    assert np.array_equal(middle, same) == is_cropped
    assert np.array_equal(*encoder.embed([Picture(pixels[:, :20], crop) for crop in (False, True)], 4, -1, 1))


def test_the_class_token_comes_first_and_alone_stands_for_all(tiny_encoder: Any) -> None:
    encoder = load_encoder("image", tiny_encoder("vit"))
    states_BSD = torch.arange(17.0)[None, :, None]
    assert encoder.tower.averaged(states_BSD, [17], 1).flatten().tolist() == [0.0]
    assert encoder.tower.averaged(states_BSD, [17], 5).flatten().tolist() == [0.0, 3.5, 5.5, 11.5, 13.5]
    assert encoder.tower.averaged(states_BSD[:, 1:], [16], 1).flatten().tolist() == [8.5]


def test_stretches_of_a_sequence_share_what_lies_on_their_border() -> None:
    states_BSD = torch.tensor([[[0.0], [3.0], [6.0]], [[2.0], [7.0], [7.0]]])
    assert averages(states_BSD, [3, 1], 2).flatten().tolist() == [1.0, 5.0, 2.0, 2.0]
    assert averages(states_BSD, [1, 2], 3).flatten().tolist() == pytest.approx([0.0] * 3 + [2.0, 4.5, 7.0])


@pytest.mark.parametrize(
    ("family", "modality", "words"),
    [
        ("bert", "image", "cannot be loaded as an encoder of pictures"),
        ("bert", "speech", "cannot be loaded as an encoder of speech"),
        ("vit", "text", "cannot be loaded as an encoder of texts"),
        ("vit", "speech", "knows no sampling rate|cannot be loaded as an encoder of speech"),
    ],
)
def test_an_encoder_of_something_else_is_refused(family: str, modality: str, words: str, tiny_encoder: Any) -> None:
    with pytest.raises(ValueError, match=words):
        load_encoder(modality, tiny_encoder(family))


MODELS = Path(__file__).parents[2] / "models"  # `make models`


@pytest.mark.skipif(not MODELS.is_dir(), reason="make models")
def test_real_encoders_tell_what_is_alike() -> None:
    text = load_encoder("text", MODELS / "minilm-l6")
    cat, kitten, shares = (
        e[0].astype(np.float32) for e in text.embed(["A cat sleeps.", "The kitten naps.", "Shares fell."], 1, -1, 8)
    )
    assert cat @ kitten / np.linalg.norm(kitten) > 2 * cat @ shares / np.linalg.norm(shares)
    for name in ("whisper-tiny", "whisper-base"):
        speech = load_encoder("speech", MODELS / name)
        short, again = speech.embed([noise(1.0), noise(1.0)], 4, -1, 8)
        assert short.shape == (4, speech.width()) and not np.allclose(short, again)
    image = load_encoder("image", MODELS / "efficientnet-lite0")
    assert image.embed(CONTENTS["image"], 4, -1, 8)[0].shape == (4, 1280)


def settings(model: Path | str, **options: Any) -> FeatureSettings:
    return FeatureSettings(image={"kind": "embedding", "model": str(model), **options})


def test_a_model_is_known_by_its_files_wherever_they_lie(tiny_encoder: Any, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_encoder("vit"), copy)
    marks = [Processor(settings(place), MediaLimits()).fingerprint("image") for place in (tiny_encoder("vit"), copy)]
    assert marks[0] == marks[1]
    for changed in ({"tokens": 5}, {"layer": 1}):
        assert Processor(settings(copy, **changed), MediaLimits()).fingerprint("image") != marks[0]
    assert Processor(settings(copy, batch_size=3), MediaLimits()).fingerprint("image") == marks[0]
    weights = copy / "model.safetensors"
    assert load_file(weights)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert Processor(settings(copy), MediaLimits()).fingerprint("image") != marks[0]
    weights.unlink()
    with pytest.raises(ValueError, match="no weights as safetensors"):
        digest(copy)
    with pytest.raises(ValueError, match=r"features\.image: model .* no weights"):
        Processor(settings(copy), MediaLimits()).prepare("image")


def test_a_name_that_is_no_model_is_told_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("nobody/no-such-model", "a b/c d"):
        with pytest.raises(ValueError, match="Is it spelled right"):
            model_folder(name)


def test_a_network_that_keeps_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a proxy that takes the connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for scheme in ("HTTP", "HTTPS"):
            monkeypatch.setenv(f"{scheme}_PROXY", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr("training.model_files._NETWORK_SECONDS", 0.2)
        close_session()  # that of another proxy
        for look, of in ((model_folder, "model"), (load_tokenizer, "model.llm")):
            with pytest.raises(ValueError, match=rf"^{of}(: model)? is 'nobody/no-such-model'.* spelled right"):
                look("nobody/no-such-model")
    close_session()


def test_the_model_must_be_named() -> None:
    with pytest.raises(ValueError, match=r"features\.image: a pretrained encoder needs a model"):
        Processor(FeatureSettings(image="embedding"), MediaLimits()).prepare("image")
