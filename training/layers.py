"""Layers that encoders and fusions are built of.

Shapes: B rows, C channels, H and W pixels, S positions of a sequence, T tokens, D width.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import initialization


@dataclass(frozen=True)
class ModelShape:
    """The sizes that encoders and the fusion share."""

    width: int  # of a token
    tokens: int  # soft tokens of each modality
    heads: int  # of attention
    dropout: float = 0.0


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation (Ioffe & Szegedy 2015) that also takes a training batch of a single value."""

    def forward(self, input: Tensor) -> Tensor:
        single = self.training and input.numel() == input.shape[1]
        if not single:
            return super().forward(input)
        return functional.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class Convolution(nn.Module):
    """3x3 convolution, batch normalisation, ReLU. With a mask (B, H) of the rows of the result that are real, the
    others are zero and do not count for the normalisation: padding never matters."""

    def __init__(self, before: int, after: int, stride: tuple[int, int]) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm = BatchNorm(after)

    def forward(self, x_BCHW: Tensor, mask_BH: Tensor | None = None) -> Tensor:
        x_BCHW = self.convolution(x_BCHW)
        if mask_BH is None:
            return functional.relu(self.norm(x_BCHW), inplace=True)
        if torch.onnx.is_in_onnx_export():  # no shape of a graph is decided by values
            return functional.relu(self.norm(x_BCHW)) * mask_BH[:, None, :, None]
        x_BHCW = x_BCHW.transpose(1, 2)
        real_RCW = functional.relu(self.norm(x_BHCW[mask_BH][..., None]), inplace=True)[..., 0]
        return torch.zeros_like(x_BHCW).masked_scatter(mask_BH[..., None, None], real_RCW).transpose(1, 2)


class Block(nn.Module):
    """Transformer layer with normalisation first (Xiong et al. 2020); attends where the mask is true."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.rate = heads, dropout
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BSD: Tensor, mask_BS: Tensor | None = None) -> Tensor:
        qkv = self.qkv(self.attention_norm(x_BSD)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = None if mask_BS is None else mask_BS[:, None, None]
        rate = self.rate if self.training else 0.0
        attended = functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], bias, rate)
        x_BSD = x_BSD + self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
        return x_BSD + self.dropout(self.mlp(self.mlp_norm(x_BSD)))


class CrossAttention(nn.Module):
    """What a sequence reads of another one (B, C, D) where that one's mask is true; both are normalised first. Each row
    has at least one place to read."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.rate = heads, dropout
        self.norm, self.context_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BSD: Tensor, context_BCD: Tensor, mask_BC: Tensor) -> Tensor:
        query = self.query(self.norm(x_BSD)).unflatten(2, (self.heads, -1)).transpose(1, 2)
        key_value = self.key_value(self.context_norm(context_BCD)).unflatten(2, (2, self.heads, -1))
        key, value = key_value.permute(2, 0, 3, 1, 4)
        rate = self.rate if self.training else 0.0
        read = functional.scaled_dot_product_attention(query, key, value, mask_BC[:, None, None], rate)
        return self.dropout(self.out(read.transpose(1, 2).flatten(2)))


class Places(nn.Module):
    """What is added to the tokens (B, T, D) of a content for its place among several, or for its view, at first
    nothing."""

    def __init__(self, places: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(places, width))

    def reset_parameters(self) -> None:
        initialization.zeros_(self.weight)

    def forward(self, tokens_BTD: Tensor, places_B: Tensor) -> Tensor:
        return tokens_BTD + self.weight[places_B][:, None].to(tokens_BTD.dtype)


class SizedNorm(nn.RMSNorm):
    """Root mean square norm (Zhang and Sennrich 2019) whose results start at the size `size`, and learn another."""

    def __init__(self, width: int, size: float) -> None:
        self.size = size
        super().__init__(width, eps=1e-6)

    def reset_parameters(self) -> None:
        initialization.constant_(self.weight, self.size)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())  # as other norms are computed, also where the rest is bfloat16 (autocast)


class Readout(nn.Module):
    """A linear layer on what a sequence (B, S, D) says as a whole: the mean of its positions, each weighted by how much
    it is like a learned direction (Lin et al. 2017); at first, all the same."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.empty(width))
        self.linear = nn.Linear(width, outputs)

    def reset_parameters(self) -> None:
        initialization.zeros_(self.direction)

    def forward(self, x_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        weights_BS = (x_BSD @ self.direction).masked_fill(~mask_BS, -torch.inf).softmax(1)
        return self.linear((weights_BS[:, None] @ x_BSD)[:, 0])


class AttentionPool(nn.Module):
    """T learned queries that read a sequence of any length (Set Transformer's PMA, Lee et al. 2019)."""

    def __init__(self, width: int, tokens: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries = nn.Parameter(torch.empty(tokens, width))
        self.norm = nn.LayerNorm(width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def reset_parameters(self) -> None:
        initialization.normal_(self.queries)

    def forward(self, x_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        key, value = self.key_value(self.norm(x_BSD)).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query = self.queries.unflatten(1, (self.heads, -1)).transpose(0, 1).expand(x_BSD.shape[0], -1, -1, -1)
        pooled = functional.scaled_dot_product_attention(query, key, value, mask_BS[:, None, None])
        return self.out(pooled.transpose(1, 2).flatten(2))


def positions(length: int, width: int, device: torch.device) -> Tensor:
    """Sinusoidal position embeddings (length, width) of root mean square 0.7 (Vaswani et al. 2017)."""
    rates = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10_000.0) / width))
    angles = torch.arange(length, device=device)[:, None] * rates
    return torch.stack((angles.sin(), angles.cos()), dim=2).flatten(1)[:, :width]


def stretches(lengths_B: Tensor, positions: int, tokens: int) -> Tensor:
    """Weights (B, tokens, positions) that average `tokens` equal stretches of the first `lengths_B` positions.

    A position on a border counts for both sides by its share, so any length of at least 1 gives `tokens` averages.
    """
    at_S = torch.arange(positions, device=lengths_B.device, dtype=torch.float32)
    share_B = lengths_B[:, None, None].float() / tokens
    start_BT = torch.arange(tokens, device=lengths_B.device)[None, :, None] * share_B
    overlap_BTS = torch.minimum(at_S + 1, start_BT + share_B) - torch.maximum(at_S, start_BT)
    return overlap_BTS.clamp(min=0) / share_B


class SharedSpace(nn.Module):
    """What is read of a sequence (B, S, D) as directions in a space of `size` dimensions, divided by the square root of
    a learned temperature, so that products of two are cosines over the temperature (CLIP, Radford et al. 2021)."""

    least = 0.01  # temperature: below it a few hard pairs would decide all

    def __init__(self, width: int, size: int, temperature: float) -> None:
        super().__init__()
        self.readout = Readout(width, size)
        self.start = temperature
        self.log_temperature = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        initialization.constant_(self.log_temperature, math.log(self.start))

    def forward(self, x_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        temperature = self.log_temperature.clamp(min=math.log(self.least)).exp()
        return functional.normalize(self.readout(x_BSD, mask_BS).float(), dim=-1) * temperature.rsqrt()
