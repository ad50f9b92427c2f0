"""What filters measure of contents, worked out by hand."""

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from training.catalog import FILTERS
from training.images import Image
from training.language import clean_text
from training.media import MediaError
from training.modalities.speech import SpeechModality
from training.recordings import Speech, decode_speech
from training.settings import MediaLimits, TextCleaning
from training.spans import SECOND, span

RATE = 16_000


def measured(modality, kind, content):
    return FILTERS.make(FILTERS.choose(kind, modality), scope=modality).measure(content)


def picture(grey_HW):
    array = np.repeat(np.asarray(grey_HW, np.uint8)[..., None], 3, axis=2)
    return Image(array, "PNG", "RGB", array.shape[1], array.shape[0])


def text(raw):
    return clean_text(raw, TextCleaning())


def speech(waveform, rate=RATE):
    return Speech(np.asarray(waveform, np.float32), rate, "WAV", 1, len(waveform))


def decoded(tmp_path, *channels, subtype="PCM_16"):
    path = tmp_path / "channels.wav"
    soundfile.write(path, np.stack(channels, axis=1), RATE, subtype=subtype)
    return decode_speech(path.read_bytes(), MediaLimits())


@pytest.mark.parametrize(
    ("grey", "brightness", "contrast"),
    [
        ([[0, 0], [0, 0]], 0, 0),
        ([[255, 255], [255, 255]], 1, 0),
        ([[0, 255], [255, 0]], 0.5, 0.5),
        ([[51, 102]], 0.3, 0.1),
    ],
)
def test_brightness_is_the_mean_luminance_and_contrast_its_standard_deviation(grey, brightness, contrast):
    assert measured("image", "brightness", picture(grey)) == pytest.approx(brightness)
    assert measured("image", "contrast", picture(grey)) == pytest.approx(contrast)


def tone(seconds, pitch=220, rate=RATE):
    return np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)


@pytest.mark.parametrize("pitch", [40, 220, 900])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_U8"])
def test_a_wave_that_reaches_full_scale_is_not_clipped_and_one_that_is_cut_off_is(tmp_path, pitch, subtype):
    whole, cut = tone(1, pitch), np.clip(3 * tone(1, pitch), -1, 1)
    assert measured("speech", "clipping", decoded(tmp_path, whole, subtype="PCM_16")) < 0.003
    share = (np.abs(cut) == 1).mean()
    assert measured("speech", "clipping", decoded(tmp_path, cut, subtype=subtype)) == pytest.approx(share, abs=0.1)


def test_one_clipped_channel_is_found_before_the_channels_are_mixed_and_in_the_part_that_it_is_in(tmp_path):
    left, right = 0.1 * tone(2, 330), 0.1 * tone(2)
    left[RATE:] = np.clip(20 * left[RATE:], -1, 1)
    mixed = decoded(tmp_path, left, right)
    share = (np.abs(left) == 1).mean()
    assert measured("speech", "clipping", mixed) == pytest.approx(share, abs=0.01)
    assert measured("speech", "clipping", speech(mixed.waveform)) == 0, "the mean of the channels does not say it"
    parts = [mixed.part(cut) for cut in (span(0, SECOND), span(SECOND, 2 * SECOND))]
    assert measured("speech", "clipping", parts[0]) == 0
    assert measured("speech", "clipping", parts[1]) == pytest.approx(2 * share, abs=0.01)


@given(block=st.integers(1, 50), runs=st.lists(st.tuples(st.integers(1, 6), st.booleans()), max_size=12))
def test_what_is_clipped_does_not_depend_on_how_it_is_read(block, runs):
    from training.levels import Channels, clipped

    frames = [(1.0 if is_full else 0.2) for length, is_full in runs for _ in range(length)] + [0.0, 0.1]
    both_FC = np.stack([np.array(frames, np.float32), np.linspace(0, 0.5, len(frames), dtype=np.float32)], axis=1)
    channels = Channels(2)
    for start in range(0, len(both_FC), block):
        part_FC = both_FC[start : start + block]
        channels.add(part_FC, part_FC.mean(axis=1))
    by_hand, place = np.zeros(len(frames), bool), 0
    merged = "".join("x" if value == 1.0 else "." for value in frames)
    for run in merged.replace(".", " . ").split():
        place = merged.index(run, place)
        by_hand[place : place + len(run)] = "x" in run and len(run) >= 3
        place += len(run)
    assert channels.clipped.tolist() == clipped(both_FC).tolist() == by_hand.tolist()


@pytest.mark.parametrize(
    ("gains", "balance"), [((1, 1), 0), ((1, 0.1), 20), ((0.5, 1, 0.5), 6.02), ((1, 0), 120), ((0, 0), 0), ((0.5,), 0)]
)
def test_channel_balance_is_what_the_quietest_channel_lies_below_the_loudest(tmp_path, gains, balance):
    content = decoded(tmp_path, *(gain * 0.9 * tone(1, 200 + 90 * n) for n, gain in enumerate(gains)), subtype="FLOAT")
    assert SpeechModality().describe(content)["channel_balance"] == pytest.approx(balance, abs=0.05)


def test_silence_is_the_share_below_60_db():
    waveform = np.concatenate([np.zeros(RATE), 0.0005 * tone(1), 0.002 * tone(2)])  # -66 dB and -54 dB
    assert measured("speech", "silence", speech(waveform)) == pytest.approx(0.5, abs=0.01)
    assert measured("speech", "silence", speech([0.5])) == 0


@pytest.mark.parametrize("planted", [0, 10, 20, 30])
def test_planted_noise_below_sounds_with_pauses_is_found(planted):
    random = np.random.default_rng(planted)
    clean = np.concatenate([part for n in range(5) for part in (tone(0.6, 200 + n), np.zeros(RATE // 3))])
    noise = random.standard_normal(len(clean))
    noise *= np.sqrt(np.mean(clean**2) / np.mean(noise**2) / 10 ** (planted / 10))
    found = measured("speech", "signal_to_noise", speech(0.1 * (clean + noise)))
    assert found == pytest.approx(planted, abs=1)


def test_without_noise_the_ratio_is_at_its_end_and_without_any_sound_there_is_none():
    assert measured("speech", "signal_to_noise", speech(np.concatenate([tone(1), np.zeros(RATE)]))) == 100
    assert measured("speech", "signal_to_noise", speech(np.full(RATE, 0.1))) == -20
    with pytest.raises(MediaError, match="neither signal nor noise"):
        measured("speech", "signal_to_noise", speech(np.zeros(RATE)))


def test_speech_is_heard_where_something_sounds_like_it():
    buzz = sum(tone(1, 130 * k) / k for k in range(1, 12)) * (1 + tone(1, 4)) / 8
    waveform = np.concatenate([buzz, np.zeros(RATE), buzz, np.zeros(RATE)])
    assert measured("speech", "speech_share", speech(waveform)) == pytest.approx(0.5, abs=0.15)
    assert measured("speech", "speech_share", speech(np.zeros(RATE))) == 0


@pytest.mark.parametrize(
    ("raw", "share"),
    [
        ("one two three four five", 0),
        ("ab " * 10, 0.5),  # the run at the second word has stood before, that at the seventh is cut off
        ("a b c d e. A, b, c, d, e!", 0.5),  # case and punctuation are no matter
        ("a b c d e f a b c d e f", 5 / 12),
        ("thank you very much " * 5, 0.75),
    ],
)
def test_repetition_is_the_share_said_before_in_runs_of_five_words(raw, share):
    assert measured("text", "repetition", text(raw)) == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize(
    ("raw", "share"),
    [
        ("plain words, \t½ m² 今天 🙂 café", 0),
        ("soft\u00adhyphen", 0),
        ("sch\ufffdn", 0.2),
        ("ab\x00\x01", 0.5),
        ("schÃ¶n", 0),  # cleaning has repaired it
        ("\ue000\ue001xx", 0.5),
    ],
)
def test_encoding_is_the_share_of_characters_that_are_none(raw, share):
    assert measured("text", "encoding", text(raw)) == pytest.approx(share)


@given(raw=st.text(min_size=1))
def test_shares_of_any_text_lie_within_0_and_1(raw):
    try:
        content = text(raw)
    except MediaError:
        return
    for kind in ("encoding", "repetition"):
        assert 0 <= measured("text", kind, content) <= 1
