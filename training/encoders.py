"""Encoders: one modality's tensors to tokens that the fusion reads.

An encoder is a class here and a line in ENCODERS (and a name in `EncoderSettings`).

Shapes: B rows, C channels, H and W pixels, F frames, M features of a frame, L text tokens, T soft tokens, D width.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class Encoder(nn.Module):
    """Values and mask of one modality to tokens (B, tokens, width) and their mask (B, tokens), true where real.

    `size` is what the encoder must know of its input: channels of an image, features of a frame, vocabulary of a
    text, or for `llm` the width of the language model's embeddings.
    """

    def __init__(self, size: int, width: int, tokens: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.width = width

    def forward(self, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class ImageCnn(Encoder):
    """Pictures (B, C, H, W) of any size: convolutions that halve it until about 8 pixels are left, pooled to T cells."""

    def __init__(self, size: int, width: int, tokens: int, heads: int, dropout: float) -> None:
        super().__init__(size, width, tokens, heads, dropout)
        channels = max(16, width // 3)
        self.stem = nn.Conv2d(size, channels, 3, padding=1)
        self.down = nn.ModuleList([nn.Conv2d(channels, channels, 3, 2, 1), nn.Conv2d(channels, width, 3, 2, 1)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(channels), nn.BatchNorm2d(channels), nn.BatchNorm2d(width)])
        self.dropout = nn.Dropout(dropout)
        self.grid = _grid(tokens)

    def forward(self, values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        while values.shape[-1] > 64:
            values = functional.avg_pool2d(values, 2, ceil_mode=True)
        x_BDHW = functional.relu(self.norms[0](self.stem(values)))
        for convolution, norm in zip(self.down, list(self.norms)[1:], strict=True):
            x_BDHW = functional.relu(norm(convolution(x_BDHW)))
        x_BTD = functional.adaptive_avg_pool2d(x_BDHW, self.grid).flatten(2).transpose(1, 2)
        return self.dropout(x_BTD), x_BTD.new_ones(x_BTD.shape[:2], dtype=torch.bool)


class SpeechCnn(Encoder):
    """Frames (B, F, M) of any number: convolutions over time, pooled to T stretches of equal length."""

    def __init__(self, size: int, width: int, tokens: int, heads: int, dropout: float) -> None:
        super().__init__(size, width, tokens, heads, dropout)
        self.convolutions = nn.ModuleList(
            [nn.Conv1d(size, width, 5, 2, 2), nn.Conv1d(width, width, 5, 2, 2), nn.Conv1d(width, width, 3, 1, 1)]
        )
        self.norms = nn.ModuleList([nn.BatchNorm1d(width) for _ in range(3)])
        self.dropout = nn.Dropout(dropout)
        self.tokens = tokens

    def forward(self, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        assert mask is not None
        x_BDF = values.transpose(1, 2)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            # Padding is zero before every convolution, as if the recording ended there.
            x_BDF = convolution(x_BDF * mask[:, None])
            mask = mask[:, :: convolution.stride[0]]
            x_BDF = functional.relu(masked_batch_norm(x_BDF, mask, norm))
        x_BTD = stretches(mask.sum(1), mask.shape[1], self.tokens).to(x_BDF.dtype) @ x_BDF.transpose(1, 2)
        return self.dropout(x_BTD), x_BTD.new_ones(x_BTD.shape[:2], dtype=torch.bool)
