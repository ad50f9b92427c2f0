"""Augmentation: what a setting changes, and that the generator alone decides what is drawn."""

import numpy as np
import pytest
import torch

from training.augmentation import SpeechAugmenter, WaveformAugmenter, augment_image, mask_spectrum
from training.seeding import generator
from training.settings import ImageAugmentation, SpeechAugmentation
from training.spectra import SpectrumOptions, speech_spectra

FEATURES = SpectrumOptions(sample_rate=8000, mels=40, window_ms=30, hop_ms=15, keep_waveform=True)


def random(seed: int = 0) -> np.random.Generator:
    return generator(seed, 1, "sample speech")


def tone(hertz: float, seconds: float = 1.0) -> np.ndarray:
    """A tone that swells and fades, so that it has a shape in time, as int16."""
    at = np.arange(round(8000 * seconds)) / 8000
    return np.round(12000 * np.sin(2 * np.pi * hertz * at) * np.sin(np.pi * at / seconds)).astype(np.int16)


def augment(waveform: np.ndarray, seed: int = 0, noise: tuple[np.ndarray, ...] = (), **settings) -> np.ndarray:
    return SpeechAugmenter(WaveformAugmenter(SpeechAugmentation(**settings), noise), FEATURES)(waveform, random(seed))


def test_without_settings_the_frames_are_those_of_the_features():
    waveform = tone(440)
    ((expected, mfcc),) = speech_spectra([waveform.astype(np.float32) / 32767], FEATURES)
    assert np.allclose(augment(waveform), expected, atol=1e-4)
    other = SpeechAugmenter(WaveformAugmenter(SpeechAugmentation()), FEATURES, read="mfcc")
    assert np.allclose(other(waveform, random()), mfcc, atol=1e-3)


def test_the_same_key_gives_the_same_frames_and_another_gives_others():
    everything = {"speed": 0.2, "pitch": 3, "gain_db": 6, "noise_snr_db": (0, 20), "noise_chance": 1, "time_masks": 2}
    waveform, noise = tone(440), (tone(100, 2.0), tone(900, 0.1))
    first = augment(waveform, 0, noise, **everything)
    assert np.array_equal(first, augment(waveform, 0, noise, **everything))
    assert not np.array_equal(first, augment(waveform, 1, noise, **everything))


def test_speed_changes_the_length_and_not_the_pitch():
    lengths = {len(augment(tone(440), seed, speed=0.3)) for seed in range(30)}
    assert min(lengths) < 60 and max(lengths) > 75  # 67 frames of 15 ms
    assert {int(augment(tone(440), seed, speed=0.3).mean(0).argmax()) for seed in range(10)} == {
        int(augment(tone(440)).mean(0).argmax())
    }


def test_pitch_moves_the_loudest_band_both_ways_and_keeps_the_length():
    plain = augment(tone(800))
    found = [augment(tone(800), seed, pitch=6) for seed in range(30)]
    bands = [int(frames.mean(0).argmax()) for frames in found]
    assert min(bands) < plain.mean(0).argmax() < max(bands)
    assert all(abs(len(frames) - len(plain)) <= 2 for frames in found)


@pytest.mark.parametrize("noise", [(), (tone(3000, 0.05),), (tone(3000, 4.0),)], ids=["white", "short", "long"])
def test_noise_is_added_at_the_asked_level(noise):
    quiet, loud = (
        augment(tone(300), noise=noise, noise_snr_db=(level, level), noise_chance=1) - augment(tone(300))
        for level in (60, 0)
    )
    assert np.abs(loud).mean() > 1.5 * np.abs(quiet).mean() > 0


def test_gain_makes_noise_weaker_or_stronger_and_nothing_else():
    assert np.allclose(augment(tone(300), gain_db=20), augment(tone(300)), atol=1e-3)
    levels = {
        float(np.round(augment(tone(300), s, gain_db=20, noise_snr_db=(10, 10), noise_chance=1).std(0).max(), 3))
        for s in range(5)
    }
    assert len(levels) == 5


def test_noise_comes_as_often_as_asked():
    plain = augment(tone(300))
    changed = [
        not np.allclose(augment(tone(300), seed, noise_snr_db=(10, 10), noise_chance=0.25), plain, atol=1e-4)
        for seed in range(200)
    ]
    assert 0.15 < np.mean(changed) < 0.35


@pytest.mark.parametrize("waveform", [np.zeros(0, np.int16), np.zeros(1, np.int16), np.zeros(500, np.int16)])
def test_nothing_and_silence_stay_finite(waveform):
    frames = augment(
        waveform, speed=0.5, pitch=12, noise_snr_db=(0, 0), noise_chance=1, time_masks=3, frequency_masks=3
    )
    assert frames.shape[1] == 40 and len(frames) >= 1 and np.isfinite(frames).all()


def test_masks_hide_stretches_no_wider_than_asked_and_leave_the_input_alone():
    frames = np.ones((100, 40), np.float32)
    masked = mask_spectrum(frames, SpeechAugmentation(time_masks=1, frequency_masks=1, mask_share=0.2), random())
    assert (frames == 1).all()
    hidden_time, hidden_band = (masked == 0).all(1).sum(), (masked == 0).all(0).sum()
    assert 0 < hidden_time <= 20 and 0 < hidden_band <= 8


def test_a_picture_is_turned_resized_and_moved():
    picture = np.zeros((3, 28, 28), np.uint8)
    picture[:, 10:18, 12:16] = 255
    assert np.array_equal(augment_image(picture, random(), ImageAugmentation()), picture)
    for settings in ({"rotation": 30}, {"scale": 0.3}, {"shift": 0.2}):
        changed = augment_image(picture, random(), ImageAugmentation(**settings))
        assert changed.shape == picture.shape and changed.dtype == np.uint8
        assert not np.array_equal(changed, picture), settings
        assert np.array_equal(changed[0], changed[1])
        assert 0.4 < changed.sum() / picture.sum() < 2, settings


def test_operations_are_drawn_for_each_row_and_move_no_other_draws():
    picture = np.random.default_rng(0).integers(0, 255, (3, 28, 28), dtype=np.uint8)
    settings = ImageAugmentation(operations=2, magnitude=15)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    found = [augment_image(picture, random(seed), settings) for seed in range(8)]
    again = [augment_image(picture, random(seed), settings) for seed in range(8)]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(np.array_equal(*pair) for pair in zip(found, again, strict=True))
    assert len({one.tobytes() for one in found}) > 5
    assert all(one.shape == picture.shape and one.dtype == np.uint8 for one in found)
    grey = augment_image(picture[:1], random(), settings)
    assert grey.shape == (1, 28, 28) and grey.dtype == np.uint8


def test_a_room_prolongs_a_sound_and_keeps_its_level_and_length():
    waveform = np.zeros(8000, np.int16)
    waveform[1000:1400] = tone(440)[3800:4200]
    plain = WaveformAugmenter(SpeechAugmentation())(waveform, random(), 8000)[0]
    ends = []
    for seconds in (0.1, 0.6):
        settings = SpeechAugmentation(reverb_chance=1, reverb_seconds=(seconds, seconds))
        heard = WaveformAugmenter(settings)(waveform, random(), 8000)[0]
        assert heard.shape == plain.shape and heard.dtype == np.float32
        assert np.square(heard).mean() == pytest.approx(np.square(plain).mean(), rel=1e-3)
        assert not heard[:999].round(4).any(), "nothing is heard before it is said"
        ends.append(np.square(heard[1500:]).sum())
    assert ends[1] > 2 * ends[0] > 0
    # The noise of a row is the same in a room and without.
    noisy = {"noise_snr_db": (5, 5), "noise_chance": 1}
    silent = np.zeros(4000, np.int16)
    silent[0] = 30000
    dry, wet = (
        WaveformAugmenter(SpeechAugmentation(**noisy, reverb_chance=chance, reverb_seconds=(0.01, 0.01)))(
            silent, random(), 8000
        )[0][2000:]
        for chance in (0, 1)
    )
    np.testing.assert_allclose(dry, wet, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"speed": 0.9}, "speed is 0.9, expected 0 to 0.5"), ({"noise_snr_db": (20, 5)}, "the lower level first")],
)
def test_settings_beyond_reason_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        SpeechAugmentation(**settings)
