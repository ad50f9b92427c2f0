"""FuseMix: training rows mixed in the space of their vectors, which makes new rows of few (Vouitsis et al. 2023,
"Data-Efficient Multimodal Fusion on a Single GPU").

x = l x_i + (1 - l) x_j with the same l and the same pair in every modality, so that what belongs together still does;
and the loss is l L(y_i) + (1 - l) L(y_j), for a class the same as that of the mixed label.

Shapes: B rows, K masks of a row side by side.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from training.validation import check

if TYPE_CHECKING:
    from torch import Tensor

    from training.features import FeatureSettings
    from training.outputs.base import Output


def can_mix(
    modalities: Sequence[str],
    features: "FeatureSettings",
    output: "Output",
    columns: Sequence[str],
    several: Collection[str] = (),
) -> bool:
    """Whether rows may be mixed without anybody having asked for it; see `check_mixing`."""
    return output.has_labels and not any(_obstacles(modalities, features, output, columns, several))


def check_mixing(
    alpha: float,
    modalities: Sequence[str],
    features: "FeatureSettings",
    output: "Output",
    columns: Sequence[str] = (),
    several: Collection[str] = (),
) -> None:
    """Raises ValueError where rows of such features, or answers of such an output, cannot be mixed.

    Args:
        columns: that the prompt names.
        several: the modalities of which a row may have several contents.
    """
    for obstacle in _obstacles(modalities, features, output, columns, several):
        check(alpha == 0, "training.mixing", alpha, f"0 {obstacle}")


def _obstacles(
    modalities: Sequence[str],
    features: "FeatureSettings",
    output: "Output",
    columns: Sequence[str],
    several: Collection[str],
) -> Iterator[str]:
    """Beside what rows cannot be mixed, and why."""
    if several:
        yield f"beside align.several ({', '.join(several)}): rows with different numbers of contents cannot be mixed"
    if columns:
        yield "beside columns in model.prompt: texts cannot be mixed"
    for modality in modalities:
        if (form := features.forms[modality]) != "vectors":
            vectors = f"features.{modality}: {{kind: embedding, model: ...}} or {{kind: vector, width: ...}}"
            yield f"beside features.{modality} of the form {form}: vectors alone can be mixed, as of {vectors}"
    if output.reads_answers or output.answers_with:
        yield "where answers are written: there is none between two texts; model.output: class, for one, has some"


def mixed(
    batch: "dict[str, Tensor]", modalities: Sequence[str], alpha: float, random: np.random.Generator
) -> "dict[str, Tensor]":
    """The batch of a `Collator`, all of whose modalities are vectors, with each row mixed with another one.

    What a row keeps of itself is drawn once for the batch, from Beta(alpha, alpha): `mixing`; its partner has the same
    modalities, in as many vectors, and its label is `other_labels`. A row that is alone in that stays as it is.
    """
    import torch

    masks = [batch["present"], *(batch[f"{modality}_mask"] for modality in modalities)]
    partner_B = torch.from_numpy(partners(torch.cat(masks, dim=1).numpy(), random))
    kept = random.beta(alpha, alpha)
    vectors = {m: kept * batch[m] + (1 - kept) * batch[m][partner_B] for m in modalities}
    others = {f"other_{name}": batch[name][partner_B] for name in ("labels", "column") if name in batch}
    return batch | vectors | {"mixing": torch.tensor(kept).float()} | others


def partners(masks_BK: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """For each row the number of one with equal masks (B,), each of which is taken once; it may be the row itself."""
    kinds_B = np.unique(masks_BK, axis=0, return_inverse=True)[1].reshape(-1)
    partner_B = np.empty(len(masks_BK), np.int64)
    for kind in range(kinds_B.max() + 1):
        (alike,) = np.nonzero(kinds_B == kind)
        partner_B[alike] = random.permutation(alike)
    return partner_B
