"""Whisper's and Kaldi's log-mel spectra, held against the libraries that define them."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from training.filterbanks import kaldi_fbank, whisper_mel

RECORDINGS = (
    Path(os.environ.get("TRIPTYCH_SHARED", Path(__file__).parents[3] / "shared" / "data"))
    / "spoken_digits"
    / "recordings.tar"
)


def of_whisper(waveform: np.ndarray, mels: int) -> np.ndarray:
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(feature_size=mels)
    features = extractor(waveform, sampling_rate=16000, return_tensors="np")["input_features"][0]
    return features.T[: -(-len(waveform) // 160)]


def of_kaldi(waveform: np.ndarray, rate: int, mels: int) -> np.ndarray:
    import torch
    from torchaudio.compliance.kaldi import fbank

    scaled = torch.from_numpy(waveform)[None] * 2**15
    return fbank(scaled, num_mel_bins=mels, sample_frequency=rate, dither=0.0).numpy()


@settings(max_examples=8)
@given(samples=st.integers(1, 20_000), mels=st.sampled_from([80, 128]), seed=st.integers(0, 99), loud=st.booleans())
def test_whispers_as_transformers_makes_it(samples: int, mels: int, seed: int, loud: bool) -> None:
    waveform = np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)
    if loud:  # at the end, where only a frame that is left out has it in its middle
        waveform[:-1] *= 1e-4
    made = whisper_mel(waveform, mels)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, of_whisper(waveform, mels), atol=2e-4)


@settings(max_examples=25)
@given(
    samples=st.integers(1200, 20_000),
    rate=st.sampled_from([8000, 16000, 22050, 44100]),
    mels=st.sampled_from([23, 40, 80]),
    seed=st.integers(0, 99),
)
def test_kaldis_as_torchaudio_makes_it(samples: int, rate: int, mels: int, seed: int) -> None:
    waveform = (0.05 + np.random.default_rng(seed).normal(0, 0.1, samples)).astype(np.float32)
    made = kaldi_fbank(waveform, rate, mels)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, of_kaldi(waveform, rate, mels), atol=2e-3)


def test_short_silent_and_long_recordings_have_frames() -> None:
    for waveform in (np.zeros(1, np.float32), np.zeros(399, np.float32), np.ones(150, np.float32)):
        for made in (whisper_mel(waveform, 80), kaldi_fbank(waveform, 16000, 80)):
            assert len(made) >= 1 and np.isfinite(made).all()
    minute = np.random.default_rng(0).normal(0, 0.1, 60 * 16000).astype(np.float32)  # more than one portion
    made = kaldi_fbank(minute, 16000, 40)
    assert made.shape == (1 + (60 * 16000 - 400) // 160, 40)
    np.testing.assert_allclose(made, of_kaldi(minute, 16000, 40), atol=2e-3)


@pytest.mark.skipif(not RECORDINGS.is_file(), reason=f"no file {RECORDINGS} (set TRIPTYCH_SHARED)")
def test_on_real_recordings() -> None:
    import soxr

    with tarfile.open(RECORDINGS) as archive:
        members = [member for member in archive if member.isfile()][::60]
        for member in members:
            waveform, rate = soundfile.read(io.BytesIO(archive.extractfile(member).read()), dtype="float32")
            np.testing.assert_allclose(kaldi_fbank(waveform, rate, 40), of_kaldi(waveform, rate, 40), atol=2e-3)
            faster = soxr.resample(waveform, rate, 16000)
            np.testing.assert_allclose(whisper_mel(faster, 80), of_whisper(faster, 80), atol=2e-4)
    assert len(members) >= 20
