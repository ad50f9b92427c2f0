"""The language model reads the text as its own prompt; its embeddings of it are pooled for the fusion, too."""

from torch import Tensor, nn

from training.encoders.base import Encoder, all_real
from training.featurizers.base import FeatureShape
from training.layers import AttentionPool, ModelShape, positions


class LlmEncoder(Encoder):
    """The language model's own embeddings (B, S, features) of the prompt, pooled."""

    reads_prompt = True

    def __init__(self, source: FeatureShape, shape: ModelShape) -> None:
        super().__init__(source, shape)
        width, tokens, heads = shape.width, shape.tokens, shape.heads
        self.embed = nn.Linear(source.width, width)
        self.pool = AttentionPool(width, tokens, heads)

    def forward(self, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        assert mask is not None
        # Positions count from the first real token: a prompt is padded on the left.
        at_BS = (mask.long().cumsum(1) - 1).clamp(min=0)
        x_BSD = self.embed(values)
        x_BSD = x_BSD + positions(x_BSD.shape[1], x_BSD.shape[2], x_BSD.device).to(x_BSD.dtype)[at_BS]
        return all_real(self.pool(x_BSD, mask))
