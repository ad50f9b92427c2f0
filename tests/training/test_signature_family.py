"""The contract of a signature over every kind in the catalogue, and what each kind bears and tells apart."""

import io
import pickle

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from training.catalog import DEFAULT_SIGNATURES, MODALITIES, SIGNATURES
from training.family import Choice
from training.features import FeatureSettings
from training.processor import Processor
from training.settings import MediaLimits

KINDS = [(m, kind) for m in MODALITIES.names() for kind in SIGNATURES.names(m)]
PROCESSOR = Processor(FeatureSettings(), MediaLimits())
RATE = 8000
WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "lazy",
    "dog",
    "while",
    "seven",
    "wizards",
    "box",
    "with",
    "hens",
]


def photo(number: int, side: int = 200) -> Image.Image:
    """Soft spots of many sizes."""
    random, total = np.random.default_rng(number), np.zeros((side, side, 3))
    for spots in (4, 8, 16, 40):
        field = Image.fromarray(random.integers(0, 256, (spots, spots, 3), dtype=np.uint8))
        total += np.asarray(field.resize((side, side), Image.Resampling.BICUBIC), float) / spots**0.5
    return Image.fromarray((255 * (total - total.min()) / np.ptp(total)).astype(np.uint8))


def jpeg(picture: Image.Image, quality: int = 90) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return file.getvalue()


def melody(number: int, seconds: float = 3.0) -> np.ndarray:
    """A voice that sings tones of its own, each with its own vowel and length."""
    random, parts, left = np.random.default_rng(number), [], seconds
    while left > 0:
        length = random.uniform(0.08, 0.3)
        time = np.arange(round(RATE * length)) / RATE
        pitch = random.uniform(90, 220) * (1 + random.uniform(-0.2, 0.2) * time)
        loud = np.exp(-(((np.arange(1, 15) * 150 - random.uniform(300, 2500)) / 500) ** 2)) + 0.05
        tone = sum(a * np.sin(2 * np.pi * k * np.cumsum(pitch) / RATE) for k, a in enumerate(loud, 1))
        parts.append(tone * np.hanning(len(time)) * random.uniform(0, 1))
        left -= length
    sound = np.concatenate(parts)[: round(RATE * seconds)]
    return (0.3 * sound / np.abs(sound).max()).astype(np.float32)


def audio(wave: np.ndarray, kind: str = "WAV", rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format=kind)
    return file.getvalue()


def text(number: int) -> str:
    return " ".join(np.random.default_rng(number).choice(WORDS, 30))


MAKERS = {"image": lambda n: jpeg(photo(n)), "speech": lambda n: audio(melody(n)), "text": lambda n: text(n).encode()}


def signed(modality: str, data: bytes, kind: str | None = None) -> bytes | None:
    kind = kind or SIGNATURES.names(modality)[0]
    return SIGNATURES.make(Choice(kind), scope=modality).sign(PROCESSOR.decode(modality, data))


@pytest.mark.parametrize(("modality", "kind"), KINDS)
def test_a_signature_is_small_the_same_each_time_and_tells_contents_apart(modality, kind):
    signature = SIGNATURES.make(SIGNATURES.choose({"kind": kind, "least": 1}, modality), scope=modality)
    again = pickle.loads(pickle.dumps(signature))
    contents = [PROCESSOR.decode(modality, MAKERS[modality](n)) for n in range(12)]
    values = [signature.sign(content) for content in contents]
    assert [again.sign(content) for content in contents] == values
    assert values == [SIGNATURES.make(Choice(kind), scope=modality).sign(content) for content in contents]
    assert all(16 <= len(value) <= 2560 for value in values)
    keys = signature.keys(values)
    assert keys.dtype == np.uint64 and keys.ndim == 3 and len(keys) == 12
    assert np.array_equal(again.keys(values), keys)
    first, second = (one.ravel() for one in np.indices((12, 12)))
    pairs = np.stack([first, second, np.zeros(144, np.int64)])
    similarity = signature.similarity(values, pairs).reshape(12, 12)
    least = SIGNATURES.make(Choice(kind), scope=modality).options.least
    assert np.allclose(np.diag(similarity), 1, atol=1e-3)
    assert (similarity[~np.eye(12, dtype=bool)] < least).all()
    assert signature.similarity(values, pairs[:, :0]).shape == (0,)


@pytest.mark.parametrize(("modality", "kind"), KINDS)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"least": 0}, "least is 0"),
        ({"least": 1.1}, "least is 1.1"),
        ({"keep": "some"}, "keep is 'some', expected all"),
    ],
)
def test_options_are_checked(modality, kind, options, words):
    with pytest.raises(ValueError, match=words):
        SIGNATURES.choose({"kind": kind, **options}, modality)


def test_what_is_on_by_default_is_in_the_catalogue():
    assert all(kind in SIGNATURES.names(modality) for modality, kind in DEFAULT_SIGNATURES.items())


def is_near(modality: str, one: bytes, other: bytes) -> bool:
    """As candidates are found, and then compared."""
    from assets.near_duplicates import alike

    signature = SIGNATURES.make(Choice(SIGNATURES.names(modality)[0]), scope=modality)
    values = [signature.sign(PROCESSOR.decode(modality, data)) for data in (one, other)]
    assert None not in values
    return len(alike(signature, values)[0]) == 1


@pytest.mark.parametrize("number", range(3))
def test_a_photo_is_known_again(number):
    picture = photo(number)
    original = jpeg(picture)
    assert is_near("image", original, jpeg(picture, 40))
    assert is_near("image", original, jpeg(picture.resize((100, 100)), 75))
    assert is_near("image", original, jpeg(picture.crop((0, 20, 200, 200))))
    assert is_near("image", jpeg(picture.crop((15, 15, 200, 200)), 80), original)
    assert is_near("image", original, jpeg(picture.point(lambda value: value * 0.8)))
    assert not is_near("image", original, jpeg(photo(number + 100)))


@pytest.mark.parametrize("number", range(3))
def test_a_recording_is_known_again(number):
    wave = melody(number)
    original = audio(wave)
    assert is_near("speech", original, audio(wave, "MP3")) and is_near("speech", original, audio(wave, "OGG"))
    for speed in (0.95, 1.05):  # and pitch
        assert is_near("speech", original, audio(soxr.resample(wave, RATE * speed, RATE)))
    assert is_near("speech", original, audio(soxr.resample(wave, RATE, 2 * RATE), rate=2 * RATE))
    assert is_near("speech", original, audio(wave / 4)) and is_near("speech", original, audio(wave * 3))
    assert not is_near("speech", original, audio(melody(number + 100)))
    assert not is_near("speech", original, audio(np.tile(wave, 2)))


def test_what_has_too_little_to_be_told_by_is_not_signed():
    assert signed("image", jpeg(photo(1, side=63))) is None
    assert signed("image", jpeg(Image.new("RGB", (300, 300), "white"))) is None
    assert signed("speech", audio(melody(1, seconds=0.2))) is None
    assert signed("speech", audio(np.zeros(RATE))) is None
    assert signed("speech", audio(0.5 * np.sin(np.arange(RATE)))) is None
    assert signed("text", b"?! ...") is None


@settings(max_examples=40)
@given(st.integers(1, 200_000), st.sampled_from([4000, 8000, 16000, 22050, 44100, 48000]))
def test_recordings_of_any_length_and_rate_are_signed(frames, rate):
    wave = np.random.default_rng(frames).uniform(-1, 1, min(frames, 4 * rate)).astype(np.float32)
    value = signed("speech", audio(wave, rate=rate))
    assert value is None or len(value) == 4 + 48 * 40


def test_case_space_and_punctuation_are_no_matter_to_texts():
    assert signed("text", b"Turn on, please: the LIGHT") == signed("text", b"turn  on please the light!")
    said = text(0)
    assert is_near("text", said.encode(), f"{said} please".encode())
    assert not is_near("text", said.encode(), text(1).encode())
