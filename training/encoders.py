"""Encoders: one modality's tensors to tokens that the fusion reads.

An encoder is a class here and a line in ENCODERS (and its name in `EncoderSettings`).

Shapes: B rows, C channels, H and W pixels, F frames, M features of a frame, S positions of a sequence, T soft tokens,
D width.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import initialization


@dataclass(frozen=True)
class EncoderInput:
    """What an encoder must know of its input before it sees any."""

    features: int  # channels of an image, features of a frame, vocabulary of a text, width of its embeddings (llm)
    size: int = 0  # height and width of an image


class Encoder(nn.Module):
    """Values and mask (B, S) of one modality to tokens (B, T, width) and their mask (B, T); a mask is true where real.

    Every row has at least one real position; what the mask hides never changes the result.
    """

    def __init__(self, source: EncoderInput, width: int, tokens: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.width = width
        self.tokens = tokens

    def forward(self, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


def _all_real(tokens_BTD: Tensor) -> tuple[Tensor, Tensor]:
    return tokens_BTD, tokens_BTD.new_ones(tokens_BTD.shape[:2], dtype=torch.bool)


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
        x_BHCW = x_BCHW.transpose(1, 2)
        real_RCW = functional.relu(self.norm(x_BHCW[mask_BH][..., None]), inplace=True)[..., 0]
        return torch.zeros_like(x_BHCW).masked_scatter(mask_BH[..., None, None], real_RCW).transpose(1, 2)


class ImageCnn(Encoder):
    """Pictures (B, C, H, W), halved until about 8 pixels are left; a token is one cell of a grid over the picture."""

    def __init__(self, source: EncoderInput, width: int, tokens: int, heads: int, dropout: float) -> None:
        super().__init__(source, width, tokens, heads, dropout)
        halvings = max(1, round(math.log2(source.size / 8) + 0.3))
        channels = [max(8, min(width // 6 * 2**n, width // 3 * 2)) for n in range(halvings + 1)]
        strides = [(1, 1)] + [(2, 2)] * halvings
        before = [source.features, *channels[:-1]]
        self.layers = nn.ModuleList(Convolution(*layer) for layer in zip(before, channels, strides, strict=True))
        rows = max(n for n in range(1, math.isqrt(tokens) + 1) if tokens % n == 0)
        self.grid = (rows, tokens // rows)
        self.projection = nn.Linear(4 * channels[-1], width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x_BCHW = values
        for layer in self.layers:
            x_BCHW = layer(x_BCHW)
        # A cell is four parts side by side, not their mean: where a stroke lies tells shapes apart.
        rows, columns = self.grid
        x_BCHW = functional.adaptive_avg_pool2d(x_BCHW, (2 * rows, 2 * columns))
        x = x_BCHW.unflatten(3, (columns, 2)).unflatten(2, (rows, 2))  # (B, C, rows, 2, columns, 2)
        x_BTD = x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return _all_real(self.dropout(self.projection(x_BTD)))


class SpeechCnn(Encoder):
    """Frames (B, F, M), by convolutions over time and frequency; a token is one of T stretches of equal length."""

    strides = ((2, 2), (2, 2), (1, 2))  # over time, over frequency

    def __init__(self, source: EncoderInput, width: int, tokens: int, heads: int, dropout: float) -> None:
        super().__init__(source, width, tokens, heads, dropout)
        channels = [max(4, width // 12), max(8, width // 6), max(16, width // 3)]
        before = [1, *channels[:-1]]
        self.layers = nn.ModuleList(Convolution(*layer) for layer in zip(before, channels, self.strides, strict=True))
        features = math.ceil(source.features / 8)
        self.projection = nn.Linear(channels[-1] * features, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        assert mask is not None
        x_BCFM = values[:, None]
        x_BCFM = x_BCFM * mask[:, None, :, None]
        for layer, (stride, _) in zip(self.layers, self.strides, strict=True):
            mask = mask[:, ::stride]
            x_BCFM = layer(x_BCFM, mask)
        stretches_BTF = stretches(mask.sum(1), mask.shape[1], self.tokens).to(x_BCFM.dtype)
        x_BFD = x_BCFM.transpose(1, 2).flatten(2)
        return _all_real(self.dropout(self.projection(stretches_BTF @ x_BFD)))


def stretches(lengths_B: Tensor, positions: int, tokens: int) -> Tensor:
    """Weights (B, tokens, positions) that average `tokens` equal stretches of the first `lengths_B` positions.

    A position on a border counts for both sides by its share, so any length of at least 1 gives `tokens` averages.
    """
    at_S = torch.arange(positions, device=lengths_B.device, dtype=torch.float32)
    share_B = lengths_B[:, None, None].float() / tokens
    start_BT = torch.arange(tokens, device=lengths_B.device)[None, :, None] * share_B
    overlap_BTS = torch.minimum(at_S + 1, start_BT + share_B) - torch.maximum(at_S, start_BT)
    return overlap_BTS.clamp(min=0) / share_B


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
        query = self.queries.unflatten(1, (self.heads, -1)).transpose(0, 1).expand(len(x_BSD), -1, -1, -1)
        pooled = functional.scaled_dot_product_attention(query, key, value, mask_BS[:, None, None])
        return self.out(pooled.transpose(1, 2).flatten(2))


class SequenceTransformer(Encoder):
    """Two transformer layers over a sequence (B, S, D) with sinusoidal positions (Vaswani et al. 2017), pooled."""

    def __init__(self, source: EncoderInput, width: int, tokens: int, heads: int, dropout: float) -> None:
        super().__init__(source, width, tokens, heads, dropout)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(2))
        self.pool = AttentionPool(width, tokens, heads)

    def encode(self, x_BSD: Tensor, mask_BS: Tensor) -> tuple[Tensor, Tensor]:
        x_BSD = x_BSD + positions(x_BSD.shape[1], x_BSD.shape[2], x_BSD.device).to(x_BSD.dtype)
        for block in self.blocks:
            x_BSD = block(x_BSD, mask_BS)
        return _all_real(self.pool(x_BSD, mask_BS))


class ImageTransformer(SequenceTransformer):
    """Patches of 4 pixels, or of an eighth of a larger picture (ViT, Dosovitskiy et al. 2021)."""

    def __init__(self, source: EncoderInput, width: int, tokens: int, heads: int, dropout: float) -> None:
        super().__init__(source, width, tokens, heads, dropout)
        self.patch = max(4, source.size // 8)
        self.embed = nn.Conv2d(source.features, width, self.patch, self.patch)

    def forward(self, values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        height, width = values.shape[2:]
        values = functional.pad(values, (0, -width % self.patch, 0, -height % self.patch))
        return self.encode(*_all_real(self.embed(values).flatten(2).transpose(1, 2)))


class SpeechTransformer(SequenceTransformer):
    """Four frames make one position."""

    stack = 4

    def __init__(self, source: EncoderInput, width: int, tokens: int, heads: int, dropout: float) -> None:
        super().__init__(source, width, tokens, heads, dropout)
        self.embed = nn.Linear(self.stack * source.features, width)

    def forward(self, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        assert mask is not None
        more = -values.shape[1] % self.stack
        values = functional.pad(values * mask[..., None], (0, 0, 0, more)).unflatten(1, (-1, self.stack)).flatten(2)
        return self.encode(self.embed(values), mask[:, :: self.stack])


class TextTransformer(SequenceTransformer):
    """Token ids (B, S) of the features' tokenizer."""

    def __init__(self, source: EncoderInput, width: int, tokens: int, heads: int, dropout: float) -> None:
        super().__init__(source, width, tokens, heads, dropout)
        self.embed = nn.Embedding(source.features, width)

    def forward(self, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        assert mask is not None
        return self.encode(self.embed(values), mask)


class LanguageModelText(Encoder):
    """The language model's own embeddings (B, S, features) of the prompt, pooled."""

    def __init__(self, source: EncoderInput, width: int, tokens: int, heads: int, dropout: float) -> None:
        super().__init__(source, width, tokens, heads, dropout)
        self.embed = nn.Linear(source.features, width)
        self.pool = AttentionPool(width, tokens, heads)

    def forward(self, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        assert mask is not None
        # Positions count from the first real token: a prompt is padded on the left.
        at_BS = (mask.cumsum(1) - 1).clamp(min=0)
        x_BSD = self.embed(values)
        x_BSD = x_BSD + positions(x_BSD.shape[1], x_BSD.shape[2], x_BSD.device).to(x_BSD.dtype)[at_BS]
        return _all_real(self.pool(x_BSD, mask))


def positions(length: int, width: int, device: torch.device) -> Tensor:
    """Sinusoidal position embeddings (length, width), scaled to the size of small embeddings."""
    rates = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10_000.0) / width))
    angles = torch.arange(length, device=device)[:, None] * rates
    return torch.stack((angles.sin(), angles.cos()), dim=2).flatten(1)[:, :width]


ENCODERS: dict[tuple[str, str], type[Encoder]] = {
    ("image", "small_cnn"): ImageCnn,
    ("image", "small_transformer"): ImageTransformer,
    ("speech", "small_cnn"): SpeechCnn,
    ("speech", "small_transformer"): SpeechTransformer,
    ("text", "small_transformer"): TextTransformer,
    ("text", "llm"): LanguageModelText,
}
