"""Pictures: a small convolutional autoencoder, whose grid of vectors is quantized.

Shapes: B pictures, C channels, H and W pixels, G cells of a side of the grid, L numbers of a code.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from training.codecs.base import Codec, batched
from training.codecs.options import Autoencoder, Source
from training.quantization import FiniteScalars


class AutoencoderCodec(Codec):
    """As VQ-VAE (van den Oord et al. 2017), with the lattice of `FiniteScalars`; each code stands for
    `reduction` pixels a side. It learns by the mean square error of pixels in [-1, 1]; codes stand row by
    row."""

    def __init__(self, source: Source, options: Autoencoder) -> None:
        super().__init__()
        self.source, self.options, self.alphabet = source, options, options.alphabet(source)
        halvings, self.grid = options.halvings(source), options.grid(source)
        self.padded = self.grid * 2**halvings
        self.quantizer = FiniteScalars(options.levels)
        # Twice as wide at half the size: most of the work lies where the pictures are large.
        widths = [source.channels, *(min(options.width * 2**n, 4 * options.width) for n in range(halvings))]
        numbers, widest = len(options.levels), widths[-1]
        down = [layer for pair in itertools.pairwise(widths) for layer in _halved(*pair)]
        up = [layer for pair in itertools.pairwise(widths[::-1]) for layer in _doubled(*pair)]
        self.encoder = nn.Sequential(*down, nn.Conv2d(widest, numbers, 1))
        self.decoder = nn.Sequential(nn.Conv2d(numbers, widest, 3, padding=1), *up)

    def fit(self, contents: Sequence[np.ndarray], log: Callable[[str], None] = print, seed: int = 0) -> None:
        pixels_BCHW = torch.from_numpy(np.stack(contents))
        self.learn(partial(self._loss, pixels_BCHW), len(contents), self.options.steps, log, seed)

    def _loss(self, pixels_BCHW: Tensor, rows: Tensor) -> Tensor:
        wanted = self._scaled(pixels_BCHW[rows])
        return functional.mse_loss(self._drawn(self.quantizer(self._numbers(wanted))), wanted)

    @torch.inference_mode()
    def encode(self, contents: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [codes for part in batched(contents) for codes in self._encode(torch.from_numpy(np.stack(part)))]

    def _encode(self, pixels_BCHW: Tensor) -> np.ndarray:
        codes_BGG = self.quantizer.codes(self._numbers(self._scaled(pixels_BCHW)))
        return codes_BGG.flatten(1).cpu().numpy()

    @torch.inference_mode()
    def decode(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [pixels for part in batched(codes) for pixels in self._decode(torch.from_numpy(np.stack(part)))]

    def _decode(self, codes_BK: Tensor) -> np.ndarray:
        numbers_BGGL = self.quantizer.numbers(codes_BK.to(self.device).unflatten(1, (self.grid, self.grid)))
        pixels_BCHW = (self._drawn(numbers_BGGL) + 1) * 127.5
        return pixels_BCHW.round().clamp(0, 255).to(torch.uint8).cpu().numpy()

    def _scaled(self, pixels_BCHW: Tensor) -> Tensor:
        return pixels_BCHW.to(self.device).float() / 127.5 - 1

    def _numbers(self, pixels_BCHW: Tensor) -> Tensor:
        """(B, G, G, L)"""
        more = self.padded - self.source.size
        padded = functional.pad(pixels_BCHW, (0, more, 0, more), mode="replicate") if more else pixels_BCHW
        return self.encoder(padded).permute(0, 2, 3, 1)

    def _drawn(self, numbers_BGGL: Tensor) -> Tensor:
        return self.decoder(numbers_BGGL.permute(0, 3, 1, 2))[..., : self.source.size, : self.source.size]


class _Block(nn.Module):
    """A residual convolution; normalised by picture, so that a picture's codes are its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(functional.silu(self.norm(x)))


def _halved(width: int, wider: int) -> list[nn.Module]:
    return [nn.PixelUnshuffle(2), nn.Conv2d(4 * width, wider, 3, padding=1), _Block(wider), nn.SiLU()]


def _doubled(width: int, narrower: int) -> list[nn.Module]:
    return [_Block(width), nn.SiLU(), nn.Conv2d(width, 4 * narrower, 3, padding=1), nn.PixelShuffle(2)]
