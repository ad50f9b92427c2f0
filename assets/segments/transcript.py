"""Recordings cut into the sentences or words of their transcripts, which a CTC model finds in them."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from assets.segments.base import Segments, numbered
from assets.sources.base import Entry
from training.forced_alignment import Word, glued, load_aligner, words_of
from training.model_files import digest, model_folder
from training.recordings import Speech
from training.spans import SECOND, span
from training.validation import check

UNITS = ("sentences", "words")
_ENDS = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])\s*|\s*\n\s*")  # of sentences


class TranscriptSegments(Segments):
    """Each sentence or word of a recording's transcript is a segment, and stands in its attributes as `text`.

    Its key is that of the recording and its number, `call7/1`. A recording whose transcript cannot be aligned is
    refused, segment by segment.
    """

    modality = "speech"
    own_keys = True
    version = 1
    packages = ("torch", "torchaudio", "transformers", "soxr")
    located = ("model",)

    @dataclass(frozen=True, kw_only=True)
    class Options:
        model: str = ""  # name or folder of a CTC model of Hugging Face, such as facebook/wav2vec2-base-960h
        text: str = "text"  # column of the source's table that holds the transcripts
        unit: str = UNITS[0]
        padding: float = 0.1  # seconds before and behind, up to the middle of what lies between two segments

        def __post_init__(self) -> None:
            check(self.unit in UNITS, "unit", self.unit, f"one of {', '.join(UNITS)}")
            check(self.padding >= 0, "padding", self.padding, "0 or more seconds")

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        check(options.model != "", "model", options.model, "the name or folder of a CTC model of Hugging Face")

    def identity(self) -> Any:
        return digest(self._folder)

    def entries(self, listed: Iterator[Entry], name: str, root: Path) -> Iterator[Entry]:
        for entry in listed:
            if entry.reason is not None:
                yield entry
                continue
            values = json.loads(entry.attributes)
            transcript = values.pop(self.options.text, "").strip()
            units = self._units(transcript)
            if units:
                yield from numbered(entry, name, values, units)
            else:
                yield entry.refuse("absent", f"column {self.options.text!r} has no transcript of it")

    def cuts(self, content: Speech, words: Sequence[str] = ()) -> Sequence[str]:
        said = load_aligner(self._folder).align(content.waveform, content.sample_rate, " ".join(words))
        stretches = [(own[0].start, own[-1].end) for own in _divided(said, words)]
        middles = [(end + start) / 2 for (_, end), (start, _) in pairwise(stretches)]
        ends, most = [0.0, *middles, content.seconds], self.options.padding
        return [
            span(round(max(start - most, ends[n]) * SECOND), round(min(end + most, ends[n + 1]) * SECOND))
            for n, (start, end) in enumerate(stretches)
        ]

    def _units(self, transcript: str) -> list[str]:
        if self.options.unit == "words":
            return words_of(transcript)
        return glued(filter(None, map(str.strip, _ENDS.split(transcript))))

    @property
    def _folder(self) -> Path:
        return model_folder(self.options.model)


def _divided(words: Sequence[Word], units: Sequence[str]) -> Iterator[Sequence[Word]]:
    """The words of each unit."""
    at = 0
    for unit in units:
        count = len(words_of(unit))
        yield words[at : at + count]
        at += count
    assert at == len(words)
