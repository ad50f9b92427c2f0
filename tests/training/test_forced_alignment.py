"""Forced alignment: torchaudio's path beside all paths there are, and words of recordings whose times are known."""

import io
import itertools
import math
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestration.examples import digits
from tests.training.tiny_ctc import make, save
from training import children
from training.forced_alignment import Aligner, best_path, best_spans
from training.media import MediaError
from training.recordings import decode_speech
from training.settings import MediaLimits
from training.spectra import resample

RATE = 16_000


def said(path: tuple[int, ...], blank: int) -> list[int]:
    """What a path says: repeated characters once, without blanks."""
    return [token for token, _ in itertools.groupby(path) if token != blank]


@given(
    st.integers(1, 6),
    st.lists(st.integers(1, 3), min_size=1, max_size=4),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, 2]),
)
def test_the_path_is_the_best_of_all_that_say_the_transcript(
    frames: int, targets: list[int], seed: int, blank: int
) -> None:
    targets = [target - (target <= blank) for target in targets]  # any but blank
    random = np.random.default_rng(seed)
    log_probs_TV = torch.from_numpy(random.standard_normal((frames, 4)).astype(np.float32)).log_softmax(-1)
    scores = {
        path: math.fsum(log_probs_TV[frame, token].item() for frame, token in enumerate(path))
        for path in itertools.product(range(4), repeat=frames)
        if said(path, blank) == targets
    }
    if not scores:
        with pytest.raises(MediaError, match=f"the recording has {frames}"):
            best_path(log_probs_TV, targets, blank)
        return
    path_T, scores_T = best_path(log_probs_TV, targets, blank)
    path, best = tuple(path_T.tolist()), max(scores.values())
    assert scores[path] == pytest.approx(best, abs=1e-5) and scores_T.sum().item() == pytest.approx(best, abs=1e-5)
    if sum(score > best - 1e-4 for score in scores.values()) == 1:
        assert path == max(scores, key=scores.__getitem__)
    spans = best_spans(log_probs_TV, targets, blank)
    for target, span in zip(targets, spans, strict=True):
        assert set(path[span.start : span.end]) == {target}
        assert span.score == pytest.approx(scores_T[span.start : span.end].exp().mean().item(), rel=1e-4)


def test_what_torchaudio_cannot_count_is_refused_before_it_crashes() -> None:
    with pytest.raises(MediaError, match="divide the recording") as refused:
        best_path(torch.zeros(1, 2).expand(60_000, 2), [1, 1] * 9_000, 0)
    assert refused.value.reason == "too_large"


# Models


@pytest.fixture(scope="module")
def aligner(tmp_path_factory) -> Aligner:
    return Aligner(save("wav2vec2", tmp_path_factory.mktemp("ctc")))


def noise(seconds: float, rate: int = RATE) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(round(seconds * rate)).astype(np.float32) / 10


@pytest.mark.parametrize("family", ["wav2vec2", "hubert", "wavlm", "wav2vec2-bert"])
def test_models_of_any_family_give_each_word_its_place(tmp_path: Path, family: str) -> None:
    aligner = Aligner(save(family, tmp_path))
    for seconds, rate in ((1.5, RATE), (1.5, 8000), (21.0, RATE)):  # the last one in two pieces
        words = aligner.align(noise(seconds, rate), rate, "One, TWO\nthree")
        assert [word.text for word in words] == ["One,", "TWO", "three"]
        times = [time for word in words for time in (word.start, word.end)]
        assert times == sorted(times) and times[0] >= 0 and times[-1] <= seconds
        assert all(word.start < word.end and 0 < word.score <= 1 for word in words if word.score is not None)


def test_pieces_of_a_long_recording_meet(aligner: Aligner) -> None:
    log_probs_TV, edges = aligner.emissions(noise(45), RATE)
    assert len(edges) == len(log_probs_TV) + 1 and edges[0] == 0 and edges[-1] == 45
    steps = np.diff(edges)
    assert (steps > 0).all() and np.abs(steps - 0.02).max() < 0.02  # a frame each
    assert torch.allclose(log_probs_TV[:, :-1].exp().sum(-1), torch.ones(len(log_probs_TV)), atol=1e-4)


def test_what_cannot_be_spelt(aligner: Aligner) -> None:
    words = aligner.align(noise(2), RATE, "— zero 7 «two» ! nine")
    assert [word.text for word in words] == ["— zero", "7", "«two» !", "nine"]
    assert [word.score is None for word in words] == [False, True, False, False]
    assert words[0].end <= words[1].start < words[1].end <= words[2].start
    for transcript, says in {"": "no character", " 42 – ": "no character", "three " * 40: "needs 279 frames"}.items():
        with pytest.raises(MediaError, match=says) as refused:
            aligner.align(noise(2), RATE, transcript)
        assert refused.value.reason == "not_aligned"
    with pytest.raises(MediaError, match="the recording has 3:"):
        aligner.align(noise(0.001), RATE, "one two three four five six")


def test_a_model_of_another_kind_is_no_ctc_model(aligner: Aligner, tmp_path: Path) -> None:
    network, extractor, written = make("wav2vec2", tmp_path)
    for part in (network.wav2vec2, extractor, written):
        part.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="was not trained by CTC: it has no lm_head"):
        Aligner(tmp_path)


# Spoken digits


VOICES, STEPS, WARMUP, RANDOM = 2, 500, 50, np.random.default_rng(0)


def takes() -> dict[tuple[str, str], dict[int, np.ndarray]]:
    """Each digit by voice and take, at RATE, from its first sound to its last."""
    spoken = subprocess.run(
        [sys.executable, "-P", "-m", "orchestration.examples.digits", "--speak"],
        env=children.environment(),
        capture_output=True,
        check=True,
    ).stdout
    voices, found = digits._SPEAKERS.split()[:VOICES], dict[tuple[str, str], dict[int, np.ndarray]]()
    with tarfile.open(fileobj=io.BytesIO(spoken)) as archive:
        for member in archive:
            digit, _, voice, take = member.name.removesuffix(".wav").split("_")
            if voice in voices:
                file = archive.extractfile(member)
                assert file is not None
                speech = decode_speech(file.read(), MediaLimits())
                waveform = resample(speech.waveform, speech.sample_rate, RATE)
                loud = np.flatnonzero(np.abs(waveform) > 0.02 * np.abs(waveform).max())
                found.setdefault((voice, take), {})[int(digit)] = waveform[loud[0] : loud[-1] + 1]
    return found


def joined(clips: list[dict[int, np.ndarray]], count: int) -> tuple[np.ndarray, str, np.ndarray]:
    """Digits of one voice with pauses between: waveform, transcript, and start and end of each word."""
    voice, parts, times, at = clips[RANDOM.integers(len(clips))], [], [], 0
    spoken = RANDOM.integers(0, 10, count).tolist()
    for digit in [*spoken, None]:
        pause = np.zeros(int(RANDOM.uniform(0.05, 0.4) * RATE), np.float32)
        word = voice[digit] if digit is not None else pause[:0]
        parts += [pause, word]
        times.append((at + len(pause), at + len(pause) + len(word)))
        at += len(pause) + len(word)
    noise = RANDOM.normal(0, 0.003, at).astype(np.float32)
    return np.concatenate(parts) + noise, " ".join(digits._WORDS[n] for n in spoken), np.array(times[:-1]) / RATE


@pytest.mark.slow
def test_a_small_model_finds_the_words_of_a_recording(tmp_path: Path) -> None:
    """Trained on two takes of each voice, it aligns a recording of 60 digits of the third takes: 9 of 10 words begin
    and end within 0.2 s of where they do, and all within 0.3 s. It is trained with label priors (Huang et al. 2024,
    https://arxiv.org/abs/2406.02560): without them a CTC model tells each digit some 0.2 s late."""
    network, extractor, written = make("wav2vec2-bert", tmp_path)
    clips = takes()
    known = [words for (_, take), words in clips.items() if take != "2"]

    def batch(count: int, rows: int) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
        spoken = [joined(known, count) for _ in range(rows)]
        read = extractor([waveform for waveform, _, _ in spoken], sampling_rate=RATE, return_tensors="pt")
        ids = [torch.tensor(written(transcript).input_ids) for _, transcript, _ in spoken]
        return (
            dict(read),
            torch.nn.utils.rnn.pad_sequence(ids, batch_first=True),
            torch.tensor([len(row) for row in ids]),
        )

    batches = {1: [batch(1, 8) for _ in range(30)], 3: [batch(3, 6) for _ in range(30)]}
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, STEPS)
    prior_V = torch.ones(network.config.vocab_size) / network.config.vocab_size
    for step in range(STEPS):
        read, labels, lengths = batches[1 if step < WARMUP else 3][step % 30]
        log_probs_BTV = network(**read).logits.log_softmax(-1)
        prior_V = 0.9 * prior_V + 0.1 * log_probs_BTV.detach().exp().mean((0, 1))
        scores_TBV = (log_probs_BTV - 0.3 * prior_V.log()).transpose(0, 1)
        frames = read["attention_mask"].sum(-1)
        loss = torch.nn.functional.ctc_loss(scores_TBV, labels, frames, lengths, zero_infinity=True)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    for part in (network.eval(), extractor, written):
        part.save_pretrained(tmp_path)
    waveform, transcript, times = joined([words for (_, take), words in clips.items() if take == "2"], 60)
    words = Aligner(tmp_path).align(waveform, RATE, transcript)
    off = np.abs(np.array([(word.start, word.end) for word in words]) - times)
    print("seconds off, start and end:", np.quantile(off, (0.5, 0.9, 1), axis=0).round(3).tolist())
    assert np.quantile(off, 0.9) < 0.2 and off.max() < 0.3
    even = np.linspace(0, len(waveform) / RATE, 61)  # what is known without a model
    assert np.quantile(np.abs(even[1:] - times[:, 1]), 0.9) > 0.3
