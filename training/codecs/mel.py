"""Speech: log-mel spectra, whose stretches of four frames a small autoencoder quantizes; the phases come from Griffin
and Lim.

Shapes: B recordings, N samples, T frames, M mel bands, F frequencies, S stretches, G codes of a stretch, L numbers of
a code.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from training.codecs.base import Codec, batched
from training.codecs.options import STRETCH, Mel, Source
from training.quantization import FiniteScalars

_FLOOR = 1e-4  # of the mel energies, of a recording whose loudest frame has about 1
_LEVEL = 0.1  # root mean square of what is said


class MelCodec(Codec):
    """Every four frames are `groups` codes, one after the other. Loudness goes: all is said at the same level."""

    bands_FM: Tensor
    unbands_MF: Tensor
    hann_N: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, source: Source, options: Mel) -> None:
        super().__init__()
        from torchaudio.functional import melscale_fbanks

        self.source, self.options, self.alphabet = source, options, options.alphabet(source)
        self.window = max(16, round(options.window_ms * source.rate / 1000))
        self.hop = options.hop(source)
        self.fft = 1 << (self.window - 1).bit_length()
        self.quantizer = FiniteScalars(options.levels)
        self.stretches = options.stretches(source)
        bands_FM = melscale_fbanks(self.fft // 2 + 1, 0.0, source.rate / 2, options.mels, source.rate, norm="slaney")
        self.register_buffer("bands_FM", bands_FM, persistent=False)
        self.register_buffer("unbands_MF", torch.linalg.pinv(bands_FM), persistent=False)
        self.register_buffer("hann_N", torch.hann_window(self.window), persistent=False)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("deviation", torch.ones(()))
        width, numbers = options.width, len(options.levels) * options.groups
        self.encoder = nn.Sequential(
            nn.Conv1d(options.mels, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv1d(width, width, 4, 2, 1),
            nn.SiLU(),
            nn.Conv1d(width, width, 4, 2, 1),
            nn.SiLU(),
            nn.Conv1d(width, numbers, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv1d(numbers, width, 3, padding=1),
            nn.SiLU(),
            nn.ConvTranspose1d(width, width, 4, 2, 1),
            nn.SiLU(),
            nn.Conv1d(width, width, 3, padding=1),
            nn.SiLU(),
            nn.ConvTranspose1d(width, width, 4, 2, 1),
            nn.SiLU(),
            nn.Conv1d(width, options.mels, 3, padding=1),
        )

    def fit(self, contents: Sequence[np.ndarray], log: Callable[[str], None] = print, seed: int = 0) -> None:
        spectra = [self._spectrum(content) for content in contents]
        frames = torch.cat(spectra)
        self.mean.copy_(frames.mean())
        self.deviation.copy_(frames.std().clamp(min=1e-3))
        self.learn(partial(self._loss, spectra), len(contents), self.options.steps, log, seed)

    def _loss(self, spectra: Sequence[Tensor], rows: Tensor) -> Tensor:
        """The mean absolute error of the frames that are there."""
        chosen = [spectra[n] for n in rows.tolist()]
        wanted_BMT = self._scaled(nn.utils.rnn.pad_sequence(chosen, batch_first=True, padding_value=self._silence))
        lengths_B = torch.tensor([len(spectrum) for spectrum in chosen], device=wanted_BMT.device)
        real_BT = torch.arange(wanted_BMT.shape[2], device=wanted_BMT.device) < lengths_B[:, None]
        told_BMT = self._told(self.quantizer(self._numbers(wanted_BMT)))
        errors = functional.l1_loss(told_BMT, wanted_BMT, reduction="none").mean(1)
        return (errors * real_BT).sum() / real_BT.sum()

    @torch.inference_mode()
    def encode(self, contents: Sequence[np.ndarray]) -> list[np.ndarray]:
        coded = []
        for content in contents:  # one by one: beside a longer one its end would read other frames
            numbers_SGL = self._numbers(self._scaled(self._spectrum(content)[None]))[0]
            coded.append(self.quantizer.codes(numbers_SGL).flatten().cpu().numpy())
        return coded

    @torch.inference_mode()
    def decode(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [self._said(torch.from_numpy(one)) for part in batched(codes) for one in part]

    @property
    def _silence(self) -> float:
        return float(np.log(_FLOOR))

    def _spectrum(self, waveform: np.ndarray) -> Tensor:
        """int16 (N,) to log-mel energies (T, M), T a multiple of four, of no more seconds than the codec has."""
        signal = torch.from_numpy(np.array(waveform)).to(self.device).float() / 32768
        signal = signal[: self.stretches * STRETCH * self.hop]
        frames = -(-max(1, len(signal)) // (self.hop * STRETCH)) * STRETCH
        # As many frames as hops, each in the middle of its own.
        signal = functional.pad(signal, (self.fft // 2, frames * self.hop - len(signal) + self.fft // 2))
        spectrum_FT = torch.stft(
            signal, self.fft, self.hop, self.window, self.hann_N, center=False, return_complex=True
        )[:, :frames].abs()
        mel_TM = spectrum_FT.T @ self.bands_FM
        loudest = mel_TM.mean(1).max()
        return (mel_TM / loudest.clamp(min=1e-8)).clamp(min=_FLOOR).log()

    def _scaled(self, spectra_BTM: Tensor) -> Tensor:
        """(B, M, T)"""
        return ((spectra_BTM - self.mean) / self.deviation).transpose(1, 2)

    def _numbers(self, spectra_BMT: Tensor) -> Tensor:
        """(B, S, G, L)"""
        return self.encoder(spectra_BMT).transpose(1, 2).unflatten(2, (self.options.groups, -1))

    def _told(self, numbers_BSGL: Tensor) -> Tensor:
        return self.decoder(numbers_BSGL.flatten(2).transpose(1, 2))

    def _said(self, codes_K: Tensor) -> np.ndarray:
        """int16 (N,); codes of a stretch that is not whole are left out."""
        from torchaudio.functional import griffinlim

        groups = self.options.groups
        codes_K = codes_K[: max(1, len(codes_K) // groups) * groups]
        whole = functional.pad(codes_K, (0, -len(codes_K) % groups)).to(self.device)
        numbers_SGL = self.quantizer.numbers(whole.unflatten(0, (-1, groups)))
        mel_TM = (self._told(numbers_SGL[None])[0].T * self.deviation + self.mean).exp()
        spectrum_FT = (mel_TM @ self.unbands_MF).clamp(min=0).T
        settings = {"power": 1.0, "n_iter": self.options.iterations, "momentum": 0.99, "length": None}
        # Phases that begin at zero, not by chance: the same codes are said the same.
        signal = griffinlim(
            spectrum_FT[None], self.hann_N, self.fft, self.hop, self.window, rand_init=False, **settings
        )[0]
        signal = signal * (_LEVEL / signal.square().mean().sqrt().clamp(min=1e-8))
        return (signal.clamp(-1, 1) * 32767).round().to(torch.int16).cpu().numpy()
