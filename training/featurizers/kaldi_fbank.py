"""Kaldi's filter banks, for encoders that expect those."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from training.featurizers.whisper_mel import FilterbankFeaturizer
from training.filterbanks import kaldi_fbank
from training.validation import FORBID_EXTRA, check

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class KaldiFbankOptions:
    __pydantic_config__ = FORBID_EXTRA
    mels: int = 80
    sample_rate: int = 16000  # Hz
    max_seconds: float = 30.0  # longer speech is cut, with a warning in the clean table
    standardise: bool = (
        True  # each recording to mean 0 and variance 1, when it is read: networks need it, tables do not
    )

    def __post_init__(self) -> None:
        check(1 <= self.mels <= 256, "mels", self.mels, "1 to 256")
        check(1000 <= self.sample_rate <= 192000, "sample_rate", self.sample_rate, "1000 to 192000 Hz")
        check(self.max_seconds > 0, "max_seconds", self.max_seconds, "a positive number")


class KaldiFbankFeaturizer(FilterbankFeaturizer):
    described = "Kaldi's filter bank"
    version = 1
    read = "kaldi_fbank"
    at_batch = ("standardise",)
    Options = KaldiFbankOptions

    def __init__(self, options: KaldiFbankOptions) -> None:
        super().__init__(options)
        self.sample_rate = options.sample_rate

    def spectrum(self, waveform: np.ndarray) -> np.ndarray:
        return kaldi_fbank(waveform, self.options.sample_rate, self.options.mels)

    def batch(self, rows: Sequence[np.ndarray | None]) -> "tuple[Tensor, Tensor]":
        if self.options.standardise:
            rows = [None if row is None else (row - row.mean()) / max(float(row.std()), 1e-5) for row in rows]
        return super().batch(rows)
