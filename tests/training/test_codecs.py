"""The contract of codecs, over every kind of the catalogue: contents to codes and back, alone or beside others, saved
and loaded."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel, MimiConfig, MimiModel

from training.catalog import CODECS, DEFAULT_CODECS
from training.codecs.base import load_codec, make_codec, save_codec
from training.codecs.options import Source
from training.features import FeatureSettings
from training.likeness import likenesses, nearness
from training.media_files import content_of, file_of_url, is_media, picture_url, python_object, recording_url
from training.quantization import FiniteScalars

PICTURES = Source(tensor="pixels", channels=1, size=12)
RECORDINGS = Source(tensor="waveform", rate=8000)
FEATURES = FeatureSettings(image={"size": 12, "color": "grey"}, speech={"sample_rate": 8000, "keep_waveform": True})
OPTIONS = {"autoencoder": {"width": 8, "steps": 30}, "mel": {"width": 16, "steps": 10, "mels": 20, "seconds": 1.0}}
PRETRAINED = ("encodec", "dac", "mimi")
KINDS = [
    ("image", "autoencoder"),
    ("speech", "mel"),
    *(("speech", f"huggingface {model}") for model in PRETRAINED),
]


def pretrained(model: str, folder: Path) -> Path:
    """A tiny random one."""
    torch.manual_seed(0)
    small: Any
    if model == "encodec":
        config = EncodecConfig(
            sampling_rate=8000, num_filters=4, hidden_size=8, codebook_dim=8, codebook_size=16, num_lstm_layers=1,
            upsampling_ratios=[4, 4], target_bandwidths=[8.0],
        )  # fmt: skip
        small = EncodecModel(config)
    elif model == "dac":
        config = DacConfig(
            encoder_hidden_size=8, downsampling_ratios=[4, 4], decoder_hidden_size=16, n_codebooks=3, codebook_size=16,
            codebook_dim=4, sampling_rate=8000,
        )  # fmt: skip
        small = DacModel(config)
    else:
        config = MimiConfig(
            sampling_rate=8000, num_filters=4, hidden_size=16, upsampling_ratios=[4, 4], num_hidden_layers=1,
            intermediate_size=16, num_attention_heads=2, num_key_value_heads=2, head_dim=8, codebook_size=16,
            codebook_dim=8, num_quantizers=3, num_semantic_quantizers=1, vector_quantization_hidden_dimension=8,
            upsample_groups=16,
        )  # fmt: skip
        small = MimiModel(config)
    small.eval().save_pretrained(folder)
    return folder


def contents(modality: str) -> list[np.ndarray]:
    """Of several sizes: bright squares in a corner of each, or tones."""
    random = np.random.default_rng(0)
    if modality == "image":
        pixels = random.integers(0, 60, (9, 1, 12, 12)).astype(np.uint8)
        for number, one in enumerate(pixels):
            one[0, : 3 + number // 3, : 3 + number % 3] = 255
        return list(pixels)
    lengths = [200, 1999, 4000, 9000]
    tones = [np.sin(np.arange(length) * 0.2 * (1 + number)) for number, length in enumerate(lengths)]
    return [np.round(8000 * tone + random.normal(size=len(tone))).astype(np.int16) for tone in tones]


@pytest.fixture(params=KINDS, ids=" ".join)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Any, Any]:
    modality, words = request.param
    kind, _, model = words.partition(" ")
    if model:
        choice: Any = {"kind": kind, "model": str(pretrained(model, tmp_path / model)), "seconds": 1.0}
    else:
        choice = {"kind": kind, **OPTIONS[kind]}
    return modality, choice, make_codec(choice, Source.of(FEATURES, modality), modality)


def test_every_kind_is_tested() -> None:
    assert {(m, words.split()[0]) for m, words in KINDS} == {
        (m, kind) for m in CODECS.kinds for kind in CODECS.names(m)
    }
    assert all(kind in CODECS.names(m) for m, kind in DEFAULT_CODECS.items())


def test_contents_become_codes_and_contents_again(made: Any, tmp_path: Path) -> None:
    modality, choice, codec = made
    given, source = contents(modality), Source.of(FEATURES, modality)
    state = torch.get_rng_state()
    codec.fit(given, lambda _: None)
    assert torch.equal(state, torch.get_rng_state()) and not any(p.requires_grad for p in codec.parameters())
    coded, alphabet = codec.encode(given), codec.alphabet
    for codes, alone in zip(coded, given, strict=True):
        assert 1 <= len(codes) <= alphabet.length and codes.min() >= 0 and codes.max() < alphabet.codes
        assert len(codes) == alphabet.length or not alphabet.is_fixed
        np.testing.assert_array_equal(codes, codec.encode([alone])[0])
    again = codec.decode(coded)
    np.testing.assert_array_equal(again[1], codec.decode([coded[1]])[0])
    assert all(content.dtype == given[0].dtype and content.ndim == given[0].ndim for content in again)
    if modality == "image":
        assert {content.shape for content in again} == {given[0].shape}
    else:
        assert all(0.7 < len(a) / min(len(b), 8000) < 1.4 or len(b) < 1000 for a, b in zip(again, given, strict=True))
    worst = codec.decode([np.full(alphabet.length, alphabet.codes - 1), np.zeros(alphabet.length, np.int64)])
    assert all(np.isfinite(content).all() for content in worst), "a model may write anything"
    save_codec(codec, choice, source, modality, tmp_path / "saved")
    loaded = load_codec(tmp_path / "saved")
    for before, after in zip(coded, loaded.encode(given), strict=True):
        np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(again[0], loaded.decode(coded)[0])


def test_what_is_learned_is_kept() -> None:
    given = contents("image")
    codec = make_codec({"kind": "autoencoder", "width": 16, "steps": 80}, PICTURES, "image")
    codec.fit(given, lambda _: None)
    again = codec.decode(codec.encode(given))
    errors = [[np.square(a.astype(float) - b).mean() for b in given] for a in again]
    assert np.mean([np.argmin(row) == n for n, row in enumerate(errors)]) > 0.8


def test_codes_and_numbers_are_one() -> None:
    quantizer = FiniteScalars([4, 3, 2])
    codes = torch.arange(quantizer.size)
    numbers = quantizer.numbers(codes)
    assert numbers.abs().max() <= 1 and len({tuple(row) for row in numbers.tolist()}) == 24
    # As far out as it takes to be rounded to the same.
    assert torch.equal(quantizer.codes(torch.atanh(numbers.clamp(-0.999, 0.999))), codes)


def test_features_that_keep_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"keep_waveform: true"):
        Source.of(FeatureSettings(), "speech")
    with pytest.raises(ValueError, match=r"features\.image is vector, of which no image can be made again"):
        Source.of(FeatureSettings(image={"kind": "vector", "width": 3}), "image")
    with pytest.raises(ValueError, match=r"features\.image\.size is 800"):
        Source.of(FeatureSettings(image={"size": 800}), "image")
    with pytest.raises(ValueError, match="no codec for it"):
        Source.of(FeatureSettings(), "text")


@pytest.mark.parametrize("form", ["png", "jpeg", "webp", "wav", "flac"])
def test_answers_are_files(form: str) -> None:
    if form in ("wav", "flac"):
        given = contents("speech")[1]
        url = recording_url(given, 8000, form)
        np.testing.assert_allclose(content_of(url, RECORDINGS), given, atol=2)
        samples, rate = python_object({"said": url})["said"]
        assert rate == 8000 and len(samples) == len(given)
    else:
        given = np.tile(np.linspace(0, 255, 12).astype(np.uint8), (1, 12, 1))
        url = picture_url(given, form)
        np.testing.assert_allclose(content_of(url, PICTURES), given.astype(int), atol=12)
        assert python_object(url).size == (12, 12)
    assert is_media(url) and not is_media("data:text/plain;base64,") and file_of_url(url)[1] in (f".{form}", ".jpg")


@pytest.mark.parametrize(("modality", "source"), [("image", PICTURES), ("speech", RECORDINGS)])
def test_what_is_alike_is_near(modality: str, source: Source) -> None:
    given = contents(modality)
    small = likenesses(given, source)
    np.testing.assert_allclose(np.linalg.norm(small, axis=1), 1, atol=1e-3)
    assert nearness(small, small, range(len(small))) == [1.0] * len(small)
    same = np.repeat(small[:1], len(small), axis=0)
    np.testing.assert_allclose(np.mean(nearness(same, small, range(len(small)))), 0.5)  # one answer to all is chance
    assert nearness(small[:1], small[:1], [0]) == [0.5]
