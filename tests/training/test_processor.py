"""Raw inputs to tensors: shapes, values against independent implementations, and fingerprints that notice changes."""

import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from training.features import FeatureSettings
from training.featurizers.pixels import PixelsOptions, image_pixels
from training.media import MediaError
from training.processor import Processor
from training.schema import MODALITIES
from training.settings import MediaLimits, TextCleaning
from training.spectra import SpectrumOptions, resample, speech_spectra, trim
from training.validation import to_dict

ROOT = Path(__file__).parents[2]
LIMITS = MediaLimits()
SPEECH = SpectrumOptions(sample_rate=8000)


def photo(height: int = 40, width: int = 60) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], axis=-1).astype(np.uint8)


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def chirp(rate: int = 8000, seconds: float = 0.5) -> np.ndarray:
    t = np.arange(round(rate * seconds)) / rate
    return (0.5 * np.sin(2 * np.pi * (300 * t + 1000 * t**2)) * np.hanning(len(t))).astype(np.float32)


def wav(samples: np.ndarray, rate: int = 8000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def processor(**features: object) -> Processor:
    return Processor(FeatureSettings(**features), LIMITS)  # type: ignore[arg-type]


def test_row_has_every_field_and_the_declared_types() -> None:
    wanted = processor(
        image={"size": 32},
        speech=to_dict(dataclasses.replace(SPEECH, keep_waveform=True, trim_db=None)),
    )
    row = wanted.row(text="zwölf\u200b", image=png(photo()), speech=wav(chirp()))
    assert list(row) == ["sample_id", "label", "text", "image", "speech"]
    assert row["text"]["text"] == "zwölf"
    assert row["text"]["input_ids"].tolist() == list("zwölf".encode())
    tensors = {name: row[m][name] for m in MODALITIES for name in wanted.featurizers[m].tensors}
    declared = {name: dtype for m in MODALITIES for name, dtype in wanted.featurizers[m].tensors.items()}
    assert {name: str(tensor.dtype) for name, tensor in tensors.items()} == declared
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    assert shapes == {
        "input_ids": (6,), "pixels": (3, 32, 32), "log_mel": (51, 64), "mfcc": (51, 20), "waveform": (4000,),
    }  # fmt: skip
    empty = wanted.row(image=png(photo()))
    assert empty["image"]["pixels"] is not None
    assert all(empty[name] is None for name in row if name != "image")


# Images


@pytest.mark.parametrize(("color", "channels"), [("rgb", 3), ("grey", 1)])
@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (16, 16), (1, 3000), (5, 7)])
@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_every_picture_becomes_a_square(color: str, channels: int, shape: tuple[int, int], fit: str) -> None:
    wanted = PixelsOptions(size=16, color=color, fit=fit)  # type: ignore[arg-type]
    pixels = image_pixels(photo(*shape), wanted)
    assert (pixels.shape, pixels.dtype) == ((channels, 16, 16), np.uint8)


def test_fit_decides_what_is_seen() -> None:
    bands = np.zeros((30, 90, 3), dtype=np.uint8)  # red, green, blue squares side by side
    for i in range(3):
        bands[:, 30 * i : 30 * i + 30, i] = 255
    crop, squash, pad = (
        image_pixels(bands, PixelsOptions(size=30, fit=fit)).astype(int) for fit in ("crop", "squash", "pad")
    )
    assert np.array_equal(crop, bands[:, 30:60].transpose(2, 0, 1))
    assert squash[:, 15, 4].tolist() == [255, 0, 0]
    assert squash[:, 15, 25].tolist() == [0, 0, 255]
    assert pad[:, :10].max() == pad[:, 20:].max() == 0
    assert pad[:, 15, 15].tolist() == [0, 255, 0]


def test_resizing_antialiases() -> None:
    checks = (np.indices((128, 128)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, axis=-1)
    pixels = image_pixels(checks, PixelsOptions(size=16)).astype(int)
    assert np.abs(pixels - 127.5).max() < 3  # picking pixels would give 0 or 255


def test_same_size_is_untouched() -> None:
    grey = photo(28, 28)[..., :1].repeat(3, axis=-1)
    pixels = image_pixels(grey, PixelsOptions(size=28, color="grey"))
    assert np.abs(pixels[0].astype(int) - grey[..., 0]).max() <= 1


# Speech


def test_spectra_agree_with_torchaudio() -> None:
    torch, torchaudio = pytest.importorskip("torch"), pytest.importorskip("torchaudio")
    wanted = SpectrumOptions(sample_rate=16000, mels=40)
    waveform = chirp(16000, 0.7) + 0.01 * np.random.default_rng(0).standard_normal(11200).astype(np.float32)
    ((log_mel, mfcc),) = speech_spectra([waveform], wanted)
    mel = torchaudio.transforms.MelSpectrogram(
        16000, n_fft=512, win_length=400, hop_length=160, n_mels=40, pad_mode="constant"
    )(torch.from_numpy(waveform)).T
    expected = mel.clamp(min=float(mel.max()) * 1e-8).log()
    expected = (expected - expected.mean()) / expected.std(correction=0)
    assert log_mel.shape == (71, 40)
    np.testing.assert_allclose(log_mel, expected, atol=1e-3)
    dct = torchaudio.functional.create_dct(20, 40, "ortho")
    np.testing.assert_allclose(mfcc, expected @ dct, atol=5e-3)


def test_the_channel_is_taken_off_as_far_as_it_is_known() -> None:
    random = np.random.default_rng(0)
    other_microphone = np.array([1.0, -0.6], np.float32)  # louder towards high frequencies
    for seconds, left in ((0.25, 0.5), (4.75, 0.05)):
        speech = random.standard_normal(round(8000 * seconds)).astype(np.float32)
        coloured = np.convolve(speech, other_microphone)[: len(speech)]
        shifts = []
        for channel_seconds in (None, 0.25):
            wanted = dataclasses.replace(SPEECH, channel_seconds=channel_seconds)
            (plain, _), (heard, _) = speech_spectra([speech, coloured], wanted)
            shifts.append((heard - plain).mean(axis=0))
        assert np.abs(shifts[0]).max() > 0.3
        np.testing.assert_allclose(shifts[1], shifts[0] * left, atol=0.02)


def test_every_mel_band_holds_something() -> None:
    for rate, mels in ((8000, 64), (8000, 128), (16000, 80), (44100, 128)):
        noise = np.random.default_rng(0).standard_normal(rate).astype(np.float32) * 0.1
        ((log_mel, _),) = speech_spectra([noise], SpectrumOptions(sample_rate=rate, mels=mels))
        assert log_mel.min() > -7, (rate, mels)  # an empty band would lie far below the noise
        assert log_mel.std() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("samples", [1, 2, 79, 80, 81, 199, 1000])
def test_very_short_and_silent_clips_give_finite_frames(samples: int) -> None:
    for signal in (np.zeros(samples), np.full(samples, 0.5), np.eye(1, samples).ravel()):
        row = processor(speech=to_dict(SPEECH)).row(speech=wav(signal.astype(np.float32)))["speech"]
        assert np.isfinite(row["log_mel"]).all()
        assert np.isfinite(row["mfcc"]).all()
        assert 1 <= len(row["log_mel"]) == len(row["mfcc"]) <= 1 + samples // 80


def test_loudness_does_not_matter() -> None:
    ((loud, _),) = speech_spectra([chirp()], SPEECH)
    ((quiet, _),) = speech_spectra([chirp() * np.float32(0.01)], SPEECH)
    np.testing.assert_allclose(loud, quiet, atol=1e-3)


def test_trimming_keeps_the_word() -> None:
    word = np.sin(np.arange(1600)).astype(np.float32)
    quiet = np.full(800, 1e-4, dtype=np.float32)
    padded = np.concatenate([quiet, word, quiet])
    assert np.array_equal(trim(padded, 8000, SPEECH), word)
    assert len(trim(padded, 8000, dataclasses.replace(SPEECH, trim_db=None))) == len(padded)
    assert len(trim(padded, 8000, dataclasses.replace(SPEECH, trim_db=100))) == len(padded)


@settings(max_examples=200, deadline=None)
@given(
    hops=st.lists(st.sampled_from([0.0, 1e-6, 1e-3, 0.1, 1.0]), max_size=12),
    rest=st.integers(1, 79),
    trim_db=st.sampled_from([None, 0.0, 20.0, 40.0, 200.0]),
)
def test_trimming_never_leaves_nothing_and_never_cuts_the_loudest(
    hops: list[float], rest: int, trim_db: float | None
) -> None:
    waveform = np.repeat(np.array([*hops, 0.5], dtype=np.float32), 80)[: 80 * len(hops) + rest]
    trimmed = trim(waveform, 8000, dataclasses.replace(SPEECH, trim_db=trim_db))
    assert 1 <= len(trimmed) <= len(waveform)
    if hops and max(hops) > 0 and trim_db:
        assert np.abs(trimmed).max() >= max(hops)


def test_resampling_keeps_length_and_pitch() -> None:
    for rate in (8000, 11025, 22050, 44100, 44101, 48000, 96000):
        signal = np.sin(2 * np.pi * 1000 * np.arange(rate) / rate).astype(np.float32)
        out = resample(signal, rate, 16000)
        assert abs(len(out) - 16000) <= 1
        middle = out[4000:12192]
        peak = np.abs(np.fft.rfft(middle * np.hanning(8192))).argmax() * 16000 / 8192
        assert peak == pytest.approx(1000, abs=2)
    aliased = resample(np.sin(2 * np.pi * 7000 * np.arange(16000) / 16000).astype(np.float32), 16000, 8000)
    assert np.abs(aliased[500:-500]).max() < 0.02  # 7 kHz cannot be said at 8 kHz


def test_long_speech_is_cut() -> None:
    wanted = dataclasses.replace(SPEECH, max_seconds=0.2, trim_db=None, keep_waveform=True)
    row = processor(speech=to_dict(wanted)).row(speech=wav(chirp(16000), 16000))["speech"]
    assert len(row["waveform"]) == 1600
    assert len(row["log_mel"]) == 21


# Text


def test_text_is_cut_in_a_batch_and_limited() -> None:
    small = processor(text={"max_tokens": 3})
    ids = small.row(text="abcdef")["text"]["input_ids"]
    assert ids.tolist() == [97, 98, 99, 100, 101, 102], "all are stored, so that another limit computes nothing"
    batch, mask = small.featurizers["text"].batch([ids, None])
    assert batch.tolist() == [[97, 98, 99], [0, 0, 0]] and mask.sum(1).tolist() == [3, 0]
    assert small.featurizers["text"].cut()[0] == "input_ids_shape[1] > 3"
    with pytest.raises(MediaError, match="over the limit"):
        Processor(FeatureSettings(), MediaLimits(max_characters=3)).row(text="abcdef")
    with pytest.raises(MediaError, match="empty"):
        processor().row(text="")


def word_tokenizer(folder: Path, words: str) -> Path:
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    vocabulary = {word: i for i, word in enumerate(["<unk>", *words.split()])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    return folder


def test_a_tokenizer_travels_with_the_model(tmp_path: Path) -> None:
    folder = word_tokenizer(tmp_path / "tokenizer", "one two three")
    original = processor(text={"tokenizer": str(folder)})
    assert original.row(text="two three four")["text"]["input_ids"].tolist() == [2, 3, 0]
    original.save_pretrained(tmp_path / "model")
    mark = original.fingerprint("text")
    folder.rename(tmp_path / "elsewhere")
    loaded = Processor.from_pretrained(tmp_path / "model")
    assert loaded.row(text="two three four")["text"]["input_ids"].tolist() == [2, 3, 0]
    assert loaded.fingerprint("text") == mark
    other = word_tokenizer(tmp_path / "other", "three two one")
    assert processor(text={"tokenizer": str(other)}).fingerprint("text") != mark


# Fingerprints and saving


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    original = Processor(
        FeatureSettings(image={"size": 28, "color": "grey"}, speech=to_dict(SPEECH)), MediaLimits(max_pixels=10**6)
    )
    original.save_pretrained(tmp_path)
    loaded = Processor.from_pretrained(tmp_path)
    assert (loaded.features, loaded.limits) == (original.features, original.limits)
    assert [p.name for p in tmp_path.iterdir()] == ["processor.json"]
    for broken in ("{", "{}", json.dumps({"features": {"text": {"colour": 1}}, "limits": {}})):
        (tmp_path / "processor.json").write_text(broken)
        with pytest.raises(ValueError, match=r"processor\.json"):
            Processor.from_pretrained(tmp_path)


def marks(features: FeatureSettings, limits: MediaLimits = LIMITS) -> dict[str, tuple[str, str]]:
    p = Processor(features, limits)
    return {m: (p.clean_fingerprint(m), p.fingerprint(m)) for m in MODALITIES}


def test_fingerprints_follow_what_decides_the_output_and_nothing_else() -> None:
    base = marks(FeatureSettings())
    assert len({mark for pair in base.values() for mark in pair}) == 6
    same = FeatureSettings(
        image={"mean": 0.1, "std": 0.3}, speech={"keep_waveform": True, "coefficients": 9}, text={"max_tokens": 9}
    )
    assert marks(same) == base  # used when a batch is made, or for another tensor than the one that is read
    changed: dict[str, list[Any]] = {
        "image": [{"size": 64}, {"color": "grey"}, {"fit": "pad"}],
        "speech": [{"mels": 40}, {"hop_ms": 5}, {"max_seconds": 31}],
    }
    for modality, alternatives in changed.items():
        for alternative in alternatives:
            new = marks(FeatureSettings(**{modality: alternative}))
            assert new[modality][0] == base[modality][0], "the clean rows are as before"
            assert new[modality][1] != base[modality][1]
            assert {m: new[m] for m in MODALITIES if m != modality} == {m: base[m] for m in MODALITIES if m != modality}
    for limits, modality in (
        (MediaLimits(max_pixels=1), "image"),
        (MediaLimits(max_seconds=1), "speech"),
        (MediaLimits(max_characters=1), "text"),
    ):
        assert marks(FeatureSettings(), limits) == base, "what passed stays as it is"
        refused = [Processor(FeatureSettings(), given).refused_fingerprint(modality) for given in (LIMITS, limits)]
        assert refused[0] != refused[1], "what was refused is tried again"
    for text in (TextCleaning(form="NFKC"), TextCleaning(form="none"), TextCleaning(lowercase=True)):
        assert marks(FeatureSettings(text=to_dict(text)))["text"][0] != base["text"][0]


def test_fingerprints_need_no_torch() -> None:
    code = (
        "import sys\n"
        "from training.processor import Processor\n"
        "from training.features import FeatureSettings\n"
        "from training.settings import MediaLimits\n"
        "p = Processor(FeatureSettings(), MediaLimits())\n"
        "print(*[p.fingerprint(m) for m in ('text', 'image', 'speech')])\n"
        "heavy = ('torch', 'torchvision', 'torchaudio', 'transformers', 'jieba', 'py3langid', 'ftfy')\n"
        "print([m for m in heavy if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    here = " ".join(processor().fingerprint(m) for m in MODALITIES)
    assert done.stdout.splitlines() == [here, "[]"]


# What fixed inputs gave when the versions were last counted up: of modality and featurizer; and the output.
GOLDEN = json.loads((Path(__file__).parent / "golden_features.json").read_text(encoding="utf-8"))


def golden(modality: str) -> dict[str, list[Any]]:
    """A summary of the output for fixed inputs, small enough to read and to compare with a tolerance."""
    wanted = processor(image={"size": 32}, speech=to_dict(SPEECH))
    if modality == "text":
        clean = wanted.decode("text", "Don’t  ﬁnd\u200b 3.5 cafÃ© lamps;\r\n 今天路口有三辆车 the end".encode())
        return {
            "text": [clean.text, clean.language],
            "words": list(clean.words),
            "content_words": list(clean.content_words),
            "input_ids": wanted.featurize("text", clean)["input_ids"].tolist(),
        }
    if modality == "image":
        buffer = io.BytesIO()
        PIL.Image.fromarray(photo(200, 300)).save(buffer, "JPEG", quality=90)
        pixels = wanted.row(image=buffer.getvalue())["image"]["pixels"].astype(np.float64)
        return {"pixels": pixels.reshape(3, 4, 8, 4, 8).mean(axis=(2, 4)).ravel().round(2).tolist()}
    tensors = wanted.row(speech=wav(chirp(11025), 11025))["speech"]
    return {name: tensors[name][::10, ::9].ravel().round(3).tolist() for name in ("log_mel", "mfcc")}


@pytest.mark.parametrize("modality", MODALITIES)
def test_output_is_as_recorded(modality: str) -> None:
    """Where this fails on purpose: count up the `version` of modality or featurizer, then run this file as a script."""
    recorded = GOLDEN[modality]
    assert recorded["versions"] == versions(modality), "the version was counted up: record the new output"
    now = golden(modality)
    assert now.keys() == recorded["output"].keys()
    for name, values in now.items():
        if values and isinstance(values[0], str):
            assert values == recorded["output"][name]
        else:
            np.testing.assert_allclose(values, recorded["output"][name], atol=1.0 if name == "pixels" else 0.02)


def versions(modality: str) -> list[int]:
    wanted = processor()
    return [wanted.modalities[modality].version, wanted.featurizers[modality].version]


if __name__ == "__main__":
    output = {m: {"versions": versions(m), "output": golden(m)} for m in MODALITIES}
    text = json.dumps(output, ensure_ascii=False, separators=(",", ":"))
    (Path(__file__).parent / "golden_features.json").write_text(text + "\n", encoding="utf-8")
