"""A linear model of the inputs' vectors, which answers beside the language model.

Of few rows a regularised linear model learns as much as any from what a pretrained encoder says, and a deep one more
where there is more to learn; neither tells beforehand, and the two err in different places. So both answer, and how
much each counts is measured on rows that trained neither (linear opinion pools of logits: Genest & Zidek 1986; wide
beside deep: Cheng et al. 2016).

Shapes: B rows, C contents, S vectors of one, M features of all modalities side by side, N modalities, K logits.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from training.outputs.linear import LinearOutput

Batches = Iterable[Mapping[str, Tensor]]

# How freely the weights may fit, for rows of mean length 1: 1 / (n * strength) weighs their squares in the loss.
_STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
_PRIOR = 0.25  # deviation of the share from a half, before anything is measured
_SHARES = tuple(n / 10 for n in range(11))
_TEMPERATURES = (0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 5.0)
_STEPS = 100  # of L-BFGS, at most


class LinearModel(nn.Module):
    """Logits (B, K) of the mean vector of each modality that a row has, standardised, and of which it has.

    Until it is fitted it has no share in any answer.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    share: Tensor

    def __init__(self, widths: Mapping[str, int], outputs: int) -> None:
        """Args: `widths` of the modalities' vectors."""
        super().__init__()
        self.widths = dict(widths)
        size = sum(widths.values())
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("weight", torch.zeros(outputs, size + len(widths)))
        self.register_buffer("bias", torch.zeros(outputs))
        self.register_buffer("share", torch.zeros(outputs))

    def forward(self, means_BM: Tensor, has_BN: Tensor) -> tuple[Tensor, Tensor]:
        """What it says, and its share (B, K) in the answer: none where a row has no vector at all."""
        said_BK = nn.functional.linear(self.read(means_BM, has_BN), self.weight, self.bias)
        return said_BK, self.share * has_BN.any(1, keepdim=True)

    def shares(self, output: LinearOutput) -> dict[str, float]:
        """In each of the output's parts."""
        of = self.share.split([part.width for part in output.parts.values()])
        return {name: float(share[0]) for name, share in zip(output.parts, of, strict=True)}

    def pooled(self, present: Mapping[str, Tensor], features: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The mean vectors (B, M) of a batch, zero where a row lacks them, and which it has (B, N).

        Args:
            present: by modality, whether each row has it (B,).
            features: as `FusionModel.encode` takes them.
        """
        means, has = [], []
        for modality, width in self.widths.items():
            there_B, values, mask_CS = present[modality], features[modality], features[f"{modality}_mask"]
            rows_C = features.get(f"{modality}_rows", torch.arange(there_B.shape[0], device=values.device))
            mask_CS = mask_CS & there_B[rows_C, None]
            sum_BM = torch.zeros(there_B.shape[0], width, device=values.device)
            if torch.onnx.is_in_onnx_export() or there_B.any():  # else its values are of no width
                sum_BM.index_add_(0, rows_C, torch.where(mask_CS[..., None], values, 0).sum(1).float())
            count_B = sum_BM.new_zeros(there_B.shape[0]).index_add(0, rows_C, mask_CS.sum(1).float())
            means.append(sum_BM / count_B.clamp(min=1)[:, None])
            has.append(there_B)
        return torch.cat(means, 1), torch.stack(has, 1)

    def read(self, means_BM: Tensor, has_BN: Tensor) -> Tensor:
        """(B, M + N): standardised, zero where there is nothing; each modality's has the mean length 1 where it is."""
        x_BM = (means_BM - self.mean) / self.scale
        parts = zip(x_BM.split(list(self.widths.values()), 1), has_BN.unbind(1), strict=True)
        return torch.cat([*(torch.where(has_B[:, None], x, 0) for x, has_B in parts), has_BN.to(x_BM.dtype)], 1)

    def standardise(self, rows: "Rows") -> None:
        """Takes over mean and deviation of each feature, of the rows that have it."""
        means = rows.means_BM.split(list(self.widths.values()), 1)
        there = [mean_BM[has_B] for mean_BM, has_B in zip(means, rows.has_BN.unbind(1), strict=True)]
        self.mean.copy_(torch.cat([x.sum(0) / max(1, len(x)) for x in there]))
        of = [x.var(0, correction=0).sqrt() if len(x) > 1 else x.new_ones(x.shape[1]) for x in there]
        # A feature that is always the same says nothing, however little it moves elsewhere.
        self.scale.copy_(torch.cat([torch.where(s > 1e-6, s, torch.inf) * len(s) ** 0.5 for s in of]))


class Rows(NamedTuple):
    """What a linear model is fitted on."""

    means_BM: Tensor
    has_BN: Tensor
    targets: Tensor
    deep_BK: Tensor  # what the rest of the model says

    def and_more(self, more: "Rows") -> "Rows":
        return Rows(*map(torch.cat, zip(self, more, strict=True)))

    def half_hidden(self) -> "Rows":
        """The rows, and once more those that have several modalities, with half of these hidden: so each modality's
        weights learn to answer by themselves, too."""
        drawn = np.random.default_rng(0).random(self.has_BN.shape)
        kept_BN = torch.from_numpy(drawn >= np.minimum(0.5, drawn.max(1, keepdims=True))).to(self.has_BN.device)
        some = (self.has_BN & kept_BN).any(1) & (self.has_BN & ~kept_BN).any(1)
        return self.and_more(self._replace(has_BN=self.has_BN & kept_BN).of(some))

    def of(self, chosen_B: Tensor) -> "Rows":
        return Rows(*(part[chosen_B] for part in self))


@torch.no_grad()
def fit_linear(model: Any, train: Batches, validation: Batches, share: float | None) -> Callable[[], None]:
    """Fits the linear model of `model` on the training rows, for each of the output's parts with the strength and the
    share (unless that is given) that make the validation rows most likely. Without validation rows nothing tells a
    share: only a given one is taken.

    Returns:
        What fits it once more, by the same strengths and shares, on all rows: after calibration, which needs rows that
        it has not seen.

    Args:
        train, validation: batches of a `Collator`, with labels.
    """
    linear, output = model.linear, model.output
    fitted_on, held_out = _rows(model, train), _rows(model, validation)
    if fitted_on is None or (held_out is None and share is None):
        return lambda: None
    linear.standardise(fitted_on)
    strengths = dict.fromkeys(output.parts, _STRENGTHS[len(_STRENGTHS) // 2])
    shares = dict.fromkeys(output.parts, share)
    if held_out is not None:
        x = linear.read(held_out.means_BM, held_out.has_BN)
        said = {s: nn.functional.linear(x, *weights) for s, weights in _fits(linear, fitted_on, output, _STRENGTHS)}
        told = {s: output.parted(said_BK, held_out.targets) for s, said_BK in said.items()}
        deep = output.parted(held_out.deep_BK, held_out.targets)
        for name, part in output.parts.items():
            _, deep_RK, wanted = deep[name]
            if len(wanted):
                losses = {s: float(part.loss(told[s][name][1], wanted)) for s in _STRENGTHS}
                strengths[name] = min(losses, key=lambda tried: losses[tried])
            if share is None:
                shares[name] = best_share(part, deep_RK, told[strengths[name]][name][1], wanted)
    widths = [part.width for part in output.parts.values()]
    for of_part, found in zip(linear.share.split(widths), shares.values(), strict=True):
        of_part.fill_(found)

    @torch.no_grad()
    def fit_on(rows: Rows) -> None:
        fits = dict(_fits(linear, rows, output, sorted(set(strengths.values()))))
        begun = 0
        for width, strength in zip(widths, strengths.values(), strict=True):
            of = slice(begun, begun := begun + width)
            linear.weight[of], linear.bias[of] = (found[of] for found in fits[strength])

    fit_on(fitted_on)
    return (lambda: None) if held_out is None else partial(fit_on, fitted_on.and_more(held_out))


def _rows(model: Any, batches: Batches) -> Rows | None:
    """None: there is none."""
    found = None
    for batch in batches:
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        has = dict(zip(model.config.modalities, batch["present"].unbind(1), strict=True))
        # Of several answers the written one has its targets behind the others.
        of = model.output.target_width
        targets = batch["labels"] if of is None else batch["labels"][:, :of]
        deep_BK = model(**batch).logits[:, : model.output.width].float()
        means_BM, has_BN = model.linear.pooled(has, batch)
        rows = Rows(means_BM, has_BN, targets, deep_BK)
        found = rows if found is None else found.and_more(rows)
    return found


def _fits(
    linear: LinearModel, rows: Rows, output: LinearOutput, strengths: Sequence[float]
) -> Iterator[tuple[float, tuple[Tensor, Tensor]]]:
    """Weights (K, M + N) and bias (K,) of the least loss and squares of the weights, for each strength."""
    rows = rows.half_hidden()
    x = linear.read(rows.means_BM, rows.has_BN)
    # All that rows say of weights lies in the space that they span: of few rows, a small one.
    axes = torch.linalg.svd(x, full_matrices=False).Vh if len(x) < x.shape[1] else None
    x = x if axes is None else x @ axes.T
    weight, bias = x.new_zeros(output.width, x.shape[1]), x.new_zeros(output.width)
    for strength in strengths:  # from the stiffest on, each from where the last one ended
        weight, bias = _least(x, rows.targets, output, weight, bias, 1 / (2 * len(x) * strength))
        yield strength, (weight if axes is None else weight @ axes, bias)


@torch.enable_grad()
def _least(
    x: Tensor, targets: Tensor, output: LinearOutput, weight: Tensor, bias: Tensor, penalty: float
) -> tuple[Tensor, Tensor]:
    found = [weight.clone().requires_grad_(), bias.clone().requires_grad_()]
    # Ten steps are remembered, not a hundred: of many classes each is as large as the model.
    solver = torch.optim.LBFGS(found, max_iter=_STEPS, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> Any:
        solver.zero_grad()
        value = output.loss(nn.functional.linear(x, *found), targets) + penalty * found[0].square().sum()
        value.backward()
        return value

    solver.step(loss)
    return found[0].detach(), found[1].detach()


def best_share(output: LinearOutput, deep_BK: Tensor, said_BK: Tensor, targets: Tensor) -> float:
    """The share that makes the output's loss of the rows and of a prior least, by which few rows move it little from a
    half; where the output has probabilities, by the best temperature, since another one is found for them afterwards.
    """
    temperatures = _TEMPERATURES if output.has_probabilities else (1.0,)

    def loss(share: float) -> float:
        mixed_BK = deep_BK.lerp(said_BK, share)
        losses = [float(output.loss(mixed_BK / temperature, targets)) for temperature in temperatures]
        return (len(said_BK) * min(losses) if len(said_BK) else 0.0) + ((share - 0.5) / _PRIOR) ** 2 / 2

    return min(_SHARES, key=loss)
