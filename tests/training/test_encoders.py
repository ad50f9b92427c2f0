"""Encoders one by one; `test_model.py` has them inside the model."""

import pytest
import torch

from training.encoders.small_cnn import SmallCnnFramesEncoder
from training.encoders.small_transformer import SmallTransformerFramesEncoder
from training.featurizers.base import FeatureShape
from training.layers import AttentionPool, ModelShape


@pytest.mark.parametrize("kind", [SmallCnnFramesEncoder, SmallTransformerFramesEncoder])
def test_padding_never_matters_in_training_either(kind: type) -> None:
    torch.manual_seed(0)
    encoder = kind(FeatureShape("frames", 40), ModelShape(96, 2, 4)).train()
    for module in encoder.modules():
        if isinstance(module, AttentionPool):  # else its queries are whatever lay in memory
            module.reset_parameters()
    frames, mask = torch.randn(8, 40, 40), torch.arange(40) < torch.tensor([40, 39, 25, 7, 1, 40, 2, 11])[:, None]
    expected, _ = encoder(frames, mask)
    padding = torch.full((8, 2000, 40), 5.0)
    tokens, _ = encoder(torch.cat([frames, padding], 1), torch.cat([mask, torch.zeros(8, 2000, dtype=torch.bool)], 1))
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-4)
