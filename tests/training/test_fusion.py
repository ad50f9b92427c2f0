"""The formulas of x_m = f(e_t, e_v, e_s), against closed form and autograd; what is missing never counts."""

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.catalog import FUSIONS
from training.fusions.base import Fusion
from training.fusions.concat import ConcatFusion
from training.fusions.weighted import WeightedFusion
from training.layers import ModelShape, stretches

B, T, D = 5, 2, 8
KINDS = [*FUSIONS.names(), "own_kinds:OwnFusion"]


@pytest.fixture(autouse=True)
def importable(own_kinds: Path) -> None:
    """A user's own kind can be imported in all of these tests."""


def make(kind: str, modalities: int = 3) -> Fusion:
    torch.manual_seed(0)
    fusion = FUSIONS.make(FUSIONS.choose(kind), modalities, ModelShape(D, T, heads=2))
    fusion.reset_parameters()
    return fusion


def inputs(modalities: int = 3) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(B, modalities, T, D, requires_grad=True), torch.ones(B, modalities, T, dtype=torch.bool)


@pytest.mark.parametrize("modalities", [2, 3])
def test_weighted_average_starts_evenly(modalities: int) -> None:
    tokens, mask = inputs(modalities)
    torch.testing.assert_close(make("weighted", modalities)(tokens, mask), tokens.mean(1))


def test_gradients_of_the_weighted_average() -> None:
    fusion, (tokens, mask) = make("weighted"), inputs()
    assert isinstance(fusion, WeightedFusion)
    with torch.no_grad():
        fusion.raw_weight_N.copy_(torch.tensor([0.3, -1.0, 2.0]))
    weights = fusion.weights(mask.any(2)).detach()
    torch.testing.assert_close(weights.sum(1), torch.ones(B))
    x_m = fusion(tokens, mask)
    torch.testing.assert_close(x_m, sum(weights[:, n, None, None] * tokens[:, n] for n in range(3)))
    upstream = torch.randn_like(x_m)
    x_m.backward(upstream)
    # dL/de_v = a dL/dx_m
    assert tokens.grad is not None
    torch.testing.assert_close(tokens.grad[:, 1], weights[:, 1, None, None] * upstream)
    # dL/da_i = <dL/dx_m, e_i> for the normalised weight, then through a_i = s_i / sum s, s = softplus(raw)
    by_weight_N = torch.einsum("btd,bntd->n", upstream, tokens.detach())
    raw = fusion.raw_weight_N.detach()
    positive = torch.nn.functional.softplus(raw)
    share = positive / positive.sum()
    expected = torch.sigmoid(raw) / positive.sum() * (by_weight_N - (share * by_weight_N).sum())
    torch.testing.assert_close(fusion.raw_weight_N.grad, expected, rtol=1e-4, atol=1e-5)


def test_gradient_by_a_normalised_weight() -> None:
    fusion, (tokens, mask) = make("weighted"), inputs()
    normalised = torch.full((B, 3), 1 / 3, requires_grad=True)
    fusion.weights = lambda present: normalised  # type: ignore[assignment]
    x_m = fusion(tokens, mask)
    upstream = torch.randn_like(x_m)
    (gradient,) = torch.autograd.grad(x_m, normalised, upstream)
    torch.testing.assert_close(gradient, torch.einsum("btd,bntd->bn", upstream, tokens))


def test_weights_are_renormalised_over_what_is_present() -> None:
    fusion, (tokens, mask) = make("weighted"), inputs()
    assert isinstance(fusion, WeightedFusion)
    with torch.no_grad():
        fusion.raw_weight_N.copy_(torch.tensor([0.0, 1.0, 2.0]))
    mask[0, 1] = mask[1, :2] = mask[2] = False
    weights = fusion.weights(mask.any(2))
    whole = fusion.weights(torch.ones(1, 3, dtype=torch.bool))[0]
    torch.testing.assert_close(weights[0], torch.stack([whole[0], torch.tensor(0.0), whole[2]]) / (whole[0] + whole[2]))
    assert weights[1].tolist() == [0, 0, 1] and weights[2].tolist() == [0, 0, 0]
    torch.testing.assert_close(fusion(tokens, mask)[1], tokens[1, 2])  # the stand-ins start at zero


def test_concatenation_is_as_wide_as_its_parts_together() -> None:
    fusion, (tokens, mask) = make("concat"), inputs()
    assert isinstance(fusion, ConcatFusion)
    joined = fusion.concatenated(tokens, mask)
    assert joined.shape == (B, T, 3 * D)
    torch.testing.assert_close(joined, torch.cat([tokens[:, 0], tokens[:, 1], tokens[:, 2]], dim=-1))
    torch.testing.assert_close(fusion(tokens, mask), joined @ fusion.projection.weight.T + fusion.projection.bias)


@pytest.mark.parametrize("kind", KINDS)
def test_masked_garbage_never_changes_the_result(kind: str) -> None:
    fusion, (tokens, mask) = make(kind), inputs()
    torch.nn.init.normal_(fusion.stand_in_NTD)
    mask[0, 0] = mask[1, 1] = mask[2, :2] = mask[3] = False
    mask[4, 2, 1] = False  # a token of a modality that is there
    garbage = torch.where(mask[..., None], tokens, torch.tensor(float("nan")))
    x_m = fusion(tokens, mask)
    torch.testing.assert_close(fusion(garbage, mask), x_m, rtol=0, atol=0)
    assert x_m.isfinite().all()
    stand_in = fusion.stand_in_NTD.detach().clone()
    for n in range(3):  # and the stand-in of what is missing does
        with torch.no_grad():
            fusion.stand_in_NTD.copy_(stand_in)
            fusion.stand_in_NTD[n] += torch.linspace(-1, 1, D)  # the same for all would be lost in a normalisation
        changed = (fusion(tokens, mask) - x_m).abs().flatten(1).amax(1) > 1e-6
        assert changed.tolist() == (~mask.any(2)[:, n]).tolist()


@pytest.mark.parametrize("length", [1, 2, 3, 7, 12])
def test_stretches_share_every_position(length: int) -> None:
    weights = stretches(torch.tensor([length]), 12, 4)[0]
    torch.testing.assert_close(weights.sum(1), torch.ones(4))
    torch.testing.assert_close(weights.sum(0)[:length], torch.full((length,), 4 / length))
    assert weights[:, length:].abs().sum() == 0
    if length == 12:
        torch.testing.assert_close(weights[1], torch.tensor([0.0] * 3 + [1 / 3] * 3 + [0.0] * 6))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("modalities", [1, 2, 3, 4])
def test_x_m_is_as_long_whatever_is_there_and_gradients_reach_every_parameter(kind: str, modalities: int) -> None:
    fusion, rows = make(kind, modalities).train(), 2**modalities
    torch.manual_seed(1)
    tokens = torch.randn(rows, modalities, T, D, requires_grad=True)
    whole = fusion(tokens, torch.ones(rows, modalities, T, dtype=torch.bool))
    assert whole.ndim == 3 and whole.shape[0] == rows and whole.shape[2] == D
    present = torch.tensor(list(itertools.product([False, True], repeat=modalities)))  # every subset, none at all too
    mask = present[..., None].repeat(1, 1, T)
    x_m, read = fusion(tokens, mask), fusion.soft_mask(mask)
    assert x_m.shape == whole.shape and x_m.isfinite().all()
    assert read is None or (read.shape == x_m.shape[:2] and read.dtype == torch.bool and read.any(1).all())
    (x_m * torch.randn_like(x_m)).sum().backward()
    without = {"raw_weight_N"} if modalities == 1 else set()  # the weight of the only modality is 1
    waiting = [name for name, p in fusion.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert set(waiting) <= without
    assert tokens.grad is not None
    assert tokens.grad[mask].abs().sum() > 0 and tokens.grad[~mask].abs().sum() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_fusion_gives_the_same(kind: str, tmp_path: Path) -> None:
    fusion, (tokens, mask) = make(kind), inputs()
    mask[0, 0] = mask[1, 1] = False
    for p in fusion.parameters():
        torch.nn.init.normal_(p)
    save_file(fusion.state_dict(), tmp_path / "fusion.safetensors")
    other = make(kind)
    assert not torch.equal(other(tokens, mask), fusion(tokens, mask))
    other.load_state_dict(load_file(tmp_path / "fusion.safetensors"))
    torch.testing.assert_close(other(tokens, mask), fusion(tokens, mask), rtol=0, atol=0)
