"""Small convolutional encoders, trained from scratch: of pictures, and of frames over time.

Shapes: B rows, C channels, H and W pixels, F frames, M features of a frame, T tokens, D width.
"""

import math

from torch import Tensor, nn
from torch.nn import functional

from training.encoders.base import Encoder, all_real
from training.featurizers.base import FeatureShape
from training.layers import Convolution, ModelShape, stretches


class SmallCnnGridEncoder(Encoder):
    """Pictures (B, C, H, W), halved until about 8 pixels are left; a token is one cell of a grid over the picture."""

    def __init__(self, source: FeatureShape, shape: ModelShape) -> None:
        super().__init__(source, shape)
        width, tokens, dropout = shape.width, shape.tokens, shape.dropout
        halvings = max(1, round(math.log2(source.size / 8) + 0.3))
        channels = [max(8, min(width // 6 * 2**n, width // 3 * 2)) for n in range(halvings + 1)]
        strides = [(1, 1)] + [(2, 2)] * halvings
        before = [source.width, *channels[:-1]]
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
        return all_real(self.dropout(self.projection(x_BTD)))


class SmallCnnFramesEncoder(Encoder):
    """Frames (B, F, M), by convolutions over time and frequency; a token is one of T stretches of equal length."""

    strides = ((2, 2), (2, 2), (1, 2))  # over time, over frequency

    def __init__(self, source: FeatureShape, shape: ModelShape) -> None:
        super().__init__(source, shape)
        width, dropout = shape.width, shape.dropout
        self.tokens = shape.tokens
        channels = [max(4, width // 12), max(8, width // 6), max(16, width // 3)]
        before = [1, *channels[:-1]]
        self.layers = nn.ModuleList(Convolution(*layer) for layer in zip(before, channels, self.strides, strict=True))
        features = math.ceil(source.width / 8)
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
        return all_real(self.dropout(self.projection(stretches_BTF @ x_BFD)))
