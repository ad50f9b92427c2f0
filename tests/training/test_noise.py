"""Noise is of the level that it says, and the area under a curve is what it says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.modalities.image import ImageModality
from training.modalities.speech import SpeechModality
from training.modalities.text import TextModality
from training.records import Figure, NoiseCurve
from training.settings import MediaLimits, TextCleaning

LIMITS = MediaLimits()


def test_pictures_and_recordings_get_as_much_noise_as_is_said() -> None:
    random, image, speech = np.random.default_rng(0), ImageModality(), SpeechModality()
    picture = image.decode(image.example(), LIMITS)
    middle = picture.array[8:24, 8:24].astype(float)  # far from black and white, where noise is cut off
    noisy = image.noisy(picture, 16, random)
    assert (noisy.array[8:24, 8:24] - middle).std() == pytest.approx(16, rel=0.1)
    sound = speech.decode(speech.example(), LIMITS)
    noise = speech.noisy(sound, 20, random).waveform - sound.waveform
    ratio = np.square(sound.waveform).mean() / np.square(noise).mean()
    assert 10 * np.log10(ratio) == pytest.approx(20, abs=0.5)
    for kind, content in ((image, noisy), (speech, speech.noisy(sound, 0, random))):
        again = kind.decode(kind.encode(content), LIMITS)
        assert kind.sketch(again).shape == kind.sketch(content).shape, "what is noisy is a file that can be read"


@given(st.text("abcdef 你好", min_size=1, max_size=60), st.sampled_from(TextModality.noise_levels), st.integers(0, 9))
def test_a_noisy_text_is_a_text_of_the_same_characters_or_fewer(text: str, level: float, seed: int) -> None:
    kind = TextModality(TextCleaning(form="none"))
    if not text.strip():
        return
    content = kind.decode(text.encode(), LIMITS)
    noisy = kind.noisy(content, level, np.random.default_rng(seed))
    assert noisy.text and not set(noisy.text) - set(content.text) and len(noisy.text) <= len(content.text)
    assert noisy.text == kind.noisy(content, level, np.random.default_rng(seed)).text


def test_more_noise_changes_more_of_a_text() -> None:
    kind, text = TextModality(TextCleaning()), "the quick brown fox jumps over the lazy dog " * 20
    content = kind.decode(text.encode(), LIMITS)
    changed = [
        len(content.text) - len(kind.noisy(content, level, np.random.default_rng(0)).text) for level in (0.05, 0.4)
    ]
    assert 5 < changed[0] < changed[1] < 0.3 * len(content.text)


def test_the_area_is_the_figure_where_noise_changes_nothing() -> None:
    def area(*values: float | None) -> float | None:
        figures = [Figure(value) for value in values]
        levels = list(range(1, len(values)))
        curve = NoiseCurve(modality="text", metric="accuracy", rows=9, noise="", levels=levels, figures=figures)
        assert NoiseCurve.from_json(curve.to_json()) == curve
        return curve.area

    assert area(0.8, 0.8, 0.8) == pytest.approx(0.8) and area(1.0, 0.5, 0.0) == pytest.approx(0.5)
    assert area(1.0, 0.0, 0.0) == pytest.approx(0.25) and area(1.0, None, 0.5) is None
