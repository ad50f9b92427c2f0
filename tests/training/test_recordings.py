"""No recording falls silent or loses a part without a word: channels, joined files, headers without an end."""

import io
import struct
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from training.media import MediaError
from training.recordings import Speech, decode_speech
from training.settings import MediaLimits

LIMITS = MediaLimits()
RATE = 8000
VOICE = (0.4 * np.sin(np.arange(4000) ** 1.3 / 40)).astype(np.float32)
HIGH = (0.4 * np.sin(2 * np.pi * 1500 * np.arange(6000) / RATE)).astype(np.float32)
NOISE = (0.02 * np.random.default_rng(0).normal(size=(4000, 4))).astype(np.float32)


def audio(samples: Any, format: str = "WAV", subtype: str | None = None, rate: int = RATE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.asarray(samples), rate, format=format, subtype=subtype)
    return buffer.getvalue()


def decoded(*channels: np.ndarray) -> Speech:
    speech = decode_speech(audio(np.stack(channels, axis=1)), LIMITS)
    assert (speech.channels, speech.frames, len(speech.waveform)) == (len(channels), 4000, 4000)
    return speech


# A plain WAV, which is read without libsndfile


@given(
    values=st.lists(st.integers(-(2**15), 2**15 - 1), min_size=1, max_size=99),
    rate=st.sampled_from([1000, 8000, 48000]),
)
def test_a_plain_wav_is_what_libsndfile_makes_of_it(values: list[int], rate: int) -> None:
    data = audio(np.array(values, np.int16), subtype="PCM_16", rate=rate)
    expected, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    speech = decode_speech(data, LIMITS)
    np.testing.assert_array_equal(speech.waveform, expected)
    assert (speech.format, speech.sample_rate, speech.channels, speech.frames) == ("WAV", rate, 1, len(values))
    assert speech.warnings == (() if any(values) else ("silence: every sample is zero",))


@given(at=st.integers(0, 43), value=st.integers(0, 255))
def test_a_header_that_says_otherwise_is_left_to_libsndfile(at: int, value: int) -> None:
    data = bytearray(audio(VOICE, subtype="PCM_16"))
    is_same, data[at] = data[at] == value, value
    try:
        speech = decode_speech(bytes(data), LIMITS)
    except MediaError:
        assert not is_same
        return
    expected, _ = soundfile.read(io.BytesIO(bytes(data)), dtype="float32", always_2d=True)
    if speech.channels == 1 and not speech.warnings:
        np.testing.assert_array_equal(speech.waveform, expected[:, 0])


# Channels


def test_channels_are_averaged_where_they_have_a_signal() -> None:
    silent, faint = np.zeros_like(VOICE), NOISE[:, 0] * 1e-3
    assert np.abs(decoded(VOICE, NOISE[:, 0]).waveform - (VOICE + NOISE[:, 0]) / 2).max() < 1e-4
    for others in ([silent], [silent, silent + 0.25], [faint], []):
        speech = decoded(*others, VOICE, VOICE)
        assert np.abs(speech.waveform - VOICE).max() < 1e-3
        assert speech.warnings == ()
    assert "silence" in decoded(silent, silent).warnings[0]


@pytest.mark.parametrize(
    ("channels", "taken"),
    [
        ((VOICE, -VOICE), 1),
        ((-0.5 * VOICE, VOICE), 2),  # in part
        ((VOICE + NOISE[:, 0], -VOICE + NOISE[:, 1] / 2), 1),  # what is left of it is noise
        ((VOICE, 0 * VOICE, -VOICE), 1),
        ((0.5 * VOICE, -VOICE, 0.5 * VOICE), 2),
        ((VOICE + 0.5, -VOICE - 0.5), 1),
    ],
)
def test_channels_that_cancel_each_other_are_not_averaged(channels: tuple[np.ndarray, ...], taken: int) -> None:
    speech = decoded(*channels)
    assert np.abs(speech.waveform - channels[taken - 1]).max() < 1e-4
    assert speech.warnings == (f"the channels cancel each other: channel {taken} of {len(channels)} taken alone",)


def test_microphones_that_hear_different_noise_are_averaged() -> None:
    speech = decoded(*(0.1 * VOICE + noise for noise in NOISE.T))
    assert speech.warnings == ()
    assert np.abs(speech.waveform - (0.1 * VOICE + NOISE.mean(axis=1))).max() < 1e-4


# Joined


def heard(speech: Speech) -> list[bool]:
    """Whether the first half second and the end are the voice, and the tone of 1,500 Hz."""
    spectrum = np.abs(np.fft.rfft(speech.waveform[-4000:]))
    return [len(speech.waveform) > 9000, abs(np.argmax(spectrum) / 4000 * RATE - 1500) < 20]


@pytest.mark.parametrize(
    ("format", "subtype"),
    [
        ("MP3", None), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("FLAC", None), ("WAV", None), ("AIFF", None),
        ("AU", None), ("CAF", None), ("W64", None), ("RF64", None),
    ],
)  # fmt: skip
def test_joined_recordings_are_decoded_one_after_the_other(format: str, subtype: str | None) -> None:
    first, second = audio(VOICE, format, subtype), audio(HIGH, format, subtype)
    assert decode_speech(first, LIMITS).warnings == ()
    speech = decode_speech(first + second, LIMITS)
    assert heard(speech) == [True, True]
    parts = [decode_speech(data, LIMITS).waveform for data in (first, second)]
    assert np.array_equal(speech.waveform, np.concatenate(parts))
    assert speech.frames == len(speech.waveform)
    assert speech.warnings == ("2 recordings are joined in this file: decoded one after the other",)
    with pytest.raises(MediaError, match=r"1\.2 s are over the limit of 1\.0: raise limits\.max_seconds"):
        decode_speech(first + second, MediaLimits(max_seconds=1.0))


TAG = b"TAG" + b" " * 125
ID3 = b"ID3\x04\0\0\0\0\x02\0" + bytes(256)
APE = b"APETAGEX" + struct.pack("<IIIIQ", 2000, 32 + 4, 1, 0, 0) + b"\xff\xfb" * 2 + b"APETAGEX" + bytes(24)


def uncounted(data: bytes) -> bytes:
    """An MP3 whose first frame does not count the others."""
    return data.replace(b"Xing", bytes(4)).replace(b"Info", bytes(4))


@pytest.mark.parametrize("between", [b"", TAG, ID3, APE, TAG + ID3, bytes(500)])
@pytest.mark.parametrize("counted", [(True, True), (True, False), (False, True), (False, False)])
def test_mp3_goes_on_behind_tags(between: bytes, counted: tuple[bool, bool]) -> None:
    parts = [audio(VOICE, "MP3"), audio(HIGH, "MP3")]
    first, second = (data if count else uncounted(data) for data, count in zip(parts, counted, strict=True))
    speech = decode_speech(ID3 + first + between + second + TAG, LIMITS)
    assert heard(speech) == [True, True]
    assert bool(speech.warnings) == any(counted)  # frames that nothing counts are one stream


def test_tags_alone_are_no_other_recording() -> None:
    data = audio(VOICE, "MP3")
    junk = b"\xff\xfb\x90\xc4 looks like a frame, and none follows it"
    for around in (ID3 + data, data + TAG, data + APE, ID3 + data + APE + TAG, data + bytes(300), ID3 + junk + data):
        speech = decode_speech(around, LIMITS)
        assert (speech.frames, speech.warnings) == (4000, ())


def test_a_joined_recording_that_does_not_fit_is_said() -> None:
    first = audio(VOICE, "MP3")
    other_rate = decode_speech(first + audio(HIGH, "MP3", rate=16000), LIMITS)
    assert (other_rate.frames, other_rate.sample_rate) == (4000, RATE)
    assert "without number 2 (it has 16000 Hz, the first 8000)" in other_rate.warnings[0]
    broken = bytearray(audio(VOICE, "FLAC") + audio(HIGH, "FLAC"))
    broken[-500:] = bytes(500)
    assert "without number 2 (the audio is damaged" in decode_speech(bytes(broken), LIMITS).warnings[0]


# Headers that were never finished


def unfinished(format: str) -> bytes:
    data = bytearray(audio(VOICE, format, "PCM_16"))
    place = data.find(b"data")
    if format == "WAV":
        data[4:8] = data[place + 4 : place + 8] = bytes(4)
    elif format == "RF64":
        data[20:36] = bytes(16)
    elif format == "CAF":
        data[place + 4 : place + 12] = b"\xff" * 8
    elif format == "AU":
        data[8:12] = bytes(4)
    return bytes(data)


@pytest.mark.parametrize("format", ["WAV", "RF64", "CAF", "AU"])
def test_a_recording_that_was_never_finished_is_decoded(format: str) -> None:
    speech = decode_speech(unfinished(format), LIMITS)
    assert np.abs(speech.waveform - VOICE).max() < 1e-4
    assert "4000 frames decoded: the recording was never finished" in speech.warnings[-1]


def test_a_stream_of_unknown_length_is_decoded_and_an_empty_one_is_not() -> None:
    data = bytearray(audio(VOICE, "WAV", "PCM_16"))
    data[4:8] = data[40:44] = b"\xff" * 4
    speech = decode_speech(bytes(data), LIMITS)
    assert (speech.frames, "4000 frames decoded" in speech.warnings[0]) == (4000, True)
    empty = audio(np.zeros(0, np.float32), "WAV", "PCM_16")
    for none in (empty, empty + b"LIST" + struct.pack("<I", 4) + b"INFO"):
        with pytest.raises(MediaError) as caught:
            decode_speech(none, LIMITS)
        assert caught.value.reason == "no_samples"


def test_an_mp3_of_changing_bit_rate_that_counts_no_frames_is_not_cut() -> None:
    """libsndfile guesses the length from the first frame."""
    data = uncounted(audio(np.concatenate([0 * HIGH, *([HIGH, VOICE] * 3)]), "MP3"))
    for before in (b"", ID3, ID3 + b"\xff\xfb\x90\xc4 looks like a frame, and none follows it"):
        speech = decode_speech(before + data, LIMITS)
        assert speech.sample_rate == RATE
        assert 36_000 <= speech.frames < 39_000
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        assert file.frames < 30_000 or file.frames > 40_000
