"""When each word of a transcript is said: forced alignment of a recording by a CTC model of Hugging Face.

The model says of each frame how probable each character is; of all ways to spread the characters of the transcript over
the frames the most probable one is taken (Viterbi; `torchaudio.functional.forced_align`, after Kürzinger et al. 2020,
CTC-Segmentation, https://arxiv.org/abs/2007.09127). A word begins with the first frame of its first character and ends
with the last one of its last; a CTC model tends to tell a character in fewer frames than it lasts.

Shapes: T frames, V characters of the model's vocabulary, L characters of the transcript.
"""

import functools
import itertools
import re
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from training.device import chosen_device
from training.media import MediaError
from training.model_files import digest
from training.preprocessing import loading
from training.spectra import resample

if TYPE_CHECKING:
    from torch import Tensor

_PIECE, _CONTEXT = 20, 2  # seconds that go through the model at once, and those beside them that it hears, too
_MOST_CELLS = 2**31  # frames times states (2 L + 1): torchaudio counts them in 32 bits, and crashes on more
_SHORTEST = 0.1  # seconds that a model reads; a shorter recording is filled up with silence
_loading = threading.Lock()
_SAID = re.compile(r"\w")


class Word(NamedTuple):
    text: str  # as the transcript has it
    start: float  # seconds
    end: float
    score: float | None  # mean probability of its characters, 0 to 1; null: the model can spell none of them


class Aligner:
    """A CTC model (Wav2Vec2ForCTC, HubertForCTC, ...) with its preprocessing and tokenizer, in eval mode and float32,
    on an accelerator where there is one."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError where the folder holds no such model."""
        import torch
        from transformers import AutoFeatureExtractor, AutoModelForCTC, AutoTokenizer

        with loading(folder, "speech as characters (CTC)"):
            self._extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=False)
            self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            model, found = AutoModelForCTC.from_pretrained(
                folder, trust_remote_code=False, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
            if lacking := [key for key in found["missing_keys"] if not key.startswith(f"{model.base_model_prefix}.")]:
                raise ValueError(f"it was not trained by CTC: it has no {lacking[0]}")
        self._device = chosen_device()
        self._network = model.eval().requires_grad_(False).to(self._device)
        self._blank = int(model.config.pad_token_id)
        self._delimiter = getattr(self._tokenizer, "word_delimiter_token_id", None)
        self._unspelled = {self._blank, self._delimiter, *self._tokenizer.all_special_ids}

    def align(self, waveform: np.ndarray, rate: int, transcript: str) -> list[Word]:
        """Each word of a transcript, in order. Characters that the model does not know are passed over; a word of such
        is given what is left between its neighbours, and one without letters or digits stands with the word before it.

        Args:
            waveform: float32 (samples,), mono.
            rate: Hz.

        Raises:
            MediaError: no word can be spelt, the transcript is too long for the recording, or both for the memory.
        """
        words = [(word, self._spelled(word)) for word in words_of(transcript)]
        if not any(ids for _, ids in words):
            raise MediaError("not_aligned", "the transcript has no character that the model knows: correct it")
        log_probs_TV, edges = self.emissions(waveform, rate)
        star = log_probs_TV.shape[1] - 1
        targets, owners = list[int](), list[int | None]()
        for number, (_, ids) in enumerate(words):
            divided = [self._delimiter] if number and self._delimiter is not None else []
            targets += [*divided, *(ids or [star])]
            owners += [*([None] * len(divided)), *([number] * len(ids or [star]))]
        spans = best_spans(log_probs_TV, targets, self._blank)
        spans_of: list[list[Span]] = [[] for _ in words]
        for span, owner in zip(spans, owners, strict=True):
            if owner is not None:
                spans_of[owner].append(span)
        aligned = []
        for (word, ids), own in zip(words, spans_of, strict=True):
            frames = sum(span.end - span.start for span in own)
            score = sum(span.score * (span.end - span.start) for span in own) / frames if ids else None
            aligned.append(Word(word, float(edges[own[0].start]), float(edges[own[-1].end]), score))
        return aligned

    def emissions(self, waveform: np.ndarray, rate: int) -> tuple["Tensor", np.ndarray]:
        """float32 (T, V + 1) logarithms of probabilities, and float64 (T + 1,) seconds at which the frames begin and
        the last one ends. The last column stands for whatever the model cannot spell, as probable as can be."""
        import torch

        own = self._extractor.sampling_rate
        waveform = resample(waveform, rate, own)
        seconds = len(waveform) / own
        waveform = np.pad(waveform, (0, max(0, round(_SHORTEST * own) - len(waveform))))
        parts, edges = [], []
        with torch.inference_mode():
            for start in range(0, len(waveform), _PIECE * own):
                first, end = max(0, start - _CONTEXT * own), start + _PIECE * own
                piece = waveform[first : end + _CONTEXT * own]
                read = self._extractor(piece, sampling_rate=own, return_tensors="pt").to(self._device)
                (logits_TV,) = self._network(**read).logits
                begin_T = first + np.arange(len(logits_TV)) * (len(piece) / len(logits_TV))
                middle_T = begin_T + len(piece) / len(logits_TV) / 2
                kept_T = (middle_T >= start) & (middle_T < end)  # the others are those of the pieces beside it
                parts.append(logits_TV.log_softmax(-1).cpu()[torch.from_numpy(kept_T)])
                edges.append(begin_T[kept_T])
        edges_T = np.concatenate([*edges, [len(waveform)]]) / own
        return torch.nn.functional.pad(torch.cat(parts), (0, 1)), np.minimum(edges_T, seconds)

    def _spelled(self, word: str) -> list[int]:
        """The characters of a word that the model knows, in the case in which it knows most."""
        forms = [
            self._tokenizer(form, add_special_tokens=False).input_ids for form in (word, word.upper(), word.lower())
        ]
        return max(([id for id in ids if id not in self._unspelled] for ids in forms), key=len)


def load_aligner(folder: Path) -> Aligner:
    """The aligner of a model; the same object each time. Raises ValueError where the folder holds no such model."""
    with _loading:  # threads would each load it
        return _load(folder, digest(folder))


@functools.lru_cache(maxsize=2)
def _load(folder: Path, content: str) -> Aligner:
    return Aligner(folder)


class Span(NamedTuple):
    """The frames in which a character is said."""

    start: int
    end: int
    score: float  # mean probability


def best_spans(log_probs_TV: "Tensor", targets: Sequence[int], blank: int) -> list[Span]:
    """Where each character lies in the most probable path.

    Args:
        log_probs_TV: float32 (T, V) on the CPU.
        targets: L characters, none of them blank.

    Raises:
        MediaError: there is no such path, or it does not fit in memory.
    """
    from torchaudio.functional import merge_tokens

    path_T, scores_T = best_path(log_probs_TV, targets, blank)
    if len(path_T) == 1:  # which `merge_tokens` cannot read
        return [Span(0, 1, scores_T.exp().item())]
    spans = [Span(span.start, span.end, span.score) for span in merge_tokens(path_T, scores_T.exp(), blank)]
    assert len(spans) == len(targets)
    return spans


def best_path(log_probs_TV: "Tensor", targets: Sequence[int], blank: int) -> tuple["Tensor", "Tensor"]:
    """The most probable path, int32 (T,), and the logarithm of the probability of each of its steps, float32 (T,);
    arguments and errors as `best_spans`."""
    import torch
    from torchaudio.functional import forced_align

    frames = len(log_probs_TV)
    needed = len(targets) + sum(a == b for a, b in itertools.pairwise(targets))  # a blank between equals
    if needed > frames:
        raise MediaError(
            "not_aligned",
            f"the transcript needs {needed} frames of the model and the recording has {frames}: it is not of this "
            "recording, or that is cut off",
        )
    if frames * (2 * len(targets) + 1) > _MOST_CELLS:
        raise MediaError(
            "too_large", f"{frames} frames and {len(targets)} characters are too many: divide the recording"
        )
    path_BT, scores_BT = forced_align(log_probs_TV[None], torch.tensor([targets], dtype=torch.int32), blank=blank)
    return path_BT[0], scores_BT[0]


def words_of(transcript: str) -> list[str]:
    """Those between blanks, as they are aligned."""
    return glued(transcript.split())


def glued(parts: Iterable[str]) -> list[str]:
    """Parts of a transcript, of which those without letters or digits stand with the one before them."""
    found: list[str] = []
    for part in parts:
        if found and not (_SAID.search(part) and _SAID.search(found[-1])):
            found[-1] += f" {part}"
        else:
            found.append(part)
    return found
