"""Each fusion against the formula of its paper, written down here from the paper; its count of parameters; and what may
be reordered or left out without a change."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from training.catalog import FUSIONS
from training.fusions.base import Fusion
from training.layers import Block, CrossAttention, ModelShape

B, N, T, D, HEADS = 4, 3, 3, 8, 2
PAIRS = [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]
SET_LIKE = ("attention", "cross_attention", "bottleneck", "perceiver", "interleaved", "logit", "film")
BY_TOKEN = ("weighted", "concat", "gated", "tensor", "low_rank", "hybrid")


def make(kind: Any, modalities: int = N, tokens: int = T) -> Fusion:
    torch.manual_seed(0)
    fusion = FUSIONS.make(FUSIONS.choose(kind), modalities, ModelShape(D, tokens, HEADS))
    fusion.reset_parameters()
    for p in fusion.parameters():
        nn.init.normal_(p, std=0.5)  # none is at a value that hides a mistake
    return fusion


def inputs(modalities: int = N) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(B, modalities, T, D), torch.ones(B, modalities, T, dtype=torch.bool)


def norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + layer.eps).sqrt() * layer.weight + layer.bias


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q k / sqrt(d)) v of one row, head by head (Vaswani et al. 2017)."""
    heads = []
    for part in range(HEADS):
        columns = slice(part * D // HEADS, (part + 1) * D // HEADS)
        q, k, v = query[:, columns], key[:, columns], value[:, columns]
        heads.append((q @ k.T / math.sqrt(D / HEADS)).softmax(1) @ v)
    return torch.cat(heads, 1)


def transformer(block: Block, x_SD: Tensor) -> Tensor:
    query, key, value = (norm(block.attention_norm, x_SD) @ block.qkv.weight.T + block.qkv.bias).chunk(3, 1)
    x_SD = x_SD + attend(query, key, value) @ block.out.weight.T + block.out.bias
    return x_SD + block.mlp(norm(block.mlp_norm, x_SD))


def cross(layer: CrossAttention, x_SD: Tensor, context_CD: Tensor) -> Tensor:
    query = norm(layer.norm, x_SD) @ layer.query.weight.T + layer.query.bias
    key, value = (norm(layer.context_norm, context_CD) @ layer.key_value.weight.T + layer.key_value.bias).chunk(2, 1)
    return attend(query, key, value) @ layer.out.weight.T + layer.out.bias


def gated(f: Any, e_NTD: Tensor) -> Tensor:
    x_m = torch.zeros(T, D)
    for t in range(T):
        everything = torch.cat([e_NTD[n, t] for n in range(N)])
        for n in range(N):
            h = torch.tanh(f.hidden[n].weight @ e_NTD[n, t])
            z = torch.sigmoid(f.gate.weight[n * D : (n + 1) * D] @ everything)
            x_m[t] += z * h
    return x_m


def cross_attention(f: Any, e_NTD: Tensor) -> Tensor:
    x_NTD, layers = e_NTD + f.place_NTD, dict(zip(PAIRS, f.attend, strict=True))
    read = [x_NTD[n] + sum(cross(layers[n, m], x_NTD[n], x_NTD[m]) for m in range(N) if m != n) for n in range(N)]
    return torch.cat([transformer(block, x) for block, x in zip(f.blocks, read, strict=True)])


def bottleneck(f: Any, e_NTD: Tensor) -> Tensor:
    z, shared = list(e_NTD + f.place_NTD), f.bottleneck_XD
    for blocks in f.layers:
        said = []
        for n, block in enumerate(blocks):
            joined = transformer(block, torch.cat([z[n], shared]))
            z[n], own = joined[:T], joined[T:]
            said.append(own)
        shared = sum(said) / N
    return shared


def perceiver(f: Any, e_NTD: Tensor) -> Tensor:
    array, latents = (e_NTD + f.place_NTD).reshape(N * T, D), f.latent_XD
    for layer, block in zip(f.attend, f.blocks, strict=True):
        latents = transformer(block, latents + cross(layer, latents, array))
    return latents


def tensor(f: Any, e_NTD: Tensor) -> Tensor:
    rows = []
    for t in range(T):
        h = [torch.cat([f.narrow[n].weight @ e_NTD[n, t] + f.narrow[n].bias, torch.ones(1)]) for n in range(N)]
        product = torch.einsum("i,j,k->ijk", *h)  # (R + 1)^3
        weight = f.projection.weight.reshape(D, *product.shape)
        rows.append(torch.einsum("dijk,ijk->d", weight, product) + f.projection.bias)
    return torch.stack(rows)


def low_rank(f: Any, e_NTD: Tensor) -> Tensor:
    """As the tensor fusion that it stands for: W = sum over r of the outer product of the factors, written out."""
    factor_NRCD = torch.cat([f.factor_NRDD, f.constant_NRD[:, :, None]], dim=2)  # of [e, 1]
    weight = torch.einsum("rid,rjd,rkd->ijkd", *factor_NRCD)
    z_NTC = torch.cat([e_NTD, torch.ones(N, T, 1)], dim=2)
    product = torch.einsum("ti,tj,tk->tijk", *z_NTC)
    return torch.einsum("ijkd,tijk->td", weight, product) + f.bias_D


def film(f: Any, e_NTD: Tensor) -> Tensor:
    layers = dict(zip(PAIRS, f.condition, strict=True))
    out = []
    for n in range(N):
        gamma, beta = torch.ones(D), torch.zeros(D)
        for m in {0, 1, 2} - {n}:
            said = layers[n, m].weight @ (e_NTD[m].sum(0) / T) + layers[n, m].bias
            gamma, beta = gamma + said[:D], beta + said[D:]
        out.append(gamma * e_NTD[n] + beta)
    return torch.cat(out)


def side_by_side(f: Any, e_NTD: Tensor) -> Tensor:
    return torch.cat(list(e_NTD))


def hybrid(f: Any, e_NTD: Tensor) -> Tensor:
    """What is read together; what is read alone beside it: test_readings.py."""
    return torch.cat(list(e_NTD), dim=1) @ f.joint.projection.weight.T + f.joint.projection.bias


FORMULAS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "gated": gated,
    "cross_attention": cross_attention,
    "bottleneck": bottleneck,
    "perceiver": perceiver,
    "tensor": tensor,
    "low_rank": low_rank,
    "film": film,
    "interleaved": side_by_side,
    "logit": side_by_side,
    "hybrid": hybrid,
}


@pytest.mark.parametrize("kind", FORMULAS)
def test_the_formula_of_its_paper(kind: str) -> None:
    fusion, (tokens, mask) = make(kind), inputs()
    expected = torch.stack([FORMULAS[kind](fusion, row) for row in tokens])
    torch.testing.assert_close(fusion(tokens, mask), expected, rtol=1e-4, atol=1e-4)


LINEAR, NORM = D * D + D, 2 * D
BLOCK = 2 * NORM + 4 * LINEAR + (2 * D * D + 2 * D) + (2 * D * D + D)
CROSS = 2 * NORM + 4 * LINEAR
COUNTS: list[tuple[Any, int]] = [
    ("weighted", N),
    ("concat", N * D * D + D),
    ("gated", N * D * D + (N * D) ** 2),
    ("attention", N * T * D + BLOCK),
    ("cross_attention", N * T * D + N * (N - 1) * CROSS + N * BLOCK),
    ("bottleneck", N * T * D + 4 * D + 2 * N * BLOCK),
    ({"kind": "bottleneck", "tokens": 3, "layers": 1}, N * T * D + 3 * D + N * BLOCK),
    ("perceiver", N * T * D + 8 * D + 2 * (CROSS + BLOCK)),
    ({"kind": "perceiver", "latents": 5, "layers": 3}, N * T * D + 5 * D + 3 * (CROSS + BLOCK)),
    ("tensor", N * (8 * D + 8) + 9**N * D + D),
    ({"kind": "tensor", "width": 3}, N * (3 * D + 3) + 4**N * D + D),
    ("low_rank", 4 * N * (D + 1) * D + D),
    ({"kind": "low_rank", "rank": 2}, 2 * N * (D + 1) * D + D),
    ("film", N * (N - 1) * (2 * D * D + 2 * D)),
    ("logit", 0),
    ("hybrid", N * D * D + D),
    ({"kind": "hybrid", "joint": {"kind": "low_rank", "rank": 2}}, 2 * N * (D + 1) * D + D),
    ("interleaved", 0),
]


@pytest.mark.parametrize(("kind", "count"), COUNTS, ids=[str(kind) for kind, _ in COUNTS])
def test_count_of_parameters(kind: Any, count: int) -> None:
    counted = sum(p.numel() for p in make(kind).parameters())
    assert counted == N * T * D + count  # the stand-ins, and its own


def test_every_fusion_is_in_the_lists_of_this_file() -> None:
    assert {*SET_LIKE, *BY_TOKEN} == set(FUSIONS.names())
    assert FORMULAS.keys() | {"weighted", "concat", "attention"} == set(FUSIONS.names())  # these: test_fusion.py
    assert {kind if isinstance(kind, str) else kind["kind"] for kind, _ in COUNTS} == set(FUSIONS.names())


@pytest.mark.parametrize("kind", FUSIONS.names())
def test_rows_and_tokens_may_come_in_any_order(kind: str) -> None:
    """Rows never know one another. Tokens go with their places: then the order is that of x_m at most."""
    fusion, (tokens, mask) = make(kind), inputs()
    mask[0, 0] = mask[1, 1:] = mask[2] = mask[3, 2, 1] = False
    x_m, rows, order = fusion(tokens, mask), torch.tensor([2, 0, 3, 1]), torch.tensor([2, 0, 1])
    torch.testing.assert_close(fusion(tokens[rows], mask[rows]), x_m[rows], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        for name, p in fusion.named_parameters():
            if name.endswith("_NTD"):
                p.copy_(p[:, order])
    moved = fusion(tokens[:, :, order], mask[:, :, order])
    if kind in ("bottleneck", "perceiver"):
        expected = x_m
    elif kind in BY_TOKEN:
        expected = x_m[:, order]
    else:
        expected = x_m.unflatten(1, (N, T))[:, :, order].flatten(1, 2)
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", SET_LIKE)
def test_padding_is_as_if_it_were_not_there(kind: str) -> None:
    """What the language model reads of tokens of which the last is padding, and of one token less."""
    long, short, (tokens, mask) = make(kind), make(kind, tokens=T - 1), inputs()
    mask[:, :, -1] = False
    values = long.state_dict()
    values |= {name: value[:, :-1] for name, value in values.items() if name.endswith("_NTD")}
    short.load_state_dict(values)
    x_m, read = long(tokens, mask), long.soft_mask(mask)
    kept = x_m if read is None else x_m[read].unflatten(0, (B, -1))
    torch.testing.assert_close(kept, short(tokens[:, :, :-1], mask[:, :, :-1]), rtol=1e-4, atol=1e-5)


def test_crossmodal_attention_is_between_modalities_that_are_present() -> None:
    fusion, (tokens, mask) = make("cross_attention"), inputs()
    mask[:, 2] = False
    x_m = fusion(tokens, mask)
    with torch.no_grad():
        fusion.stand_in_NTD.add_(torch.randn(N, T, D))
    torch.testing.assert_close(fusion(tokens, mask)[:, : 2 * T], x_m[:, : 2 * T], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("fusion", "words"),
    [
        ({"kind": "hybrid", "joint": "logit"}, "fusion hybrid: joint is 'logit', expected a fusion that is not late"),
        ({"kind": "bottleneck", "layers": 0}, "fusion bottleneck: layers is 0, expected at least 1"),
        ({"kind": "perceiver", "latents": 0}, "fusion perceiver: latents is 0, expected at least 1"),
        ({"kind": "tensor", "width": 65}, "fusion tensor: width is 65, expected 1 to 64"),
        ({"kind": "low_rank", "rank": 0}, "fusion low_rank: rank is 0, expected at least 1"),
        ({"kind": "low_rank", "width": 2}, "fusion low_rank has no option 'width'; there are rank"),
    ],
)
def test_wrong_options_are_named(fusion: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FUSIONS.choose(fusion)
