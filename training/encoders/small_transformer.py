"""Small transformers, trained from scratch: of pictures, of frames over time, of token ids.

Shapes: B rows, C channels, H and W pixels, F frames, M features of a frame, S positions, T tokens, D width.
"""

from torch import Tensor, nn
from torch.nn import functional

from training.encoders.base import Encoder, all_real
from training.featurizers.base import FeatureShape
from training.layers import AttentionPool, Block, ModelShape, positions


class _Sequence(Encoder):
    """Two transformer layers over a sequence (B, S, D) with sinusoidal positions (Vaswani et al. 2017), pooled."""

    def __init__(self, source: FeatureShape, shape: ModelShape) -> None:
        super().__init__(source, shape)
        width, tokens, heads, dropout = shape.width, shape.tokens, shape.heads, shape.dropout
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(2))
        self.pool = AttentionPool(width, tokens, heads)

    def encode(self, x_BSD: Tensor, mask_BS: Tensor) -> tuple[Tensor, Tensor]:
        x_BSD = x_BSD + positions(x_BSD.shape[1], x_BSD.shape[2], x_BSD.device).to(x_BSD.dtype)
        for block in self.blocks:
            x_BSD = block(x_BSD, mask_BS)
        return all_real(self.pool(x_BSD, mask_BS))


class SmallTransformerGridEncoder(_Sequence):
    """Patches of 4 pixels, or of an eighth of a larger picture (ViT, Dosovitskiy et al. 2021)."""

    def __init__(self, source: FeatureShape, shape: ModelShape) -> None:
        super().__init__(source, shape)
        self.patch = max(4, source.size // 8)
        self.embed = nn.Conv2d(source.width, shape.width, self.patch, self.patch)

    def forward(self, values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        height, width = values.shape[2:]
        values = functional.pad(values, (0, -width % self.patch, 0, -height % self.patch))
        return self.encode(*all_real(self.embed(values).flatten(2).transpose(1, 2)))


class SmallTransformerFramesEncoder(_Sequence):
    """Four frames make one position."""

    stack = 4

    def __init__(self, source: FeatureShape, shape: ModelShape) -> None:
        super().__init__(source, shape)
        self.embed: nn.Module = nn.Linear(self.stack * source.width, shape.width)

    def forward(self, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        assert mask is not None
        more = -values.shape[1] % self.stack
        values = functional.pad(values * mask[..., None], (0, 0, 0, more)).unflatten(1, (-1, self.stack)).flatten(2)
        return self.encode(self.embed(values), mask[:, :: self.stack])


class SmallTransformerVectorsEncoder(SmallTransformerFramesEncoder):
    """Each vector is a position. What is made of it is normalised: vectors may be small beside positions."""

    stack = 1

    def __init__(self, source: FeatureShape, shape: ModelShape) -> None:
        super().__init__(source, shape)
        self.embed = nn.Sequential(self.embed, nn.LayerNorm(shape.width))


class SmallTransformerIdsEncoder(_Sequence):
    """Token ids (B, S) of the features' tokenizer. New embeddings are a fortieth of the size of positions, which would
    drown them: normalised, a token is larger than its place."""

    def __init__(self, source: FeatureShape, shape: ModelShape) -> None:
        super().__init__(source, shape)
        self.embed = nn.Sequential(nn.Embedding(source.width, shape.width), nn.LayerNorm(shape.width))

    def forward(self, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        assert mask is not None
        return self.encode(self.embed(values), mask)
